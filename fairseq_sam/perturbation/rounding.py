"""Adding small perturbations to weights kept in half precision.

At a weight of 0.03 an fp16 step is 3e-5 and a bf16 step 2e-4, so rounding to nearest swallows most
of a perturbation of that size. Stochastic rounding keeps it in expectation: each weight lands on
one of its two neighbours with probabilities that make the mean exact.
"""

from typing import Tuple

import torch
from torch import Tensor

LOW_PRECISION = (torch.float16, torch.bfloat16)


def stochastic_round(values: Tensor, dtype: torch.dtype) -> Tensor:
    """Rounds float32 values to a half-precision format at random, unbiased.

    Each value lands on one of its two neighbours in the target format, on the upper one with the
    probability of its relative distance from the lower. The numbers come from torch's generator.

    Args:
        values: float32.
        dtype: ``torch.float16`` or ``torch.bfloat16``.

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
    upper = torch.rand_like(values) < steps.sub_(lower)
    rounded = lower.add_(upper).mul_(step).copysign_(values)
    return torch.where(torch.isfinite(values), rounded, values).to(dtype)


def add_perturbation_(weight: Tensor, perturbation: Tensor) -> Tuple[Tensor, Tensor]:
    """Adds a perturbation to a half-precision weight in place with stochastic rounding.

    Args:
        weight: fp16 or bf16, changed in place.
        perturbation: float32, same shape.

    Returns:
        ⟨r, a⟩ and ⟨a, a⟩ as float32 scalars, where a is the perturbation asked for and r the one
        realised: their ratio over all tensors is the realised share.
    """
    before = weight.float()
    weight.copy_(stochastic_round(before + perturbation, weight.dtype))
    realised = weight.float().sub_(before)
    return (realised * perturbation).sum(), perturbation.square().sum()
