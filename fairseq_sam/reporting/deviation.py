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
    return statistics.stdev(values) if all(map(math.isfinite, values)) else math.nan
