"""δ-SAM once more (Eq. 5; draft, Eqs. 3-6): loops over sentences, no tensors where numbers do."""

from typing import Callable, List, Optional, Sequence

import torch
from torch import Tensor

from tests.perturbation import reference

LossesAt = Callable[[List[Tensor]], Tensor]
Weighted = Callable[[List[Tensor], Optional[Sequence[float]]], reference.Gradients]


def published(
    clean: Sequence[float], plus: Sequence[float], minus: Sequence[float], eta: float
) -> List[float]:
    """Eq. 5 with the losses at w, w + r and w − r."""
    weights = []
    for here, there, opposite in zip(clean, plus, minus):
        numerator = abs(there + opposite - 2 * here)
        denominator = max(abs(there - opposite), eta)
        weights.append(numerator / denominator)
    return weights


def draft(clean: Sequence[float], plus: Sequence[float], beta: float) -> List[float]:
    """The draft's Eqs. 3-6 with the losses at w and w + r."""
    count = len(clean)
    a = [there - here for here, there in zip(clean, plus)]
    total = 0.0
    for a_j in a:
        total += abs(a_j)
    if total == 0:
        return [1 / count] * count
    g = [abs(a_j) / total for a_j in a]
    average = sum(a) / count
    weighted = 0.0
    for g_j, a_j in zip(g, a):
        weighted += g_j * a_j
    ratio = beta * abs(average) / abs(weighted)
    return [(g_j - 1 / count) * ratio + 1 / count for g_j in g]


def mean_one(weights: Sequence[float]) -> List[float]:
    return [weight * len(weights) / sum(weights) for weight in weights]


def delta_sam_gradient(
    gradient_at: Weighted,
    weights: Sequence[Tensor],
    sentence_weights: Sequence[float],
    rho: float,
    norm: str,
    scale: str,
    granularity: Optional[str],
    risk: str,
    num_steps: int,
    divisor: float = 1.0,
) -> "tuple[reference.Gradients, List[List[Tensor]]]":
    """a_k climbs the weighted loss; what is minimised is the unweighted one at w + a_k.

    Args:
        gradient_at: gradient of Σ g_j l_j at given weights, of Σ l_j for None.
        sentence_weights: g_j, the same at every step.
        For the others see :func:`reference.sharpness_aware_gradient`.

    Returns:
        The gradient of the risk, and a_1 .. a_K.
    """
    weights = [weight.detach() for weight in weights]
    points, perturbations = [list(weights)], []
    g = gradient_at(points[0], sentence_weights)
    moving = [i for i, gradient in enumerate(g) if gradient is not None]
    shapes = [weights[i].shape for i in moving]
    w = reference.flat([weights[i] for i in moving])
    flat_g = reference.flat([g[i] for i in moving])
    T = reference.scale_of(scale, granularity, shapes, w, flat_g / divisor)
    a = [0.0] * len(w)
    for step in range(num_steps):
        if step > 0:
            g = gradient_at(points[-1], sentence_weights)
            flat_g = reference.flat([g[i] for i in moving])
        u = reference.ascent_step(flat_g.tolist(), T, norm, 1.5 * rho / num_steps)
        a = reference.project([a_i + u_i for a_i, u_i in zip(a, u)], T, norm, rho)
        placed = [torch.zeros_like(weight) for weight in weights]
        for i, part in zip(moving, reference.unflat(a, shapes)):
            placed[i] = part
        perturbations.append(placed)
        points.append([x + y for x, y in zip(weights, placed)])
    if risk == "perturbed":
        return gradient_at(points[-1], None), perturbations
    mean: reference.Gradients = []
    for parts in zip(*[gradient_at(point, None) for point in points]):
        mean.append(None if parts[0] is None else sum(parts) / (num_steps + 1))
    return mean, perturbations
