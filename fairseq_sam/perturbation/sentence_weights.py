"""How much each sentence counts in δ-SAM's ascent direction (papers/SPEC §4, §5).

δ-SAM approximates the best perturbation of *each* sentence by one perturbation along a weighted
gradient Σ_j g_j ∇l_j. The weights come from the sentences' losses at w and at a few random
displacements of w; they are constants to the gradient.
"""

import functools
import logging
from typing import NamedTuple, Optional

import torch
from torch import Tensor

logger = logging.getLogger(__name__)

WEIGHTINGS = ("uniform", "published", "draft")


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


@functools.lru_cache(maxsize=None)
def _say_that_one_sentence_weighs_one() -> None:
    logger.warning(
        "a mini-batch of one sentence: its δ-SAM weight is 1, as without weights; give more "
        "sentences a batch (--batch-size, --max-tokens) for the weights to matter"
    )
