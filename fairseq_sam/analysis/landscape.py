"""The loss around a trained model, along one or two directions (Li et al. 2018).

Around a checkpoint the directions are random and *filter-normalised* (their §4): each filter of a
normal direction d gets the length of the same filter of the weights,

    d_ij ← d_ij / ‖d_ij‖ · ‖w_ij‖

so that surfaces of networks with other scales of weights can be compared: ReLUs and layer norms
make many scales of weights the same function. A filter is a slice along the first dimension (a
convolution's filter, a row of a linear layer, a word's embedding). Biases and the weights of
normalisations (everything with fewer than two dimensions) stay put, as in the paper's code.

Between two checkpoints the direction is their difference and L((1 − α) w + α w') is the linear
interpolation of Goodfellow et al. 2015, which Li et al. §3 discuss; it is not normalised, as α = 0
and α = 1 are to be the two.

Imports nothing of fairseq.
"""

import itertools
import math
from typing import Iterator, List, Sequence

import torch
from torch import Tensor

from fairseq_sam.analysis.dataset_loss import DatasetLoss
from fairseq_sam.perturbation import PerturbationSettings, PerturbedWeights

Direction = List[Tensor]


@torch.no_grad()
def filter_normalised_direction(weights: Sequence[Tensor], seed: int) -> Direction:
    """Draws a direction whose filters are as long as those of the weights.

    Args:
        weights: w.
        seed: of the draw, which is made on the CPU so as to be the same everywhere.

    Returns:
        One tensor a weight; 0 for biases and normalisations, and for filters that are 0.
    """
    generator = torch.Generator().manual_seed(seed)
    drawn = [torch.randn(w.shape, generator=generator, dtype=w.dtype) for w in weights]
    return [_normalised(part.to(w.device), w) for part, w in zip(drawn, weights)]


@torch.no_grad()
def difference(origin: Sequence[Tensor], end: Sequence[Tensor]) -> Direction:
    """Returns the direction from some weights to others.

    Raises:
        ValueError: they are not weights of the same model.
    """
    if [w.shape for w in origin] != [w.shape for w in end]:
        raise ValueError("the weights have different shapes")
    return [there - here for here, there in zip(origin, end)]


def grid(lowest: float, highest: float, points: int) -> List[float]:
    """Returns equidistant coordinates, the ends included.

    >>> grid(-0.5, 1.5, 5)
    [-0.5, 0.0, 0.5, 1.0, 1.5]
    """
    if points < 2:
        raise ValueError(f"points is {points}: it must be 2 or more")
    last = points - 1
    return [(lowest * (last - i) + highest * i) / last for i in range(points)]


def surface(
    loss: DatasetLoss, directions: Sequence[Direction], axes: Sequence[Sequence[float]]
) -> Iterator[float]:
    """Yields L(w + Σ_k c_k d_k) at every point of a grid; the last axis runs fastest.

    A loss that is not finite is a value like others, so far away. The weights are put back bit for
    bit when the walk ends, however it ends.

    Args:
        loss: L and its weights.
        directions: d_k, one tensor a weight.
        axes: the coordinates c_k along each direction.

    Raises:
        ValueError: there are not as many axes as directions.
    """
    if not directions or len(directions) != len(axes):
        raise ValueError(f"{len(directions)} directions, but {len(axes)} axes")
    perturbed = PerturbedWeights(loss.weights, PerturbationSettings())
    try:
        for coordinates in itertools.product(*axes):
            perturbed.displace(_combined(directions, coordinates), 1.0)
            value = loss()
            perturbed.restore()
            yield value if math.isfinite(value) else math.inf
    finally:
        perturbed.restore()


def _normalised(part: Tensor, weight: Tensor) -> Tensor:
    if weight.dim() < 2:
        return torch.zeros_like(weight)
    drawn, wanted = _filter_norms(part), _filter_norms(weight)
    factor = torch.where(drawn > 0, wanted / drawn, torch.zeros_like(drawn))
    return part.mul_(factor.reshape(-1, *(1,) * (weight.dim() - 1)))


def _filter_norms(tensor: Tensor) -> Tensor:
    norms: Tensor = torch.linalg.vector_norm(tensor.flatten(1), dim=1)
    return norms


def _combined(directions: Sequence[Direction], coordinates: Sequence[float]) -> Direction:
    total = [coordinates[0] * part for part in directions[0]]
    for direction, coordinate in zip(directions[1:], coordinates[1:]):
        torch._foreach_add_(total, direction, alpha=coordinate)
    return total
