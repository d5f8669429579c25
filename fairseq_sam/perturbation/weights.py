"""Perturbing weights in place and putting them back bit for bit, in any precision.

At a weight of 0.04 an fp16 step is 3e-5 and a bf16 step 2e-4, so rounding to nearest swallows most
of a perturbation of that size. Stochastic rounding keeps it in expectation: each weight lands on
one of its two neighbours with probabilities that make the mean exact.
"""

import contextlib
from typing import Any, Callable, Collection, Dict, Iterator, List, Optional, Sequence, Tuple

import torch
from torch import Tensor

from fairseq_sam.perturbation import ascent, foreach
from fairseq_sam.perturbation.ascent import (
    SCALES,
    Blocks,
    Computed,
    Direction,
    Groups,
    Layers,
    Radius,
    SecondMoment,
    fitting,
    scale_of_groups,
    total_norm,
)
from fairseq_sam.perturbation.settings import PerturbationSettings

LOW_PRECISION = (torch.float16, torch.bfloat16)


class PerturbedWeights:
    """Weights that move to w + a_1, w + a_2, … and back.

    Weights are restored by copying a snapshot back, never by subtracting: workers that hold the
    same weights hold the same weights afterwards. The snapshot is the only extra copy, kept
    between steps; a_k itself is not stored but is what the weights and the snapshot differ by.
    (In half precision, where the difference is mostly rounding, a_k is held in float32.)

    Args:
        weights: the tensors to perturb.
        settings: the method.
        layers: for each weight the number of the layer that it belongs to; only scales that divide
            by the gradient look at it, to tell noise (:func:`~.ascent.noise_of_tensors`).
        with_matrix: the numbers of those that hold a matrix, be it one of the weights or not.

    Attributes:
        perturbed: whether the weights are away from w.
        finite: boolean scalar tensor; false once a gradient of this step was not finite.
        norm: ‖a_k‖₂, a scalar tensor.
        realised: ⟨r, a⟩/⟨a, a⟩ over the half-precision weights, r being what the last step changed
            in them.
        low_precision: whether there are half-precision weights.
        second_moments: of each weight, or None where there is none yet; empty where there are none
            at all. Only the scale ``adam`` looks at them.
        draws: the random numbers of a step's own.
    """

    def __init__(
        self,
        weights: Sequence[Tensor],
        settings: PerturbationSettings,
        layers: Optional[Sequence[int]] = None,
        with_matrix: Collection[int] = (),
    ) -> None:
        self.weights = list(weights)
        self.settings = settings
        self.perturbed = False
        self.finite: Tensor
        self.norm: Tensor
        self.realised: Tensor
        self._rho: Radius = 0.0
        self.low_precision = any(weight.dtype in LOW_PRECISION for weight in self.weights)
        self.second_moments: Sequence[Optional[SecondMoment]] = ()
        self.draws = foreach.Draws()
        self._layers, self._with_matrix = layers, with_matrix
        self._direction = Direction(
            settings.direction,
            settings.smoothing,
            settings.friendly,
            settings.granularity,
            self.draws,
        )
        self._snapshot: Dict[int, Tensor] = {}
        self._noted: List[int] = []
        self._displacement: Tuple[List[Tensor], float] = ([], 0.0)
        self._moving: List[int] = []
        self._groups: Optional[Groups] = None
        self._moving_layers: Optional[Layers] = None
        self._scale: Blocks = []
        self._exact: List[Tensor] = []
        self._steps_taken = 0
        self._remembered: Optional[Tuple[Dict[int, Tensor], Any]] = None
        self.begin()

    def begin(self) -> None:
        """Begins a step: the weights are put back if need be, and what was said of them goes."""
        self.restore()
        self._steps_taken = 0
        device = self.weights[0].device if self.weights else None
        self.finite = torch.ones((), dtype=torch.bool, device=device)
        self.norm = torch.zeros((), device=device)
        self.realised = torch.ones((), device=device)
        self._rho = 0.0

    @torch.no_grad()
    def ascend(
        self,
        gradients: Sequence[Optional[Tensor]],
        divisor: "float | Tensor" = 1.0,
        compute_dtype: Optional[torch.dtype] = None,
        others: Sequence[Optional[Tensor]] = (),
        radius: Optional[Radius] = None,
        rise: Optional[Tensor] = None,
        unit: Radius = 1.0,
    ) -> None:
        """Moves the weights from w + a_{k−1} to w + a_k.

        T is computed from the first gradient and kept for the K steps, so that they share one
        constraint set (GA-SAM Algorithm 1, line 2; we recompute it for every batch, as its §5.5
        asks for). A gradient that is not finite makes the step, and what was perturbed before it,
        void: the weights return to w and :attr:`finite` turns false.

        Args:
            gradients: one per weight, shaped like it; None for a weight that takes no part.
            divisor: what the gradients were multiplied by on the way (loss scale, sample size):
                the scales see gradient / divisor. The direction does not depend on it.
            compute_dtype: the format that the gradients were computed in where that is coarser
                than their own (autocast); it sets the floor of rounding noise.
            others: gradients of weights that do not move, whose overflow voids the step too.
            radius: ρ of the K steps, looked at in the first (default: the settings').
            rise: how far the loss is to rise to first order, multiplied as the gradients are; ρ
                follows from it, and ``radius`` is the greatest.
            unit: what the gradients of the mean loss were multiplied by; only directions that
                remember gradients look at it.
        """
        first = not self.perturbed
        if first:
            self._begin_moving(gradients)
        if not self._moving:
            return
        assert self._groups is not None
        given = [_or_zeros(gradients[i], self.weights[i]) for i in self._moving]
        dtype = compute_dtype or _coarsest(given)
        norms = self._groups.norms(given)
        total = total_norm(norms)
        finite = torch.isfinite(total)
        unmoved = [gradient for gradient in others if gradient is not None]
        if unmoved:
            finite = finite & torch.isfinite(foreach.norms(unmoved)).all().to(finite.device)
        self.finite = finite if first else finite & self.finite
        foreach.discard_non_finite_(given, finite)
        if isinstance(norms, list):
            foreach.discard_non_finite_(norms, finite)
        if self.settings.direction != "gradient":
            tells = finite & (total > 0)  # of a dummy batch the gradient is 0
            given, own_unit = self._direction.of(given, self._moving, unit, tells)
            norms, divisor = self._groups.norms(given), divisor / unit * own_unit
            rise = None if rise is None else rise / unit * own_unit
        if first:
            origins = [self._snapshot[i] for i in self._moving]
            self._scale = self._compute_scale(origins, given, norms, divisor, dtype)
            self._rho = self.settings.rho if radius is None else radius
            if rise is not None:
                self._rho = self._radius_of(rise, self._rho, given, norms, self._scale)
                self.finite = self.finite & torch.isfinite(rise).to(self.finite.device)
            self._first_step(given, norms)
        else:
            self._next_step(given, norms)
        torch.clear_autocast_cache()  # it holds copies of the weights as they were
        self._steps_taken += 1
        if self._steps_taken == self.settings.num_steps:
            self._scale, self._exact = [], []  # not to be held through the pass that trains

    def _begin_moving(self, gradients: Sequence[Optional[Tensor]]) -> None:
        if not self._noted:
            self.begin()
            self.take_snapshot()
        self._choose_moving(gradients)
        noted = set(self._noted)
        self._note([i for i in self._moving if i not in noted])  # thawed since
        self.perturbed = True

    @torch.no_grad()
    def remember(self) -> None:
        """Keeps where the weights are, for :meth:`go_back`; another copy of them."""
        said = (self.finite, self.norm, self.realised, self._rho)
        self._remembered = ({i: self.weights[i].detach().clone() for i in self._moving}, said)

    @torch.no_grad()
    def go_back(self, stay: Callable[[Tensor], bool]) -> None:
        """Moves the weights to where they were remembered to be, by the perturbation of then.

        Args:
            stay: tells of a weight whether it stays at w.
        """
        assert self._remembered is not None
        values, said = self._remembered
        self.begin()
        self.take_snapshot()
        self.perturbed = True
        self.finite, self.norm, self.realised, self._rho = said
        moving = [i for i in values if not stay(self.weights[i])]
        foreach.copy_([self.weights[i] for i in moving], [values[i] for i in moving])
        torch.clear_autocast_cache()

    def forget(self) -> None:
        """Frees what was remembered."""
        self._remembered = None

    def radius(self) -> Tensor:
        """Returns ρ of this step, a scalar on the device of ``norm``; 0 where nothing moved."""
        rho = torch.ones_like(self.norm) * fitting(self._rho, self.norm)
        return torch.where(self.finite.to(rho.device), rho, torch.zeros_like(rho))

    @torch.no_grad()
    def radius_of_rise(
        self,
        gradients: Sequence[Optional[Tensor]],
        rise: Tensor,
        greatest: Radius,
        divisor: "float | Tensor" = 1.0,
        compute_dtype: Optional[torch.dtype] = None,
    ) -> Radius:
        """Returns the ρ at which the loss rises so far to first order, and moves nothing.

        Arguments are those of :meth:`ascend`. For an ascent that does not follow the gradient of
        the loss itself.
        """
        self._choose_moving(gradients)
        if not self._moving:
            return greatest
        assert self._groups is not None
        given = [_or_zeros(gradients[i], self.weights[i]) for i in self._moving]
        norms = self._groups.norms(given)
        weights = [self.weights[i] for i in self._moving]
        dtype = compute_dtype or _coarsest(given)
        scale = self._compute_scale(weights, given, norms, divisor, dtype)
        return self._radius_of(rise, greatest, given, norms, scale)

    @torch.no_grad()
    def displace(self, displacement: Sequence[Tensor], factor: float) -> None:
        """Moves the trained weights, wherever they are, to w + factor * displacement.

        Half-precision weights are rounded to nearest: a displacement is meant to be long enough.

        Args:
            displacement: one for each of :meth:`trained`, shaped like it, float32 at least.
            factor: a number.
        """
        if self._displacement[0]:
            foreach.copy_(*self.with_snapshot())
        else:
            self.restore()
            self.take_snapshot()
        self.perturbed = True
        self._displacement = (list(displacement), factor)
        self._displace()

    def _displace(self) -> None:
        displacement, factor = self._displacement
        weights = self.with_snapshot()[0]
        if self.low_precision:
            for weight, part in zip(weights, displacement):
                weight.copy_(weight.float().add_(part, alpha=factor))
        else:
            torch._foreach_add_(weights, displacement, alpha=factor)
        torch.clear_autocast_cache()

    @torch.no_grad()
    def restore(self) -> None:
        """Puts the weights back, bit for bit; does nothing where they are in place."""
        if self.perturbed:
            foreach.copy_(*self.with_snapshot())
            self.perturbed = False
            self._exact = []
            self._displacement = ([], 0.0)
            torch.clear_autocast_cache()
        self._noted = []

    def trained(self) -> List[Tensor]:
        """Returns those that are not frozen now; all, where none requires a gradient."""
        return [self.weights[i] for i in self._trained_indices()]

    def _trained_indices(self) -> List[int]:
        indices = [i for i, weight in enumerate(self.weights) if weight.requires_grad]
        return indices or list(range(len(self.weights)))

    @torch.no_grad()
    def take_snapshot(self) -> None:
        """Notes the weights as w; of frozen ones there is no copy, as they do not move."""
        self._noted = []
        self._note(self._trained_indices())

    def _note(self, indices: List[int]) -> None:
        for i in indices:
            if i not in self._snapshot:
                self._snapshot[i] = torch.empty_like(self.weights[i])
        foreach.copy_([self._snapshot[i] for i in indices], [self.weights[i] for i in indices])
        self._noted += indices

    def with_snapshot(self) -> Tuple[List[Tensor], List[Tensor]]:
        """Returns the weights that were noted, and what they were then."""
        return [self.weights[i] for i in self._noted], [self._snapshot[i] for i in self._noted]

    @contextlib.contextmanager
    def at_w(self) -> Iterator[None]:
        """Context in which the weights are at w, wherever they are.

        A displacement is added anew afterwards; an ascent costs a copy of the weights.
        """
        if not self.perturbed:
            yield
            return
        weights, values = self.with_snapshot()
        is_displaced = bool(self._displacement[0])
        elsewhere = [] if is_displaced else [weight.detach().clone() for weight in weights]
        with torch.no_grad():
            foreach.copy_(weights, values)
        torch.clear_autocast_cache()
        try:
            yield
        finally:
            with torch.no_grad():
                if is_displaced:
                    self._displace()
                else:
                    foreach.copy_(weights, elsewhere)
            torch.clear_autocast_cache()

    def origins(self) -> List[Tuple[Tensor, Tensor]]:
        """Returns each weight with its value at w, which is not to be changed; none at w itself."""
        return list(zip(*self.with_snapshot())) if self.perturbed else []

    def _choose_moving(self, gradients: Sequence[Optional[Tensor]]) -> None:
        """Weights without a gradient (unused, frozen) take no part and do not count in n."""
        moving = [i for i, gradient in enumerate(gradients) if gradient is not None]
        if moving != self._moving or self._groups is None:
            self._moving, self._moving_layers = moving, None
            self._groups = Groups(
                [self.weights[i] for i in moving], self.settings.granularity or "layer"
            )

    def _compute_scale(
        self,
        weights: List[Tensor],
        gradients: List[Tensor],
        norms: Blocks,
        divisor: "float | Tensor",
        dtype: torch.dtype,
    ) -> Blocks:
        """Returns T; of single weights it is computed anew at each look, unless g will be gone."""
        assert self._groups is not None
        groups, scale = self._groups, SCALES[self.settings.scale]
        if scale.uses_second_moments and not any(m is not None for m in self.second_moments):
            scale = SCALES["none"]  # before the first update
        sizes = groups.sizes(norms)
        noise: Blocks = [torch.zeros(())] * len(norms)
        if scale.divides_by_gradient:
            each = norms[0] if groups.granularity == "layer" else foreach.norms(gradients)
            noise = groups.from_tensors(self._noise(each, dtype) / divisor)
        weight_norms = norms
        if scale.uses_weights:
            weight_norms = groups.norms(weights)
        elif scale.uses_second_moments:
            weight_norms = self._denominators(norms, divisor)

        def of_groups(i: int) -> Tensor:
            of_weights = weight_norms[i]
            of_gradients = norms[i] / divisor if scale.divides_by_gradient else of_weights
            count = groups.num_weights
            return scale_of_groups(scale, of_weights, of_gradients, sizes[i], count, noise[i])

        computed = Computed(len(norms), of_groups)
        can_wait = self.settings.num_steps == 1 or not scale.divides_by_gradient
        return computed if groups.granularity == "element" and can_wait else list(computed)

    def _denominators(self, norms: Blocks, divisor: "float | Tensor") -> Blocks:
        """Returns √v̂ + δ of each moving weight; |g| where nothing is remembered of it alone."""
        moments = [self.second_moments[i] for i in self._moving]

        def denominator(i: int) -> Tensor:
            moment, g = moments[i], norms[i] / divisor
            return g if moment is None else moment.denominator(g)

        return Computed(len(norms), denominator)

    def _noise(self, norms: Tensor, dtype: torch.dtype) -> Tensor:
        """Returns the strength at or below which the gradient of a moving tensor is noise.

        Args:
            norms: ‖g‖ of each moving tensor.
            dtype: the format that the gradients were computed in.
        """
        assert self._groups is not None
        if self._layers is not None and self._moving_layers is None:
            self._moving_layers = Layers.of(
                [self.weights[i] for i in self._moving],
                [self._layers[i] for i in self._moving],
                self._with_matrix,
                norms.device,
            )
        sizes = self._groups.tensor_sizes(norms)
        return ascent.noise_of_tensors(norms, sizes, dtype, self._moving_layers)

    def _radius_of(
        self,
        rise: Tensor,
        greatest: Radius,
        gradients: List[Tensor],
        norms: Blocks,
        scale: Blocks,
    ) -> Tensor:
        assert self._groups is not None
        norm, order = self.settings.norm, ascent.DUAL[self.settings.norm]
        dual_norms = norms if order == 2 else self._groups.norms(gradients, order)
        return ascent.radius_of_rise(norm, scale, dual_norms, rise, greatest)

    def _coefficients(self, norms: Blocks, step_size: Radius) -> Blocks:
        """Returns the coefficients of the next step."""
        norm = self.settings.norm
        factor = ascent.step_factor(norm, self._scale, norms, step_size, self.finite)
        return ascent.step_coefficients(norm, self._scale, factor)

    def _first_step(self, gradients: List[Tensor], norms: Blocks) -> None:
        """Sets a_1 = Π(u_1): since ‖T⁻¹u_1‖ = η, projecting is stepping by min(η, ρ)."""
        assert self._groups is not None
        num_steps = self.settings.num_steps
        length = self._rho if num_steps == 1 else ascent.step_size(self._rho, num_steps)
        coefficients = self._coefficients(norms, length)
        weights = [self.weights[i] for i in self._moving]
        if self.low_precision:
            self._exact = [torch.zeros_like(weight, dtype=torch.float32) for weight in weights]
        total = self._exact if self.low_precision else weights
        is_last = num_steps == 1  # otherwise a later one tells ‖a_K‖
        of_groups = self.settings.norm == "l2" and self._groups.granularity != "element"
        factors = self._groups.spread(coefficients)
        lengths = self._add_steps(total, gradients, factors, measure=is_last and not of_groups)
        if is_last:
            self.norm = (
                ascent.step_length(coefficients, norms)
                if of_groups
                else torch.linalg.vector_norm(torch.cat(lengths))
            )
        if self.low_precision:
            self._add(self._exact)

    def _add_steps(
        self, totals: List[Tensor], gradients: List[Tensor], factors: Blocks, measure: bool = False
    ) -> List[Tensor]:
        """Adds c ⊙ v to each tensor; returns ‖c ⊙ v‖ of each, if wanted.

        Some tensors at a time: the signs of all would be another copy of the model.
        """
        lengths, room = [], foreach.Room()
        for part in foreach.chunks(totals):
            chunk = [factors[i] for i in range(part.start, part.stop)]
            directions = gradients[part]
            if self.settings.norm == "linf":
                directions = foreach.sign(directions, room)
            if measure:
                lengths.append(foreach.product_norms(directions, chunk))
            torch._foreach_addcmul_(
                totals[part], [d.to(t.dtype) for d, t in zip(directions, totals[part])], chunk
            )
        return lengths

    def _next_step(self, gradients: List[Tensor], norms: Blocks) -> None:
        """Sets a_k = Π(a_{k−1} + u_k), with a_{k−1} read off the weights and the snapshot."""
        assert self._groups is not None
        step_size = ascent.step_size(self._rho, self.settings.num_steps)
        coefficients = self._coefficients(norms, step_size)
        weights = [self.weights[i] for i in self._moving]
        origins = [self._snapshot[i] for i in self._moving]
        if not self.low_precision:
            torch._foreach_sub_(weights, origins)
        total = self._exact if self.low_precision else weights
        self._add_steps(total, gradients, self._groups.spread(coefficients))
        ascent.project_(self.settings.norm, total, self._groups, self._scale, self._rho)
        foreach.zero_unless_(total, self.finite)
        self.norm = torch.linalg.vector_norm(foreach.norms(total))
        if self.low_precision:
            foreach.copy_(weights, origins)
            self._add(total)
        else:
            torch._foreach_add_(weights, origins)

    def _add(self, perturbation: List[Tensor]) -> None:
        """Adds to weights of which some are in half precision, and measures what they took."""
        share, asked = [], []
        generators = self.draws.generators()
        for i, part in zip(self._moving, perturbation):
            if self.weights[i].dtype in LOW_PRECISION:
                generator = generators[self.weights[i].device]
                products = add_perturbation_(self.weights[i], part, generator)
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


