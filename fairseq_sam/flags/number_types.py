"""Types of command-line arguments: numbers within limits, and lists of them.

Every flag of ours takes its numbers by these, ``fairseq-train``'s too. A number is written in ASCII
digits: Python's own ``int`` and ``float`` take ``1_0`` for ten, ``٣`` for three, and ``inf``. Every
number has an upper limit, so that a slip of the finger is refused before hours of work.
"""

from __future__ import annotations

import math
import re
from argparse import ArgumentTypeError
from typing import Callable, List, Optional, Tuple, Union

LARGEST_COUNT = 10**9
LARGEST_RADIUS = 1e6
MOST_STEPS = 1000
MOST_POINTS = 1000
MOST_DRAWS = 100_000
MOST_WORKERS = 4096
LARGEST_SEED = 2**32 - 1
"""What numpy takes."""

_WHOLE = re.compile(r"[+-]?[0-9]{1,18}", re.ASCII)
_NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?", re.ASCII)


def whole_number(least: int, most: int = LARGEST_COUNT) -> Callable[[str], int]:
    """Returns the type of a whole number from ``least`` to ``most``.

    >>> whole_number(0, 9)("7")
    7
    >>> whole_number(0, 9)("1_0")
    Traceback (most recent call last):
    argparse.ArgumentTypeError: 1_0 is not allowed: it must be a whole number, 0 or more (9 at most)
    """

    def convert(text: str) -> int:
        value = int(text) if _WHOLE.fullmatch(text) else None
        if value is None or not least <= value <= most:
            raise ArgumentTypeError(
                f"{text} is not allowed: it must be a whole number, {least} or more ({most} at "
                "most)"
            )
        return value

    return convert


def at_least_zero(text: str) -> float:
    """Converts a number from 0 to 1e6.

    Raises:
        argparse.ArgumentTypeError: it is none.
    """
    allowed = "it must be a finite number, 0 or more (1e6 at most)"
    return _number_where(text, lambda value: 0 <= value <= LARGEST_RADIUS, allowed)


def positive(text: str) -> float:
    """Converts a number above 0, of 1e6 at most.

    Raises:
        argparse.ArgumentTypeError: it is none.

    >>> positive("5e-2")
    0.05
    """
    allowed = "it must be a finite number above 0 (1e6 at most)"
    return _number_where(text, lambda value: 0 < value <= LARGEST_RADIUS, allowed)


def share(text: str) -> float:
    """Converts a number from 0 to 1, without 1 itself.

    Raises:
        argparse.ArgumentTypeError: it is none.
    """
    allowed = "it must be at least 0 and less than 1"
    return _number_where(text, lambda value: 0 <= value < 1, allowed)


def fraction(text: str) -> float:
    """Converts a number above 0, of 1 at most.

    Raises:
        argparse.ArgumentTypeError: it is none.

    >>> fraction("0.25")
    0.25
    """
    allowed = "it must be a number above 0, and 1 at most"
    return _number_where(text, lambda value: 0 < value <= 1, allowed)


def fraction_or_zero(text: str) -> float:
    """Converts a number from 0 to 1.

    Raises:
        argparse.ArgumentTypeError: it is none.
    """
    allowed = "it must be a number from 0 to 1"
    return _number_where(text, lambda value: 0 <= value <= 1, allowed)


def radius(text: str) -> Union[float, str]:
    """Converts a radius: a number from 0 to 1e6, or a share of the loss from 0% to 100%.

    A share stays text, as which it goes into checkpoints; see :func:`share_of`.

    Raises:
        argparse.ArgumentTypeError: it is neither.

    >>> radius("5e-2"), radius("5.0%")
    (0.05, '5%')
    """
    number = _finite(text[:-1] if text.endswith("%") else text)
    if text.endswith("%") and 0 <= number <= 100:
        return f"{number:.12g}%"
    if text.endswith("%") or not 0 <= number <= LARGEST_RADIUS:
        raise ArgumentTypeError(
            f"{text} is not allowed: it must be a finite number, 0 or more (1e6 at most), or a "
            "share of the loss from 0% to 100%"
        )
    return number


def share_of(radius: Union[float, str, None]) -> Optional[float]:
    """Returns the share that a radius is given as, None where it is given as a number.

    >>> share_of("5%")
    0.05
    """
    return float(radius[:-1]) / 100 if isinstance(radius, str) else None


def shares(text: str) -> Tuple[float, ...]:
    """Converts shares of the loss that are joined by commas.

    Raises:
        argparse.ArgumentTypeError: one of them is none.

    >>> shares("5%,10%")
    (0.05, 0.1)
    """
    values = tuple(share_of(radius(part)) for part in _parts(text))
    if len(set(values)) < len(values) or not all(values):
        raise ArgumentTypeError(
            f"{text} is not allowed: it must be shares above 0%, each once, such as 2%,5%"
        )
    return tuple(value for value in values if value is not None)


def radii(text: str) -> Tuple[float, ...]:
    """Converts numbers above 0 that are joined by commas.

    Raises:
        argparse.ArgumentTypeError: one of them is none.

    >>> radii("0.05,1e-1")
    (0.05, 0.1)
    """
    values = tuple(positive(part) for part in _parts(text))
    if len(set(values)) < len(values):
        raise ArgumentTypeError(f"{text} is not allowed: it has a number twice")
    return values


def seeds(text: str) -> Tuple[int, ...]:
    """Converts seeds that are joined by commas.

    Raises:
        argparse.ArgumentTypeError: one of them is none.

    >>> seeds("1,2")
    (1, 2)
    """
    values = tuple(seed(part) for part in _parts(text))
    if len(set(values)) < len(values):
        raise ArgumentTypeError(f"{text} is not allowed: it has a seed twice")
    return values


def power_of_ten(text: str) -> int:
    """Converts a power of ten from 1e-30 to 1e6 to its exponent.

    Raises:
        argparse.ArgumentTypeError: it is none.

    >>> power_of_ten("1e-6"), power_of_ten("10")
    (-6, 1)
    """
    value = _finite(text)
    exponent = round(math.log10(value)) if 1e-30 <= value <= LARGEST_RADIUS else None
    if exponent is None or value != float(f"1e{exponent}"):
        raise ArgumentTypeError(f"{text} is not allowed: it must be a power of ten, such as 1e-6")
    return exponent


def _number_where(text: str, holds: Callable[[float], bool], allowed: str) -> float:
    value = _finite(text)  # NaN, for which no limit holds, where it is none
    if not holds(value):
        raise ArgumentTypeError(f"{text} is not allowed: {allowed}")
    return value


def _parts(text: str) -> List[str]:
    parts = text.split(",")
    if not all(parts):
        raise ArgumentTypeError(f"{text} is not allowed: a number is missing beside a comma")
    return parts


def _finite(text: str) -> float:
    """Returns the number, NaN where the text is none."""
    value = float(text) if _NUMBER.fullmatch(text) else math.nan
    return value if math.isfinite(value) else math.nan


count = whole_number(1)
"""A number of things."""
num_steps = whole_number(1, MOST_STEPS)
"""K, gradient steps."""
num_points = whole_number(2, MOST_POINTS)
"""Points of an axis."""
num_draws = whole_number(1, MOST_DRAWS)
"""Random draws to average over."""
num_workers = whole_number(1, MOST_WORKERS)
"""Processes."""
seed = whole_number(0, LARGEST_SEED)
"""A seed of random numbers."""
