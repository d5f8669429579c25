"""Output on terminals and into files of any encoding."""

from __future__ import annotations

import codecs
import sys
from typing import Tuple

_PLAIN = {
    "…": "...",
    "±": "+-",
    "–": "-",
    "—": "-",
    "−": "-",
    "×": "x",
    "≤": "<=",
    "≥": ">=",
    "√": "sqrt ",
    "·": "*",
    "‖": "||",
    "∞": "inf",
    "Σ": "sum of ",
    "η": "eta",
    "ρ": "rho",
    "ε": "eps",
    "α": "alpha",
    "β": "beta",
    "δ": "delta",
    "θ": "theta",
    "λ": "lambda",
    "μ": "mu",
    "σ": "sigma",
    "¹": "1",
    "²": "2",
    "₁": "1",
    "₂": "2",
    "ⁿ": "n",
    "ᵢ": "_i",
    "⁻": "-",
    "↓": "(down)",
    "→": "(across)",
    "’": "'",
    "“": '"',
    "”": '"',
}
_HANDLER = "fairseq-sam-plain"


def write_on_any_terminal() -> None:
    """Lets stdout and stderr spell out what their encoding has no letters for.

    Help texts have Greek letters and dots, and paths may be of any bytes: Python would end with a
    UnicodeEncodeError, after hours of work maybe.
    """
    codecs.register_error(_HANDLER, _spell_out)
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors=_HANDLER)


def _spell_out(error: UnicodeError) -> Tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    text = error.object[error.start : error.end]
    return "".join(_PLAIN.get(letter, "?") for letter in text), error.end
