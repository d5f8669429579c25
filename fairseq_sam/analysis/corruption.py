"""Corrupted weights: a trained model moved by a given distance, at random or to its worst.

Sharpness seen from the task: how fast a model loses its loss and its score when its parameters
move (Zhang et al. 2021; GA-SAM §5.3 and Table 4).

adversarial   a_K of K steps of projected gradient ascent on L, each 1.5 ρ / K long (GA-SAM
              Eqs. 15-18 with T = 1). L is the mean loss over *all* the data at hand, so that one
              corruption counts for all sentences (unlike the adversarial risk, which has one for
              each); the papers do not say how much data they find it on.
random        L2: a normal direction of length ρ. L∞: ±ρ for each weight, by a fair coin.

Both reach the radius exactly, ‖a‖_p = ρ, as far as the format of the weights can tell. An ascent
that ends inside the ball (its steps turned back) is moved out to its surface along its own
direction, which is our addition. Under L∞ that is the length of the *largest* entries: weights
whose gradient is 0 stay where they are, and those whose gradient changes sign end inside the box.

Imports nothing of fairseq.
"""

import contextlib
import math
from typing import Iterator, List, Sequence

import torch
from torch import Tensor

from fairseq_sam.analysis.dataset_loss import DatasetLoss
from fairseq_sam.perturbation import PerturbationSettings, PerturbedWeights


@contextlib.contextmanager
def adversarial_corruption(
    loss: DatasetLoss, rho: float, norm: str = "l2", num_steps: int = 10
) -> Iterator[float]:
    """Context in which the weights are where the loss is about largest; costs K gradients.

    However it is left, the weights are afterwards what they were, bit for bit.

    Args:
        loss: L and its weights.
        rho: the radius.
        norm: ``l2`` or ``linf``, over all weights together.
        num_steps: K.

    Yields:
        ‖a‖_p as measured: ρ, or 0 where the loss has no gradient at all.

    Raises:
        ValueError: the radius is not a positive number, or K or the norm is impossible.
        FloatingPointError: a gradient on the way is not finite.
    """
    perturbed = PerturbedWeights(loss.weights, _settings(rho, norm, num_steps))
    origins = [weight.detach().clone() for weight in loss.weights]
    try:
        for _ in range(num_steps):
            _, gradients = loss.gradient()
            perturbed.ascend(gradients)
            if not perturbed.finite:
                raise FloatingPointError("the loss or its gradient is not finite")
        length = distance(loss.weights, origins, norm)
        # A norm that was summed up in float32 is off by some millionths. Under L∞ the largest of
        # all rounding errors of w + a may lie above ρ, which is no reason to shrink the rest.
        if length > 0 and (norm == "l2" or length < rho):
            perturbed.displace(_difference(loss.weights, origins), rho / length)
            length = distance(loss.weights, origins, norm)
        yield length
    finally:
        perturbed.restore()


@contextlib.contextmanager
def random_corruption(
    weights: Sequence[Tensor], rho: float, norm: str = "l2", seed: int = 1
) -> Iterator[float]:
    """Context in which the weights are moved in a random direction, as far in all radii's cases.

    The direction depends on the seed and the shapes only: other radii, other checkpoints of a
    model and other devices see the same one. Afterwards the weights are what they were.

    Args:
        weights: what moves.
        rho: the radius.
        norm: as in :func:`adversarial_corruption`.
        seed: of the direction.

    Yields:
        ‖a‖_p as measured.

    Raises:
        ValueError: as :func:`adversarial_corruption`.
    """
    perturbed = PerturbedWeights(weights, _settings(rho, norm))
    origins = [weight.detach().clone() for weight in weights]
    direction = _random_direction(weights, norm, seed)
    try:
        perturbed.displace(direction, rho / norm_of(direction, norm))
        yield distance(weights, origins, norm)
    finally:
        perturbed.restore()


def norm_of(tensors: Sequence[Tensor], norm: str) -> float:
    """Returns ‖·‖₂ or ‖·‖∞ over all tensors together, in float64.

    >>> norm_of([torch.tensor([3.0]), torch.tensor([[-4.0]])], "l2")
    5.0
    >>> norm_of([torch.tensor([3.0]), torch.tensor([[-4.0]])], "linf")
    4.0
    """
    order = 2.0 if norm == "l2" else math.inf
    each = [torch.linalg.vector_norm(tensor.double(), order) for tensor in tensors]
    return float(torch.linalg.vector_norm(torch.stack(each), order))


@torch.no_grad()
def distance(weights: Sequence[Tensor], origins: Sequence[Tensor], norm: str) -> float:
    """Returns the norm of what two sets of weights differ by, in float64."""
    each = (norm_of([w.double() - o.double()], norm) for w, o in zip(weights, origins))
    return norm_of([torch.tensor(list(each), dtype=torch.float64)], norm)


@torch.no_grad()
def _difference(weights: Sequence[Tensor], origins: Sequence[Tensor]) -> List[Tensor]:
    return [weight - origin for weight, origin in zip(weights, origins)]


def _settings(rho: float, norm: str, num_steps: int = 1) -> PerturbationSettings:
    if not (math.isfinite(rho) and rho > 0):
        raise ValueError(f"rho is {rho}: it must be a finite number above 0")
    return PerturbationSettings(rho=rho, norm=norm, num_steps=num_steps)


def _random_direction(weights: Sequence[Tensor], norm: str, seed: int) -> List[Tensor]:
    """Draws on the CPU, whose generator is the same everywhere."""
    generator = torch.Generator().manual_seed(seed)
    normal = (torch.randn(w.shape, generator=generator, dtype=w.dtype) for w in weights)
    if norm == "linf":  # a normal number's sign is a fair coin
        normal = (torch.where(part < 0, -1.0, 1.0).to(part) for part in normal)
    return [part.to(weight.device) for part, weight in zip(normal, weights)]
