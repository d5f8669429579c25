"""Which radii to try: the order of magnitude by bisection, then the grid 1, 2, 5, 8 x 10^m.

This is how GA-SAM's ε was found (Zhang et al. 2022, §7; App. C.2, whose grid has two decades). What
the bisection is of the paper does not say. Here it is the *edge of harm*. As a function of log ρ
the validation loss is flat where ρ is too small to matter, dips, and explodes where ρ is too large,
so "worse than the run without perturbation by more than a margin" turns from false to true once,
and bisection over the exponents finds where. With a loss of L₀ − aρ + bρ² the best radius is a/2b
and the loss is back at L₀ at a/b: the optimum lies close below the edge. A search for the dip
itself would be led astray by noise on the flat stretch; from there, a search for the edge just
goes on towards larger radii.
"""

from __future__ import annotations

import math
from typing import Callable, Dict, Generator, List, Mapping, Optional, Sequence

GRID = (1, 2, 5, 8)
BASELINE = 0.0

Strategy = Generator[List[float], Mapping[float, float], str]
"""Yields radii to try, all at once if that can be; is sent the cost of each; returns a remark."""


def radius(digit: int, exponent: int) -> float:
    """Returns ``digit`` x 10^``exponent``, correctly rounded.

    >>> radius(2, -4)
    0.0002
    """
    return float(f"{digit}e{exponent}")


def order_then_grid(lowest: int, highest: int, margin: float = 0.01, width: int = 1) -> Strategy:
    """Searches for the radius of the least cost.

    1. The baseline (radius 0), and bisection for M, the largest exponent whose radius 10^M costs no
       more than the baseline by more than the margin; ``width`` exponents at a time.
    2. The grid 1, 2, 5, 8 x 10^M. Unless the best radius so far is above 10^M, the decade below as
       well; and so on downwards, as long as the best is better than the baseline.

    That is at most 1 + ⌈log₂(n + 1)⌉ + 3 radii for n exponents, and 4 for each decade below.

    Args:
        lowest: the least exponent.
        highest: the greatest exponent; the grid reaches 8 x 10^highest.
        margin: what counts as worse than the baseline, as a share of its absolute cost. It should
            be above the noise between runs; how far above matters little, since costs explode.
        width: how many runs can be made at once.

    Yields:
        Radii not asked for before, the baseline first of all. The cost of each must be sent:
        lower is better, infinite for a run that diverged or was stopped early.

    Returns:
        What there is to say about the range, "" if nothing.
    """
    costs: Dict[float, float] = {}
    bearable, harmful = lowest - 1, highest + 1
    while harmful - bearable > 1:
        exponents = spread(bearable, harmful, width)
        batch = [radius(1, exponent) for exponent in exponents]
        costs.update((yield batch if costs else [BASELINE, *batch]))
        limit = costs[BASELINE] + margin * abs(costs[BASELINE])
        first = next((m for m in exponents if costs[radius(1, m)] > limit), None)
        harmful = harmful if first is None else first
        bearable = max([bearable, *(m for m in exponents if m < harmful)])
    if bearable < lowest:
        return (
            f"every radius from {radius(1, lowest):g} on is worse than none: the range should"
            " begin lower"
        )
    for exponent in range(bearable, lowest - 1, -1):
        batch = [r for r in (radius(digit, exponent) for digit in GRID) if r not in costs]
        costs.update((yield batch))
        best = best_radius(costs)
        if best is None or best > radius(1, exponent):
            break
        if exponent < bearable and costs[best] >= costs[BASELINE]:
            break
    return _remark(costs, lowest, highest)


def one_by_one(radii: Sequence[float]) -> Strategy:
    """Tries each of some radii, after the baseline: shares of the loss mean the same everywhere.

    Yields:
        All of them at once.

    Returns:
        As :func:`order_then_grid`.
    """
    costs = dict((yield [BASELINE, *radii]))
    best = best_radius(costs)
    if len(radii) > 1 and best == max(radii):
        return "the best share is the largest that was tried: try beyond it"
    if len(radii) > 1 and best == min(radii):
        return "the best share is the smallest that was tried: try below it"
    return ""


def spread(low: int, high: int, count: int) -> List[int]:
    """Returns up to ``count`` whole numbers that divide what is strictly between evenly.

    >>> spread(-7, 2, 1), spread(-7, 2, 2), spread(0, 3, 5)
    ([-2], [-4, -1], [1, 2])
    """
    count = min(count, high - low - 1)
    return [low + math.ceil((high - low) * part / (count + 1)) for part in range(1, count + 1)]


def best_radius(costs: Mapping[float, float]) -> Optional[float]:
    """Returns the radius above 0 of the least cost, the larger one of two equals.

    Equals are common: fairseq rounds what it validates, and small radii do nothing.

    Returns:
        None if no cost of a radius above 0 is finite.
    """
    finite = [rho for rho, cost in costs.items() if rho != BASELINE and math.isfinite(cost)]
    return min(finite, key=lambda rho: (costs[rho], -rho)) if finite else None


def _remark(costs: Mapping[float, float], lowest: int, highest: int) -> str:
    best = best_radius(costs)
    if best == radius(GRID[-1], highest):
        return f"the best radius is the largest of the range: try beyond {radius(1, highest):g}"
    if best == radius(1, lowest):
        return "the best radius is the smallest of the range: try below it"
    return ""


def follow(
    strategy: Strategy,
    costs_of: Callable[[List[float]], Mapping[float, float]],
    most: Optional[int] = None,
) -> str:
    """Runs a strategy to its end.

    Args:
        strategy: what to try.
        costs_of: tries radii, and returns their costs.
        most: the number of radii that may be tried; None for no limit.

    Returns:
        The strategy's remark, or that the limit cut it short.
    """
    batch, left = next(strategy), most
    while True:
        if left is not None:
            if len(batch) > left:
                costs_of(batch[:left])
                strategy.close()
                return "the limit on runs ended the search before its time"
            left -= len(batch)
        try:
            batch = strategy.send(costs_of(batch))
        except StopIteration as end:
            return str(end.value)
