"""Numbers in the dataclasses of which fairseq makes flags, checked as those of other flags are.

By itself fairseq takes a field's type, Python's own ``int`` or ``float``, for the flag's.
"""

from __future__ import annotations

from argparse import ArgumentTypeError
from dataclasses import dataclass, field
from typing import Any, Callable

from fairseq.dataclass import FairseqDataclass

_KEY = "convert"


def checked(convert: Callable[[str], Any], default: Any, text: str) -> Any:
    """Returns a field whose values ``convert`` allows.

    Args:
        convert: from the text on the command line to the value, as argparse's ``type``.
        default: the field's default; None where nothing need be given.
        text: the flag's help.
    """
    return field(default=default, metadata={"help": text, _KEY: convert})


@dataclass
class CheckedConfig(FairseqDataclass):
    """A configuration with fields made by :func:`checked`."""

    def _get_type(self, attribute_name: str) -> Any:
        """Tells fairseq what to give to argparse as a flag's ``type``."""
        convert = self._get_meta(attribute_name, _KEY)
        return super()._get_type(attribute_name) if convert is None else convert


def check(cfg: Any, config: Any) -> None:
    """Refuses values that a flag would not take; they came from ``fairseq-hydra-train``.

    Args:
        cfg: the values.
        config: the class, derived from :class:`CheckedConfig`, whose fields they are.

    Raises:
        SystemExit: with one line that names the flag, its value and what is allowed.
    """
    for name, each in config.__dataclass_fields__.items():
        convert, value = each.metadata.get(_KEY), getattr(cfg, name, None)
        if convert is None or (value is None and each.default is None):
            continue
        try:
            convert(str(value))
        except ArgumentTypeError as error:
            raise SystemExit(f"error: argument --{name.replace('_', '-')}: {error}") from None
