"""Lists of radii on the command line."""

from __future__ import annotations

import argparse
from typing import Tuple

from fairseq_sam.commands.number_types import positive


def radii(text: str) -> Tuple[float, ...]:
    """Converts numbers above 0 that are joined by commas, for argparse.

    Raises:
        argparse.ArgumentTypeError: one of them is none.

    >>> radii("0.05,1e-1")
    (0.05, 0.1)
    """
    values = tuple(positive(part) for part in text.split(","))
    if len(set(values)) < len(values):
        raise argparse.ArgumentTypeError(f"{text!r} has a number twice")
    return values
