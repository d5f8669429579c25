"""What the ascent follows: the gradient, or something else in its place.

With g the gradient of the mean loss at w, and d what is remembered of those before (zero at first):

========  ===================================================================================
gradient  g (Foret et al. 2021)
momentum  −m, the way that the base optimizer is going; needs no pass at w (Becker et al. 2025)
smoothed  d ← (1 − θ) d + θ g, then d (VaSSO, Li & Giannakis 2023, θ = 0.4); d ← g at first
friendly  g − d, then d ← (1 − θ) d + θ g (F-SAM, Li et al. 2024, σ = 1, θ = 1 − λ = 0.1)
random    a normal vector with the norm of g in each group of T: a control
========  ===================================================================================

Whatever it is takes the place of the gradient in all that follows: T, the step, the radius, the
projection. (Of F-SAM the published code averages g − d; the paper, as here, averages g.) What is
known of each: docs/methods.md.
"""

from dataclasses import dataclass
from typing import Dict, List, Optional, Sequence, Tuple

import torch
from torch import Tensor

from fairseq_sam.perturbation import foreach
from fairseq_sam.perturbation.ascent import Groups, Radius, fitting


@dataclass(frozen=True)
class DirectionKind:
    """What is special about a direction.

    Attributes:
        smoothing: default of θ; None where nothing is remembered.
        needs_pass: whether a pass at w comes first.
        source: where it comes from.
    """

    smoothing: Optional[float]
    needs_pass: bool
    source: str


DIRECTIONS: Dict[str, DirectionKind] = {
    "gradient": DirectionKind(None, True, "Foret et al. 2021"),
    "momentum": DirectionKind(None, False, "Becker et al. 2025"),
    "smoothed": DirectionKind(0.4, True, "Li & Giannakis 2023"),
    "friendly": DirectionKind(0.1, True, "Li et al. 2024"),
    "random": DirectionKind(None, True, "control"),
}


class Direction:
    """Turns gradients into what the ascent follows.

    What it remembers is float32 (float64 beside float64 weights), one copy of the weights, and a
    worker's own.

    Args:
        name: one of :data:`DIRECTIONS`.
        smoothing: θ.
        friendly: σ, how much of d a friendly direction leaves out.
        granularity: of the groups whose norms a random direction has.
    """

    def __init__(
        self, name: str, smoothing: Optional[float], friendly: float, granularity: Optional[str]
    ) -> None:
        self._name, self._friendly = name, friendly
        self._smoothing = DIRECTIONS[name].smoothing if smoothing is None else smoothing
        self._granularity = granularity or "model"
        self._remembered: Dict[int, Tensor] = {}
        self._began: Optional[Tensor] = None

    def of(
        self, gradients: Sequence[Tensor], indices: Sequence[int], unit: Radius, finite: Tensor
    ) -> Tuple[List[Tensor], Radius]:
        """Returns what to follow, and the unit that it is in: 1 is that of the mean loss.

        Args:
            gradients: of the weights that move; not changed.
            indices: which weights these are.
            unit: what the gradients are multiplied by.
            finite: boolean scalar; false leaves what is remembered untouched.
        """
        if self._name == "random":
            return self._random(gradients), unit
        if self._name not in ("smoothed", "friendly"):
            return list(gradients), unit
        for i, gradient in zip(indices, gradients):
            if i not in self._remembered:
                self._remembered[i] = torch.zeros_like(foreach.at_least_float32(gradient))
        d = [self._remembered[i] for i in indices]
        if self._name == "smoothed":
            self._remember(d, gradients, unit, finite)
            return d, 1.0
        followed = [
            foreach.at_least_float32(g) - each * (fitting(unit, each) * self._friendly)
            for g, each in zip(gradients, d)
        ]
        self._remember(d, gradients, unit, finite)
        return followed, unit

    def _remember(
        self, d: List[Tensor], gradients: Sequence[Tensor], unit: Radius, finite: Tensor
    ) -> None:
        """Sets d to (1 − θ) d + θ g, some tensors at a time."""
        assert self._smoothing is not None
        all_new = torch.zeros_like(finite)  # whether this is the first to be remembered, as it is
        if self._name == "smoothed":
            all_new = finite if self._began is None else finite & ~self._began
            self._began = finite if self._began is None else self._began | finite
        for part in foreach.chunks(d):
            chunk = d[part]
            apart = [
                (foreach.at_least_float32(g) / fitting(unit, each)).sub_(each)
                for g, each in zip(gradients[part], chunk)
            ]
            one = chunk[0].new_ones(())
            theta = torch.where(all_new.to(one.device), one, one * self._smoothing)
            theta = torch.where(finite.to(one.device), theta, one * 0.0)
            torch._foreach_mul_(apart, [theta.to(each) for each in apart])
            torch._foreach_add_(chunk, apart)

    def _random(self, gradients: Sequence[Tensor]) -> List[Tensor]:
        """Draws from torch's generator, whose state is put back before the next pass."""
        groups = Groups(gradients, self._granularity)
        drawn = [torch.randn_like(foreach.at_least_float32(gradient)) for gradient in gradients]
        wanted, found = groups.norms(gradients), groups.norms(drawn)
        for i, factor in enumerate(groups.spread([w / f for w, f in zip(wanted, found)])):
            drawn[i].mul_(torch.where(torch.isfinite(factor), factor, torch.zeros_like(factor)))
        return drawn
