"""Numbers and words out of files that anything may have written, and means of such numbers."""

from __future__ import annotations

import math
import re
import statistics
from typing import Any, Mapping, Optional, Sequence

_NUMBER = re.compile(
    r"[-+]?([0-9]+(\.[0-9]*)?|\.[0-9]+)(e[-+]?[0-9]+)?|nan|[-+]?inf", re.IGNORECASE
)


def number(value: object) -> Optional[float]:
    """Returns a number of JSON as a float, None for anything else.

    >>> number(1), number("1"), number(True), number(10**400)
    (1.0, None, None, inf)
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    try:
        return float(value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf


def number_of(value: object) -> Optional[float]:
    """Returns a number as fairseq logs it, which in JSON is a text; None for anything else.

    >>> number_of("4.5"), number_of(" nan "), number_of("1_0"), number_of(None), number_of(True)
    (4.5, nan, None, None, None)
    """
    if isinstance(value, str):
        text = value.strip()
        return float(text) if len(text) < 400 and _NUMBER.fullmatch(text) else None
    return number(value)


def printable(text: str, most: int = 60) -> str:
    r"""Returns text that fits into a line and that every terminal's encoding can be asked to print.

    >>> printable("a\nb\ud800"), printable("a" * 9, 5)
    ('a?b?', 'aaaa…')
    """
    short = text if len(text) <= most else f"{text[: most - 1]}…"
    return "".join(letter if letter.isprintable() else "?" for letter in short)


def told_apart(texts: Mapping[str, str]) -> str:
    """Returns the text that all names have in common, or each name with its own.

    >>> told_apart({"adam": "cross_entropy", "sam": "cross_entropy"})
    'cross_entropy'
    >>> told_apart({"adam": "cross_entropy", "sam": "r_drop_cross_entropy"})
    'adam: cross_entropy, sam: r_drop_cross_entropy'
    """
    if len(set(texts.values())) == 1:
        return next(iter(texts.values()))
    return ", ".join(f"{name}: {text}" for name, text in texts.items())


def sentences_told_apart(checkpoints: Sequence[Mapping[str, Any]]) -> str:
    """Returns how many sentences checkpoints were measured on: models may be too short for some.

    >>> sentences_told_apart([{"name": "adam", "num_sentences": 3}])
    '3 sentences'
    """
    return told_apart({each["name"]: f"{each['num_sentences']} sentences" for each in checkpoints})


def sample_deviation(values: Sequence[float]) -> float:
    """Returns the sample standard deviation, 0 of one value, NaN where one is not finite.

    ``statistics.stdev`` raises AttributeError for NaN and infinity before Python 3.12.

    >>> sample_deviation([1.0, 3.0]), sample_deviation([1.0]), sample_deviation([1.0, math.inf])
    (1.4142135623730951, 0.0, nan)
    """
    if len(values) < 2:
        return 0.0
    if not all(map(math.isfinite, values)):
        return math.nan
    try:
        return statistics.stdev(values)
    except OverflowError:
        return math.inf


def mean_of(values: Sequence[float]) -> float:
    """Returns the mean of any numbers; ``statistics.fmean`` raises where a sum has no value.

    >>> mean_of([1.0, 2.0]), mean_of([math.inf, -math.inf]), mean_of([1.5e308, 1.5e308])
    (1.5, nan, 1.5e+308)
    """
    try:
        return statistics.fmean(values)
    except (OverflowError, ValueError):
        return sum(value / len(values) for value in values)
