"""Types of command-line arguments: numbers within limits."""

from __future__ import annotations

import argparse
import math


def positive(text: str) -> float:
    """Converts a finite number above 0.

    Raises:
        argparse.ArgumentTypeError: it is none.

    >>> positive("5e-2")
    0.05
    """
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and value > 0):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0")
    return value


def count(text: str) -> int:
    """Converts a whole number of at least 1.

    Raises:
        argparse.ArgumentTypeError: it is none.
    """
    value = int(text) if text.isdigit() else 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return value
