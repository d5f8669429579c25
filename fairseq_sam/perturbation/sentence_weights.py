"""How much each sentence counts in δ-SAM's ascent direction (papers/SPEC §4, §5).

δ-SAM approximates the best perturbation of *each* sentence by one perturbation along a weighted
gradient Σ_j g_j ∇l_j. The weights come from the sentences' losses at w and at a few random
displacements of w; they are constants to the gradient.
"""

from typing import NamedTuple, Optional

import torch
from torch import Tensor

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


def published_weights(probes: Probes, eta: float, ratio: float = 1.0) -> Tensor:
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
    """Weights with mean 1, and whether they had to fall back to uniform ones."""

    values: Tensor
    uniform: Tensor


def normalise(weights: Tensor) -> SentenceWeights:
    """Returns the weights with mean 1, and uniform ones where they are all zero or not finite.

    The direction of Σ g_j ∇l_j does not depend on the weights' scale; scales T that look at the
    gradient's length would.
    """
    total = weights.sum()
    usable = torch.isfinite(total) & (total.abs() > 0)
    safe = torch.where(usable, total, torch.ones_like(total))
    scaled = torch.where(usable, weights, torch.ones_like(weights) / len(weights)) * (
        len(weights) / torch.where(usable, safe, torch.ones_like(safe))
    )
    return SentenceWeights(scaled, ~usable)
