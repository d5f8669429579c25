"""The equations of one ascent step: its direction, T and its groups, the step u, the projection Π.

A perturbation lies in the constraint set S = {a : ‖T⁻¹a‖_p ≤ ρ} (GA-SAM Eqs. 13-18). T has one
value per *group* of weights:

========  ==============================================================================
element   every weight is a group
filter    a slice along the first dimension: a convolution's filter, a row of a linear layer, a
          word's embedding. Tensors of fewer than two dimensions (biases, layer norms) have no
          filters; their weights are groups of one (Kwon et al. 2021, §3)
layer     a named parameter tensor (GA-SAM §2.1)
model     all weights together
========  ==============================================================================

For a gradient g and a step size η the step is

    p = 2:  u = η T² g / ‖T g‖₂          p = ∞:  u = η T sgn(g)

that is u = c ⊙ v with a direction v (g or sgn g) and one coefficient c per group. Norms run over
all perturbed weights together. A group with T = 0 stays where it is.

To first order a step of length ρ raises the loss by ρ ‖T g‖_q, q being dual to p (2 to 2, 1 to
∞). A radius given as a share σ of the loss L is the one at which that rise is σ L:

    ρ = σ L / ‖T g‖_q

which means the same for every scale, norm, loss reduction, batch size and model (docs/radius.md).
docs/how_it_works.md has all equations on one page.

The ascent follows the gradient, or something else in its place. With g the gradient of the mean
loss at w, and d what is remembered of those before (zero at first):

========  ===================================================================================
gradient  g (Foret et al. 2021)
momentum  −m, the way that the base optimizer is going; needs no pass at w (Becker et al. 2025)
smoothed  d ← (1 − θ) d + θ g, then d (VaSSO, Li & Giannakis 2023, θ = 0.4); d ← g at first
friendly  g − d, then d ← (1 − θ) d + θ g (F-SAM, Li et al. 2024, σ = 1, θ = 1 − λ = 0.1)
random    a normal vector with the norm of g in each group of T: a control
========  ===================================================================================

Whatever it is takes the place of the gradient in all that follows: T, the step, the radius, the
projection. (Of F-SAM the published code averages g − d; the paper, as here, averages g. Both papers
climb once: with K > 1 the gradients at w + a_k are remembered as those at w are.) What is known of
each: docs/methods.md.

Quantities per group are kept in *blocks*: one flat tensor for ``filter``, ``layer`` and ``model``,
so that the arithmetic on them is a handful of operations however many tensors the model has, and
one tensor a parameter for ``element``, computed when it is looked at where that spares a copy of
the model.
"""

from dataclasses import dataclass
from typing import (
    Any,
    Callable,
    Collection,
    Dict,
    Iterable,
    List,
    NamedTuple,
    Optional,
    Sequence,
    Tuple,
    Union,
)

import torch
from torch import Tensor

from fairseq_sam.perturbation import foreach
from fairseq_sam.perturbation.foreach import at_least_float32

GRANULARITIES = ("element", "filter", "layer", "model")

Blocks = Sequence[Tensor]
Radius = Union[float, Tensor]
"""A number, or a scalar tensor where it is known on the device only."""

DUAL = {"l2": 2, "linf": 1}
"""q of ‖·‖_q, for each p."""

Formula = Callable[[Tensor, Tensor, Tensor, float], Tensor]


@dataclass(frozen=True)
class Scale:
    """A scale T.

    Attributes:
        formula: ``(weight_norm, gradient_norm, size, num_weights) -> T``, elementwise.
        uses_weights: whether it needs ‖w_i‖ (which costs a pass over the weights).
        divides_by_gradient: whether ‖g_i‖ stands below the line, which needs a floor.
        source: where it comes from.
        uses_second_moments: whether the formula's first argument is √v̂ + δ of each weight in place
            of ‖w_i‖; :class:`SecondMoment`.
        granularity: the only one that the scale goes with; None where any does.
    """

    formula: Formula
    uses_weights: bool
    divides_by_gradient: bool
    source: str
    uses_second_moments: bool = False
    granularity: Optional[str] = None


