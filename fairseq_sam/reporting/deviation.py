"""The spread of several runs' figures, of which some may have diverged."""

import math
import statistics
from typing import Sequence


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
