"""How much each sentence counts in δ-SAM's ascent direction (Zhou et al. 2022; its ARR draft).

δ-SAM approximates the best perturbation of *each* sentence by one perturbation along a weighted
gradient Σ_j g_j ∇l_j. The weights come from the sentences' losses at w and at a few random
displacements of w (w ± h r); they are constants to the gradient.
"""

import functools
import logging
from typing import Any, Iterator, List, NamedTuple, Optional, Sequence, Tuple, cast

import torch
from torch import Tensor

from fairseq_sam.perturbation import foreach
from fairseq_sam.perturbation.ascent import Radius, fitting
from fairseq_sam.perturbation.settings import PerturbationSettings
from fairseq_sam.perturbation.weights import PerturbedWeights

logger = logging.getLogger(__name__)


def probe_length(settings: PerturbationSettings, norm: Tensor, dtype: torch.dtype) -> Tensor:
    """Returns h, how far the random displacement reaches.

    The differences are wanted at ρ, where rounding drowns them at the paper's radii. The published
    weights' second difference has a rounding error of about eps (‖w‖/h)² and, scaled back from h,
    a truncation error of about (h/‖w‖)²: ½ eps^¼ ‖w‖ balances the two. The draft's first
    difference is one-sided, with errors of eps ‖w‖/h and h/‖w‖: eps^½ takes the place of eps^¼.
    Measured in docs/results/delta_weights.md.

    Args:
        settings: its ``probe_radius``, if given, is h.
        norm: ‖w‖₂, a scalar.
        dtype: the format that losses are computed in.
    """
    if settings.probe_radius is not None:
        return torch.full_like(norm, settings.probe_radius)
    exponent = 0.25 if settings.weighting == "published" else 0.5
    reach: float = 0.5 * torch.finfo(dtype).eps ** exponent
    least = settings.rho if settings.share is None else 0.0  # with a share ρ is not known yet
    return (norm * reach).clamp(min=least)


def random_direction(
    weights: Sequence[Tensor], length: Radius = 1.0, draws: Optional[foreach.Draws] = None
) -> List[Tensor]:
    """Returns r ~ N(0, I) rescaled to a length ‖r‖₂, one tensor a weight, float32 at least."""
    direction = (draws or foreach.Draws()).normal_like(weights)
    factor = length / torch.linalg.vector_norm(foreach.norms(direction))
    torch._foreach_mul_(direction, [factor.to(part) for part in direction])
    return direction


class Probes(NamedTuple):
    """Losses per sentence, shape [batch], in nats.

    Attributes:
        clean: l_j(w).
        plus: l_j(w + h r), with r a random direction of length 1.
        minus: l_j(w − h r); None for the draft version, which does not look there.
    """

    clean: Tensor
    plus: Tensor
    minus: Optional[Tensor] = None


def published_weights(probes: Probes, eta: float, ratio: "float | Tensor" = 1.0) -> Tensor:
    """Returns g_j = |second difference| / max(|first difference|, η), EMNLP version, Eq. 5.

    The differences are wanted at the radius ρ but rounding drowns them at the paper's radii, so
    they may be measured at a longer h: the second difference grows with h², the first with h, and
    ``ratio`` = ρ / h brings both back to ρ. What remains of h is an error of its square.

    Args:
        probes: the three losses of each sentence.
        eta: η > 0, in nats.
        ratio: ρ / h.

    Returns:
        Weights [batch], not normalised.

    >>> probes = Probes(torch.tensor([1.0]), torch.tensor([1.5]), torch.tensor([0.75]))
    >>> published_weights(probes, eta=0.1)  # |1.5 + 0.75 − 2| / |1.5 − 0.75|
    tensor([0.3333])
    """
    assert probes.minus is not None
    second = (probes.plus - probes.clean) - (probes.clean - probes.minus)
    first = probes.plus - probes.minus
    return second.abs() * ratio**2 / (first.abs() * ratio).clamp(min=eta)


def draft_weights(probes: Probes, beta: float) -> Tensor:
    """Returns g'_j = (g_j − 1/N) r + 1/N, ARR draft, Eqs. 3-6.

    With a_j = l_j(w + ρr) − l_j(w): g_j = |a_j| / Σ|a_i|, ā = mean a_j, a_s = Σ g_j a_j and
    r = β |ā| / |a_s|. Weights can be negative for large β; they add up to 1.

    Args:
        probes: the losses at w and at w + h r.
        beta: β ≥ 0.

    Returns:
        Weights [batch]; all 1/N where no loss changed.
    """
    change = probes.plus - probes.clean
    total = change.abs().sum()
    moved = total > 0
    share = change.abs() / torch.where(moved, total, torch.ones_like(total))
    uniform = 1.0 / len(change)
    weighted = (share * change).sum().abs()
    mix = torch.where(
        weighted > 0,
        beta * change.mean().abs() / torch.where(weighted > 0, weighted, torch.ones_like(weighted)),
        torch.zeros_like(weighted),
    )
    return (share - uniform) * mix + uniform


class SentenceWeights(NamedTuple):
    """Weights with mean 1, and whether they had to fall back to uniform ones.

    The direction of Σ g_j ∇l_j does not depend on the weights' scale, but scales T that look at
    the gradient's length would.
    """

    values: Tensor
    uniform: Tensor


def usable(values: Tensor, informative: Tensor) -> SentenceWeights:
    """Returns the weights, or uniform ones where they are not finite or say nothing.

    Args:
        values: weights with mean 1 [batch].
        informative: boolean scalar; false where all sentences looked the same.
    """
    good = informative & torch.isfinite(values).all()
    return SentenceWeights(torch.where(good, values, torch.ones_like(values)), ~good)