SCALES: Dict[str, Scale] = {
    "none": Scale(lambda w, g, size, n: torch.ones_like(g), False, False, "Foret et al. 2021"),
    "weight": Scale(lambda w, g, size, n: w, True, False, "Kwon et al. 2021"),
    "weight-over-gradient": Scale(lambda w, g, size, n: w / g, True, True, "Liu et al. 2021"),
    "gradient-strength": Scale(
        lambda w, g, size, n: size.sqrt() / (g * n**0.5), False, True, "GA-SAM Eq. 13"
    ),
    "inverse-gradient": Scale(lambda w, g, size, n: 1 / g, False, True, "GA-SAM Table 2"),
    "weight-strength": Scale(lambda w, g, size, n: w / size.sqrt(), True, False, "GA-SAM Table 2"),
    "adam": Scale(lambda d, g, size, n: d.rsqrt(), False, True, "ours", True, "element"),
}
"""One line a scale: a formula in ‖w_i‖, ‖g_i‖, n_i and the number n of all perturbed weights.

``adam`` is T² = 1/(√v̂ + δ), weight by weight, with the base optimizer's v̂ and δ. Before the first
update T is 1. The preconditioned SAM of Singh et al. 2025 is of this kind; whether it is the same
we could not find out.
"""

MEMORYLESS = {name: scale for name, scale in SCALES.items() if not scale.uses_second_moments}
"""The scales that follow from weights and gradients alone."""


class SecondMoment(NamedTuple):
    """What a base optimizer remembers of a weight's squared gradients, of the mean loss.

    As in Adam the present gradient is counted in before it is divided by: v' = β v + (1 − β) g²,
    v̂ = correction · v'. Without it a word that comes for the first time, or after a long while,
    would have √v̂ of next to nothing, and would move alone.

    Attributes:
        value: v, shaped like the weight; of Adafactor the means of its rows.
        columns: of Adafactor the means of the columns; then v = rows ⊗ columns / mean(rows).
        decay: β.
        correction: of the bias.
        factor: what v is to be multiplied by.
        delta: δ.
    """

    value: Tensor
    columns: Optional[Tensor] = None
    decay: Radius = 0.999
    correction: Radius = 1.0
    factor: Radius = 1.0
    delta: float = 1e-8

    def denominator(self, gradient_norm: Tensor) -> Tensor:
        """Returns √v̂ + δ of each weight, given |g|."""
        v = at_least_float32(self.value) * self.factor
        if self.columns is not None:
            shares = v / v.mean(-1, keepdim=True)
            v = shares.unsqueeze(-1) * at_least_float32(self.columns).unsqueeze(-2)
            v = torch.where(torch.isfinite(v), v, torch.zeros_like(v))
        v = v.to(gradient_norm) * self.decay + gradient_norm.square() * (1 - self.decay)
        return (v * self.correction).sqrt() + self.delta


class Computed(Sequence[Tensor]):
    """Blocks computed anew whenever they are looked at, so as not to hold a copy of the model."""

    def __init__(self, count: int, compute: Callable[[int], Tensor]) -> None:
        self._count = count
        self._compute = compute

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: Any) -> Any:
        if not 0 <= index < self._count:  # what ends a loop over a sequence
            raise IndexError(index)
        return self._compute(index)


