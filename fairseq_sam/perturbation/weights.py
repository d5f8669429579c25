"""Perturbing weights in place and putting them back bit for bit."""

from typing import List, Optional, Sequence, Tuple

import torch
from torch import Tensor

from fairseq_sam.perturbation import constraint, foreach
from fairseq_sam.perturbation.groups import Blocks, Groups, total_norm
from fairseq_sam.perturbation.rounding import LOW_PRECISION, add_perturbation_
from fairseq_sam.perturbation.scales import SCALES, scale_of_groups
from fairseq_sam.perturbation.settings import PerturbationSettings


def noise_floor(dtype: torch.dtype) -> float:
    """Returns the share of the average gradient strength below which a gradient is noise.

    Measured on a Transformer after an epoch on De-En text: the biases of the key projections, whose
    true gradient is 0, have strengths of up to 1 machine epsilon of the average in float32 and
    0.14 under bfloat16 autocast, while no other tensor is below 0.03 of the average
    (docs/results/noise_floor.md). 64 epsilons, at most 2⁻⁷, lies between the two in every format.

    >>> noise_floor(torch.bfloat16) == 2**-7 and noise_floor(torch.float32) < 1e-5
    True
    """
    return min(64.0 * torch.finfo(dtype).eps, 2.0**-7)