def stochastic_round(
    values: Tensor, dtype: torch.dtype, generator: Optional[torch.Generator] = None
) -> Tensor:
    """Rounds float32 values to a half-precision format at random, unbiased.

    Each value lands on one of its two neighbours in the target format, on the upper one with the
    probability of its relative distance from the lower.

    Args:
        values: float32.
        dtype: ``torch.float16`` or ``torch.bfloat16``.
        generator: of the random numbers (default: torch's).

    Returns:
        A tensor of ``dtype``; values that the format holds exactly stay as they are.
    """
    info = torch.finfo(dtype)
    # The exponent bits alone are the power of two below |x|; its product with the format's
    # epsilon is the distance between neighbours there.
    power = (values.view(torch.int32) & 0x7F800000).view(torch.float32)
    step = power.clamp_(min=info.tiny).mul_(info.eps)
    steps = values.abs().div_(step)
    lower = steps.floor()
    drawn = torch.rand(values.shape, generator=generator, device=values.device)
    upper = drawn < steps.sub_(lower)
    rounded = lower.add_(upper).mul_(step).copysign_(values)
    return torch.where(torch.isfinite(values), rounded, values).to(dtype)


def add_perturbation_(
    weight: Tensor, perturbation: Tensor, generator: Optional[torch.Generator] = None
) -> Tuple[Tensor, Tensor]:
    """Adds a perturbation to a half-precision weight in place with stochastic rounding.

    Args:
        weight: fp16 or bf16, changed in place.
        perturbation: float32, same shape.
        generator: as of :func:`stochastic_round`.

    Returns:
        ⟨r, a⟩ and ⟨a, a⟩ as float32 scalars, where a is the perturbation asked for and r the one
        realised: their ratio over all tensors is the realised share.
    """
    before = weight.float()
    weight.copy_(stochastic_round(before + perturbation, weight.dtype, generator))
    realised = weight.float().sub_(before)
    return (realised * perturbation).sum(), perturbation.square().sum()


def _coarsest(gradients: Sequence[Tensor]) -> torch.dtype:
    return max({g.dtype for g in gradients}, key=lambda dtype: torch.finfo(dtype).eps)


def _or_zeros(gradient: Optional[Tensor], weight: Tensor) -> Tensor:
    """A weight that had a gradient at w may have none at w + a_k (a layer skipped at random)."""
    return torch.zeros_like(weight) if gradient is None else gradient