class Groups:
    """The partition of some tensors into groups.

    Args:
        tensors: the weights (or anything of their shapes).
        granularity: one of :data:`GRANULARITIES`.
    """

    def __init__(self, tensors: Sequence[Tensor], granularity: str) -> None:
        self.granularity = granularity
        self.shapes = [tensor.shape for tensor in tensors]
        self.num_weights = sum(tensor.numel() for tensor in tensors)
        self._sizes: Optional[Blocks] = None
        self._tensor_sizes: Optional[Tensor] = None

    def norms(self, tensors: Sequence[Tensor], order: int = 2) -> Blocks:
        """Returns the L2 (or L1) norm of each group, in float32 at least."""
        if self.granularity == "element":
            return Computed(len(tensors), lambda i: at_least_float32(tensors[i]).abs())
        if self.granularity == "filter":
            return [torch.cat([_row_norms(tensor, order).flatten() for tensor in tensors])]
        norms = foreach.norms(tensors, order)
        if self.granularity == "model":
            norms = torch.linalg.vector_norm(norms, order).reshape(1)
        return [norms]

    def sizes(self, like: Blocks) -> Blocks:
        """Returns n_i, the number of weights of each group, as tensors that fit ``like``.

        Made once and kept: filling a tensor from Python numbers waits for the GPU.
        """
        if self._sizes is None:
            self._sizes = self._make_sizes(like)
        return self._sizes

    def _make_sizes(self, like: Blocks) -> Blocks:
        if self.granularity == "element":
            return [like[0].new_ones(())] * len(like)
        if self.granularity == "model":
            return [like[0].new_tensor([float(self.num_weights)])]
        if self.granularity == "layer":
            return [self.tensor_sizes(like[0])]
        rows = [_num_rows(shape) for shape in self.shapes]
        sizes = [[shape.numel() / n] * n for shape, n in zip(self.shapes, rows) if n]
        return [like[0].new_tensor([size for each in sizes for size in each])]

    def tensor_sizes(self, like: Tensor) -> Tensor:
        """Returns the number of weights of each tensor ``[tensors]``, fitting ``like``."""
        if self._tensor_sizes is None:
            self._tensor_sizes = like.new_tensor([float(shape.numel()) for shape in self.shapes])
        return self._tensor_sizes

    def from_tensors(self, values: Tensor) -> Blocks:
        """Returns values given for each tensor ``[tensors]`` as values of the groups in it."""
        if self.granularity == "element":
            return list(values.unbind())
        if self.granularity == "layer":
            return [values]
        if self.granularity == "model":
            return [values.new_zeros(1)]  # all weights together are never noise
        rows = [_num_rows(shape) for shape in self.shapes]
        return [torch.cat([value.expand(n) for value, n in zip(values.unbind(), rows)])]

    def spread(self, blocks: Blocks) -> Blocks:
        """Returns one tensor a parameter, each broadcasting over its parameter's shape."""
        if self.granularity == "element":
            return blocks
        if self.granularity == "model":
            return [blocks[0].reshape(())] * len(self.shapes)
        if self.granularity == "layer":
            return list(blocks[0].unbind())
        rows = blocks[0].split([_num_rows(shape) for shape in self.shapes])
        return [
            values.reshape(shape if len(shape) < 2 else (-1,) + (1,) * (len(shape) - 1))
            for values, shape in zip(rows, self.shapes)
        ]


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
        draws: its random numbers.
    """

    def __init__(
        self,
        name: str,
        smoothing: Optional[float],
        friendly: float,
        granularity: Optional[str],
        draws: foreach.Draws,
    ) -> None:
        self._name, self._friendly = name, friendly
        self._smoothing = DIRECTIONS[name].smoothing if smoothing is None else smoothing
        self._granularity, self._draws = granularity or "model", draws
        self._remembered: Dict[int, Tensor] = {}
        self._began: Optional[Tensor] = None

    def of(
        self, gradients: Sequence[Tensor], indices: Sequence[int], unit: Radius, tells: Tensor
    ) -> Tuple[List[Tensor], Radius]:
        """Returns what to follow, and the unit that it is in: 1 is that of the mean loss.

        Args:
            gradients: of the weights that move; not changed.
            indices: which weights these are.
            unit: what the gradients are multiplied by.
            tells: boolean scalar; false, after an overflow or without any gradient, leaves what is
                remembered untouched.
        """
        if self._name == "random":
            return self._random(gradients), unit
        if self._name not in ("smoothed", "friendly"):
            return list(gradients), unit
        for i, gradient in zip(indices, gradients):
            if i not in self._remembered:
                self._remembered[i] = torch.zeros_like(at_least_float32(gradient))
        d = [self._remembered[i] for i in indices]
        if self._name == "smoothed":
            self._remember(d, gradients, unit, tells)
            return d, 1.0
        followed = [
            at_least_float32(g) - each * (fitting(unit, each) * self._friendly)
            for g, each in zip(gradients, d)
        ]
        self._remember(d, gradients, unit, tells)
        return followed, unit

    def _remember(
        self, d: List[Tensor], gradients: Sequence[Tensor], unit: Radius, tells: Tensor
    ) -> None:
        """Sets d to (1 − θ) d + θ g, some tensors at a time."""
        assert self._smoothing is not None
        all_new = torch.zeros_like(tells)  # whether this is the first to be remembered, as it is
        if self._name == "smoothed":
            all_new = tells if self._began is None else tells & ~self._began
            self._began = tells if self._began is None else self._began | tells
        for part in foreach.chunks(d):
            chunk = d[part]
            apart = [
                (at_least_float32(g) / fitting(unit, each)).sub_(each)
                for g, each in zip(gradients[part], chunk)
            ]
            one = chunk[0].new_ones(())
            theta = torch.where(all_new.to(one.device), one, one * self._smoothing)
            theta = torch.where(tells.to(one.device), theta, one * 0.0)
            torch._foreach_mul_(apart, [theta.to(each) for each in apart])
            torch._foreach_add_(chunk, apart)

    def _random(self, gradients: Sequence[Tensor]) -> List[Tensor]:
        groups = Groups(gradients, self._granularity)
        drawn = self._draws.normal_like(gradients)
        wanted, found = groups.norms(gradients), groups.norms(drawn)
        for i, factor in enumerate(groups.spread([w / f for w, f in zip(wanted, found)])):
            drawn[i].mul_(torch.where(torch.isfinite(factor), factor, torch.zeros_like(factor)))
        return drawn


def scale_of_groups(
    scale: Scale,
    weight_norm: Tensor,
    gradient_norm: Tensor,
    size: Tensor,
    num_weights: int,
    noise: "Tensor | float",
) -> Tensor:
    """Returns T of each group; 0, never infinite or NaN, for groups that must not move.

    With a scale that divides by the gradient, a group that has none does not move, and neither does
    one whose gradient is rounding noise: a softmax ignores the bias of the key projection, whose
    "gradient" of 1e-7 of the others' would make T ten million times too large.

    Args:
        scale: the formula.
        weight_norm: ‖w_i‖, any shape; ignored by scales that do not use it.
        gradient_norm: ‖g_i‖ of the loss as the scale is to see it, same shape; ignored by scales
            that do not divide by it.
        size: n_i, broadcasting over that shape.
        num_weights: n.
        noise: the strength ‖g_i‖/√n_i at or below which a gradient is rounding noise, broadcasting
            over that shape too.
    """
    if not scale.divides_by_gradient:
        values = scale.formula(weight_norm, gradient_norm, size, float(num_weights))
        if size.dim() == 0:  # single weights: no group is empty
            return values
        return torch.where(size > 0, values, torch.zeros_like(values))
    live = (gradient_norm > 0) & (gradient_norm > noise * size.sqrt())
    safe_norm = torch.where(live, gradient_norm, torch.ones_like(gradient_norm))
    values = scale.formula(weight_norm, safe_norm, size, float(num_weights))
    return torch.where(live, values, torch.zeros_like(values))


class Layers(NamedTuple):
    """Which layers some tensors belong to: three tensors ``[tensors]``.

    Attributes:
        number: of the layer, from 0.
        is_vector: whether the tensor has one dimension at most.
        is_alone: whether it is a vector whose layer has a matrix that is not among the tensors.
    """

    number: Tensor
    is_vector: Tensor
    is_alone: Tensor

    @classmethod
    def of(
        cls,
        tensors: Sequence[Tensor],
        numbers: Sequence[int],
        with_matrix: Collection[int],
        device: torch.device,
    ) -> "Layers":
        """Describes tensors; waits for the GPU, so that it is worth keeping.

        Args:
            tensors: the tensors.
            numbers: any number of the layer of each.
            with_matrix: the numbers of those that hold a matrix, among the tensors or not.
            device: of the result.
        """
        order = {number: i for i, number in enumerate(sorted(set(numbers)))}
        vectors = [tensor.dim() < 2 for tensor in tensors]
        here = {number for number, is_vector in zip(numbers, vectors) if not is_vector}
        lacking = set(with_matrix) - here
        alone = [v and number in lacking for number, v in zip(numbers, vectors)]
        parts: List[List[Any]] = [[order[number] for number in numbers], vectors, alone]
        return cls(*(torch.tensor(part, device=device) for part in parts))


def noise_of_tensors(
    norms: Tensor, sizes: Tensor, dtype: torch.dtype, layers: Optional[Layers] = None
) -> Tensor:
    """Returns the strength ‖g‖/√n at or below which a tensor's gradient is rounding noise.

    What has no true gradient is a bias that a later softmax or normalisation ignores, and the noise
    in it is made of the very numbers that the gradient of its layer's matrix is made of. So a
    vector is measured against the matrix of its layer, with a floor of √(2 eps), between noise of
    some eps and signal of about 1. (Against the whole model, all tensors behind a small residual
    gate would pass for noise.) Single entries and rows of a tensor are measured against the
    tensor, with a floor of 64 eps, at most 2⁻⁷; and a vector whose matrix has no gradient here, as
    it is frozen or left out, against the whole gradient, with that floor. Measured in
    docs/results/noise_floor.md.

    Args:
        norms: ‖g‖ of each tensor ``[tensors]``.
        sizes: their numbers of entries.
        dtype: the format that the gradients were computed in.
        layers: of the tensors; None where they are not known: then all are measured against the
            whole gradient, with the floor of 64 eps.
    """
    eps = torch.finfo(dtype).eps
    floor = min(64.0 * eps, 2.0**-7)
    strengths = norms / sizes.clamp(min=1).sqrt()
    whole: Tensor = torch.linalg.vector_norm(norms) / sizes.sum().clamp(min=1).sqrt() * floor
    if layers is None:
        return whole.expand_as(norms)
    number, is_vector, is_alone = layers
    of_matrices = torch.where(is_vector, torch.zeros_like(strengths), strengths)
    greatest = torch.zeros_like(strengths).scatter_reduce(0, number, of_matrices, "amax")
    of_vectors = torch.where(is_vector, greatest[number], torch.zeros_like(strengths))
    of_vectors = torch.where(is_alone, whole, of_vectors * (2.0 * eps) ** 0.5)
    return torch.maximum(strengths * floor, of_vectors)


def step_size(rho: Radius, num_steps: int) -> Radius:
    """Returns η, the length of one ascent step: 1.5 ρ / K (GA-SAM §3.3)."""
    return 1.5 * rho / num_steps


def radius_of_rise(
    norm: str, scale: Blocks, dual_norms: Blocks, rise: Tensor, greatest: Radius
) -> Tensor:
    """Returns the ρ at which the loss rises by so much to first order: rise / ‖T g‖_q.

    0, never infinite, where there is no gradient.

    Args:
        norm: ``l2`` or ``linf``, the p to which q is dual.
        scale: T of each group.
        dual_norms: ‖g_i‖_q of each group.
        rise: in the unit of the gradients, a scalar, not negative.
        greatest: ρ is not greater.
    """
    length = total_norm((T * norms for T, norms in zip(scale, dual_norms)), DUAL[norm])
    rho = rise.to(length) / length
    rho = torch.where(torch.isfinite(rho), rho, torch.zeros_like(rho))
    return rho.clamp(max=fitting(greatest, rho))


def step_factor(
    norm: str, scale: Blocks, gradient_norms: Blocks, step_size: Radius, keep: Tensor
) -> Tensor:
    """Returns the factor of the ascent step: c = factor T² (p = 2) or factor T (p = ∞), a scalar.

    Args:
        norm: ``l2`` or ``linf``.
        scale: T of each group.
        gradient_norms: ‖g_i‖ of each group (``l2`` only).
        step_size: η.
        keep: boolean scalar; false makes the factor 0 (a gradient that overflowed). So does
            ‖T g‖ = 0: there is no direction to go.
    """
    if norm == "linf":
        return keep.to(scale[0]) * fitting(step_size, scale[0])
    length = total_norm(T * norms for T, norms in zip(scale, gradient_norms))
    keep = keep & (length > 0)
    length = torch.where(keep, length, torch.ones_like(length))
    return torch.where(keep, step_size / length, torch.zeros_like(length))


def step_coefficients(norm: str, scale: Blocks, factor: Tensor) -> Blocks:
    """Returns c of the ascent step u = c ⊙ v, from T and the factor of :func:`step_factor`."""

    def coefficient(i: int) -> Tensor:
        T = scale[i]
        return T * factor.to(T) if norm == "linf" else (T * T).mul_(factor.to(T))

    return Computed(len(scale), coefficient)


def step_length(coefficients: Blocks, direction_norms: Blocks) -> Tensor:
    """Returns ‖c ⊙ v‖₂ from the coefficients and the L2 norm of v in each group."""
    return total_norm(c * norms for c, norms in zip(coefficients, direction_norms))


def project_(
    norm: str, perturbation: Sequence[Tensor], groups: Groups, scale: Blocks, rho: Radius
) -> None:
    """Projects a perturbation onto S in place (GA-SAM Eqs. 17, 18).

    Eq. 17 shrinks the whole of a by min(1, ρ / ‖T⁻¹a‖₂); Eq. 18 clips each entry to ±ρT, which
    needs no T⁻¹. Groups with T = 0 hold zeros and are left out of ‖T⁻¹a‖.

    Args:
        norm: ``l2`` or ``linf``.
        perturbation: a, one tensor a parameter.
        groups: the groups that ``scale`` refers to.
        scale: T of each group.
        rho: the radius ρ.
    """
    if norm == "linf":
        bounds = groups.spread(scale)
        for part in foreach.chunks(perturbation):
            chunk = [bounds[i] for i in range(part.start, part.stop)]
            foreach.clamp_(perturbation[part], [bound * fitting(rho, bound) for bound in chunk])
        return
    inside = (
        norms / torch.where(T > 0, T, torch.ones_like(T)) * (T > 0)
        for norms, T in zip(groups.norms(perturbation), scale)
    )
    length = total_norm(inside)
    rho = fitting(rho, length)
    factor = torch.where(length > rho, rho / length, torch.ones_like(length))
    torch._foreach_mul_(list(perturbation), [factor.to(part) for part in perturbation])


def total_norm(blocks: Iterable[Tensor], order: int = 2) -> Tensor:
    """Returns the L2 (or L1) norm over all entries of all blocks, a scalar; one block at a time."""
    norms = torch.stack([foreach.norm(block, order) for block in blocks])
    return foreach.norm(norms, order)


def fitting(value: Radius, like: Tensor) -> Radius:
    """Returns a radius to calculate with beside a tensor, on its device."""
    return value.to(like) if isinstance(value, Tensor) else value


def _num_rows(shape: torch.Size) -> int:
    return shape.numel() if len(shape) < 2 else shape[0]


def _row_norms(tensor: Tensor, order: int) -> Tensor:
    tensor = at_least_float32(tensor)
    if tensor.dim() < 2:
        return tensor.abs()
    norms: Tensor = torch.linalg.vector_norm(tensor.flatten(1), order, dim=1)
    return norms
