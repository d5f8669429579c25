"""Synthetic objectives: what validation looks like as a function of the radius."""

import math
import random
from typing import Callable, Dict, List, Tuple

Objective = Callable[[float], float]
BASELINE_LOSS = 4.0


def flat_dip_explode(optimum: float, depth: float = 0.05) -> Objective:
    """L₀ − aρ + bρ²: least at ``optimum``, by ``depth``; flat far below it, exploding above."""
    return lambda rho: BASELINE_LOSS + depth * ((rho / optimum) ** 2 - 2 * rho / optimum)


def narrow_dip(optimum: float, depth: float = 0.05, edge: float = 3.0) -> Objective:
    """A dip about a quarter of a decade wide; training diverges ``edge`` times beyond it."""

    def loss(rho: float) -> float:
        if rho > edge * optimum:
            return math.inf
        if rho == 0:
            return BASELINE_LOSS
        return BASELINE_LOSS - depth * math.exp(-((math.log10(rho / optimum) / 0.25) ** 2))

    return loss


def noisy(objective: Objective, size: float, seed: int) -> Objective:
    """Adds uniform noise of up to ``size``, the same at each call with a radius."""
    return lambda rho: objective(rho) + size * (2 * random.Random(f"{seed} {rho}").random() - 1)


class Recorder:
    """Tells the costs of radii and remembers what was asked."""

    def __init__(self, objective: Objective) -> None:
        self.objective = objective
        self.batches: List[List[float]] = []
        self.costs: Dict[float, float] = {}

    def __call__(self, radii: List[float]) -> Dict[float, float]:
        self.batches.append(list(radii))
        self.costs.update({rho: self.objective(rho) for rho in radii})
        return dict(self.costs)

    @property
    def asked(self) -> Tuple[float, ...]:
        return tuple(rho for batch in self.batches for rho in batch)