class PerturbedWeights:
    """Weights that move to w + a_1, w + a_2, … and back.

    Weights are restored by copying a snapshot back, never by subtracting: workers that hold the
    same weights hold the same weights afterwards. The snapshot is the only extra copy, kept
    between steps; a_k itself is not stored but is what the weights and the snapshot differ by.
    (In half precision, where the difference is mostly rounding, a_k is held in float32.)

    Args:
        weights: the tensors to perturb.
        settings: the method.
    """

    def __init__(self, weights: Sequence[Tensor], settings: PerturbationSettings) -> None:
        self.weights = list(weights)
        self.settings = settings
        self.perturbed = False
        self.finite: Tensor
        self.norm: Tensor
        self.realised: Tensor
        self.low_precision = any(weight.dtype in LOW_PRECISION for weight in self.weights)
        self._forget()
        self._snapshot: List[Tensor] = []
        self._moving: List[int] = []
        self._groups: Optional[Groups] = None
        self._scale: Blocks = []
        self._exact: List[Tensor] = []

    @torch.no_grad()
    def ascend(
        self,
        gradients: Sequence[Optional[Tensor]],
        divisor: "float | Tensor" = 1.0,
        compute_dtype: Optional[torch.dtype] = None,
        consume: bool = False,
        others: Sequence[Optional[Tensor]] = (),
    ) -> None:
        """Moves the weights from w + a_{k−1} to w + a_k.

        T is computed from the first gradient and kept for the K steps, so that they share one
        constraint set (Algorithm 1, line 2; we recompute it for every batch, as §5.5 asks for).
        A gradient that is not finite makes the step, and what was perturbed before it, void:
        the weights return to w and :attr:`finite` turns false.

        Args:
            gradients: one per weight, shaped like it; None for a weight that takes no part.
            divisor: what the gradients were multiplied by on the way (loss scale, sample size):
                the scales see gradient / divisor. The direction does not depend on it.
            compute_dtype: the format that the gradients were computed in where that is coarser
                than their own (autocast); it sets the floor of rounding noise.
            consume: whether the gradients may be overwritten.
            others: gradients of weights that do not move, whose overflow voids the step too.
        """
        first = not self.perturbed
        if first:
            self._forget()
            self._take_snapshot()
            self._choose_moving(gradients)
        if not self._moving:
            return
        assert self._groups is not None
        given = [_or_zeros(gradients[i], self.weights[i]) for i in self._moving]
        norms = self._groups.norms(given)
        finite = torch.isfinite(total_norm(norms))
        unmoved = [gradient for gradient in others if gradient is not None]
        if unmoved:
            finite = finite & torch.isfinite(foreach.norms(unmoved)).all()
        self.finite = finite if first else finite & self.finite
        foreach.discard_non_finite_(given, finite)
        if isinstance(norms, list):
            foreach.discard_non_finite_(norms, finite)
        if first:
            coarsest = max((g.dtype for g in given), key=lambda dtype: torch.finfo(dtype).eps)
            self._scale = self._compute_scale(norms, divisor, compute_dtype or coarsest)
            self._first_step(given, norms, consume)
        else:
            self._next_step(given, norms)
        torch.clear_autocast_cache()  # it holds copies of the weights as they were
        self._steps_taken += 1
        if self._steps_taken == self.settings.num_steps:
            self._scale, self._exact = [], []  # not to be held through the pass that trains

    @torch.no_grad()
    def displace(self, displacement: Sequence[Tensor], factor: float) -> None:
        """Moves the weights, wherever they are, to w + factor * displacement.

        Half-precision weights are rounded to nearest: a displacement is meant to be long enough.

        Args:
            displacement: one per weight, shaped like it, float32 at least.
            factor: a number.
        """
        self.restore()
        self._take_snapshot()
        if self.low_precision:
            for weight, part in zip(self.weights, displacement):
                weight.copy_(weight.float().add_(part, alpha=factor))
        else:
            torch._foreach_add_(self.weights, list(displacement), alpha=factor)
        torch.clear_autocast_cache()

    @torch.no_grad()
    def restore(self) -> None:
        """Puts the weights back, bit for bit; does nothing where they are in place."""
        if self.perturbed:
            foreach.copy_(self.weights, self._snapshot)
            self.perturbed = False
            self._exact = []
            torch.clear_autocast_cache()

    def origins(self) -> List[Tuple[Tensor, Tensor]]:
        """Returns each weight with its value at w, which is not to be changed; none at w itself."""
        return list(zip(self.weights, self._snapshot)) if self.perturbed else []

    def _forget(self) -> None:
        """What is said of a step before there is one."""
        self._steps_taken = 0
        self.finite = torch.tensor(True)
        self.norm = torch.tensor(0.0)
        self.realised = torch.tensor(1.0)

    def _take_snapshot(self) -> None:
        if not self._snapshot:
            self._snapshot = [torch.empty_like(weight) for weight in self.weights]
        foreach.copy_(self._snapshot, self.weights)
        self.perturbed = True

    def _choose_moving(self, gradients: Sequence[Optional[Tensor]]) -> None:
        """Weights without a gradient (unused, frozen) take no part and do not count in n."""
        moving = [i for i, gradient in enumerate(gradients) if gradient is not None]
        if moving != self._moving or self._groups is None:
            self._moving = moving
            self._groups = Groups(
                [self.weights[i] for i in moving], self.settings.granularity or "layer"
            )

    def _compute_scale(
        self, norms: Blocks, divisor: "float | Tensor", compute_dtype: torch.dtype
    ) -> Blocks:
        assert self._groups is not None
        scale = SCALES[self.settings.scale]
        strength = total_norm(norms) / divisor / self._groups.num_weights**0.5
        noise = strength * noise_floor(compute_dtype)
        weight_norms = (
            self._groups.norms([self.weights[i] for i in self._moving])
            if scale.uses_weights
            else norms
        )
        return [
            scale_of_groups(scale, w, g / divisor, size, self._groups.num_weights, noise)
            for w, g, size in zip(weight_norms, norms, self._groups.sizes(norms))
        ]

    def _coefficients(self, norms: Blocks, step_size: float) -> Blocks:
        """Returns the coefficients of the next step; the last step may use up T."""
        last = self.settings.num_steps == 1
        scale = self._scale if last else [T.clone() for T in self._scale]
        return constraint.step_coefficients_(
            self.settings.norm, scale, norms, step_size, self.finite
        )

    def _directions(self, gradients: List[Tensor], consume: bool) -> List[Tensor]:
        if self.settings.norm == "l2":
            return gradients
        if not consume:
            return foreach.sign(gradients)
        foreach.sign_(gradients)
        return gradients

    def _first_step(self, gradients: List[Tensor], norms: Blocks, consume: bool) -> None:
        """Sets a_1 = Π(u_1): since ‖T⁻¹u_1‖ = η, projecting is stepping by min(η, ρ)."""
        assert self._groups is not None
        step_size = min(self.settings.step_size, self.settings.rho)
        coefficients = self._coefficients(norms, step_size)
        directions = self._directions(gradients, consume)
        if self.settings.norm == "linf":
            norms = self._groups.norms(directions)
        self.norm = constraint.step_length(coefficients, norms)
        factors = self._groups.spread(coefficients)
        if self.low_precision:
            self._exact = [v.float() * c for v, c in zip(directions, factors)]
            self._add(self._exact)
        else:
            weights = [self.weights[i] for i in self._moving]
            torch._foreach_addcmul_(weights, directions, factors)

    def _next_step(self, gradients: List[Tensor], norms: Blocks) -> None:
        """Sets a_k = Π(a_{k−1} + u_k), with a_{k−1} read off the weights and the snapshot."""
        assert self._groups is not None
        coefficients = self._coefficients(norms, self.settings.step_size)
        directions = self._directions(gradients, consume=True)
        weights = [self.weights[i] for i in self._moving]
        origins = [self._snapshot[i] for i in self._moving]
        if self.low_precision:
            total = self._exact
            directions = [v.float() for v in directions]
        else:
            torch._foreach_sub_(weights, origins)
            total = weights
        torch._foreach_addcmul_(total, directions, self._groups.spread(coefficients))
        constraint.project_(self.settings.norm, total, self._groups, self._scale, self.settings.rho)
        torch._foreach_mul_(total, [self.finite.to(t.dtype) for t in total])
        self.norm = torch.linalg.vector_norm(foreach.norms(total))
        if self.low_precision:
            foreach.copy_(weights, origins)
            self._add(total)
        else:
            torch._foreach_add_(weights, origins)

    def _add(self, perturbation: List[Tensor]) -> None:
        """Adds to weights of which some are in half precision, and measures what they took."""
        share, asked = [], []
        for i, part in zip(self._moving, perturbation):
            if self.weights[i].dtype in LOW_PRECISION:
                products = add_perturbation_(self.weights[i], part)
                share.append(products[0])
                asked.append(products[1])
            else:
                self.weights[i].add_(part)
        if asked:
            total = torch.stack(asked).sum()
            whole = torch.ones_like(total)
            self.realised = torch.where(
                total > 0, torch.stack(share).sum() / torch.where(total > 0, total, whole), whole
            )


def _or_zeros(gradient: Optional[Tensor], weight: Tensor) -> Tensor:
    """A weight that had a gradient at w may have none at w + a_k (a layer skipped at random)."""
    return torch.zeros_like(weight) if gradient is None else gradient