def weigh(
    weighting: str, probes: Probes, eta: float, beta: float, ratio: "float | Tensor" = 1.0
) -> SentenceWeights:
    """Returns the weights of a mini-batch's sentences; a lone sentence weighs 1.

    Args:
        weighting: ``published`` or ``draft``.
        probes: the losses.
        eta: for ``published``.
        beta: for ``draft``.
        ratio: for ``published``.
    """
    count = len(probes.clean)
    if count < 2:
        _say_that_one_sentence_weighs_one()
        return usable(torch.ones_like(probes.clean), torch.ones_like(probes.clean).all())
    if weighting == "draft":
        # They add up to 1 by construction; adding them up would divide by rounding noise where
        # large weights of both signs cancel.
        moved = (probes.plus != probes.clean).any()
        return usable(draft_weights(probes, beta) * count, moved)
    weights = published_weights(probes, eta, ratio)
    total = weights.sum()
    informative, one = total > 0, torch.ones_like(total)
    return usable(weights * count / torch.where(informative, total, one), informative)


class SentenceProbes:
    """The sentences' losses in the passes of one step, and the weights that follow from them.

    A step may evaluate several mini-batches (a criterion called for each language pair); each has
    weights of its own, and the passes go through them in the same order.

    Args:
        settings: the method.

    Attributes:
        length: h of this step's displacement; None before.
    """

    def __init__(self, settings: PerturbationSettings) -> None:
        self._settings = settings
        self._seen: List[List[Tensor]] = []
        self.length: Optional[Tensor] = None
        self._clean: List[Tensor] = []
        self._weights: List[SentenceWeights] = []
        self._applied: List[List[Tensor]] = []

    @torch.no_grad()
    def displace(self, weights: PerturbedWeights, dtype: torch.dtype) -> Iterator[None]:
        """Moves the weights to w + h r, for the published weights then to w − h r, and back.

        Args:
            weights: at w.
            dtype: the format that losses are computed in.
        """
        norm = torch.linalg.vector_norm(foreach.norms(weights.trained()))
        length = probe_length(self._settings, norm, dtype)
        displacement = random_direction(weights.trained(), length, weights.draws)
        self.length = length
        try:
            for sign in (1.0, -1.0) if self._settings.weighting == "published" else (1.0,):
                self._seen.append([])
                weights.displace(displacement, sign)
                yield
        finally:
            weights.restore()

    def begin_pass(self) -> None:
        """Begins a pass: its first mini-batch comes next."""
        self._applied = []

    def weigh(self, losses: Tensor, probes: bool) -> Tensor:
        """Returns the sum of a mini-batch's losses [batch], whose gradient can be weighted.

        Args:
            losses: of the next mini-batch of this pass.
            probes: they are those of a probe, to be remembered.

        Raises:
            RuntimeError: the probes had fewer mini-batches.
        """
        if probes:
            self._seen[-1].append(losses.detach())
            return losses.sum()
        number = len(self._applied)
        if any(number >= len(seen) for seen in self._seen):
            raise RuntimeError("a pass has more mini-batches than the probes had")
        if number == len(self._clean):
            self._clean.append(losses.detach())
        self._applied.append([])
        total: Tensor = cast(Any, WeighedSum.apply)(losses, self._applied[-1])
        return total

    def apply_weights(self, rho: Radius) -> None:
        """Lets backward passes from here on weigh the sentences; each counts once before.

        Args:
            rho: ρ of this step, which the differences are brought to.
        """
        for number in range(len(self._weights), len(self._clean)):
            self._weights.append(self._weights_of(number, rho))
        for applied, weights in zip(self._applied, self._weights):
            applied[:] = [weights.values]

    def _weights_of(self, number: int, rho: Radius) -> SentenceWeights:
        assert self.length is not None
        probed = Probes(self._clean[number], *(seen[number] for seen in self._seen))
        ratio = fitting(rho, self.length) / self.length
        settings = self._settings
        return weigh(settings.weighting, probed, settings.eta, settings.beta, ratio)

    def drop_weights(self) -> None:
        """Lets backward passes from here on count each sentence once."""
        for applied in self._applied:
            applied.clear()

    def uniform(self) -> Optional[Tensor]:
        """Returns whether uniform weights took the place of those of a mini-batch."""
        if not self._weights:
            return None
        return torch.stack([weights.uniform for weights in self._weights]).any()


class WeighedSum(torch.autograd.Function):
    """The sum of some losses, whose gradient weighs them by what stands in a list by then.

    A pass of the mean risk goes backward twice: for the risk, where each sentence counts once, and
    for the ascent.
    """

    @staticmethod
    def forward(ctx: Any, losses: Tensor, weights: List[Tensor]) -> Tensor:
        """Sums ``losses`` [batch]; no entry in ``weights`` by the backward pass leaves all at 1."""
        ctx.weights, ctx.shape = weights, losses.shape
        return losses.sum()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tuple[Tensor, None]:
        """Gives each loss its weight."""
        each = gradients[0].expand(ctx.shape)
        return (each * ctx.weights[0].to(each) if ctx.weights else each), None


@functools.lru_cache(maxsize=None)
def _say_that_one_sentence_weighs_one() -> None:
    logger.warning(
        "a mini-batch of one sentence: its δ-SAM weight is 1, as without weights; give more "
        "sentences a batch (--batch-size, --max-tokens) for the weights to matter"
    )
