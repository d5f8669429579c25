"""Operations on lists of tensors that torch fuses, with what older torch lacks filled in."""

from typing import List, Sequence

import torch
from torch import Tensor


def norms(tensors: Sequence[Tensor]) -> Tensor:
    """Returns the L2 norm of each tensor, in float32 at least: shape [len(tensors)]."""
    if all(tensor.dtype in (torch.float32, torch.float64) for tensor in tensors):
        each = list(torch._foreach_norm(list(tensors)))
    else:  # a norm accumulated in half precision overflows at 65504
        each = [
            torch.linalg.vector_norm(
                tensor, dtype=torch.float64 if tensor.dtype == torch.float64 else torch.float32
            )
            for tensor in tensors
        ]
    dtype = torch.float64 if any(n.dtype == torch.float64 for n in each) else torch.float32
    return torch.stack([n.to(device=each[0].device, dtype=dtype) for n in each])


def sign(tensors: Sequence[Tensor]) -> List[Tensor]:
    """Returns the sign of each tensor."""
    if hasattr(torch, "_foreach_sign"):
        return list(torch._foreach_sign(list(tensors)))
    return [tensor.sign() for tensor in tensors]


def sign_(tensors: Sequence[Tensor]) -> None:
    """Replaces each tensor by its sign."""
    if hasattr(torch, "_foreach_sign_"):
        torch._foreach_sign_(list(tensors))
    else:
        for tensor in tensors:
            tensor.sign_()


def copy_(targets: Sequence[Tensor], sources: Sequence[Tensor]) -> None:
    """Copies each source into its target."""
    if hasattr(torch, "_foreach_copy_"):
        torch._foreach_copy_(list(targets), list(sources))
    else:
        for target, source in zip(targets, sources):
            target.copy_(source)


def clamp_(tensors: Sequence[Tensor], bounds: Sequence[Tensor]) -> None:
    """Clips each tensor to [-bound, bound]; a bound broadcasts over its tensor."""
    negative = list(torch._foreach_neg(list(bounds)))
    if hasattr(torch, "_foreach_clamp_max_"):
        torch._foreach_clamp_max_(list(tensors), list(bounds))
        torch._foreach_clamp_min_(list(tensors), negative)
    else:
        for tensor, low, high in zip(tensors, negative, bounds):
            torch.clamp(tensor, low, high, out=tensor)


def discard_non_finite_(tensors: Sequence[Tensor], finite: Tensor) -> None:
    """Replaces non-finite entries by 0 where ``finite`` is false, without a host-device sync.

    Args:
        tensors: changed in place.
        finite: a boolean scalar: whether all entries are known to be finite. It is looked at only
            on the CPU, where looking costs nothing.
    """
    if finite.device.type == "cpu" and bool(finite):
        return
    for tensor in tensors:
        torch.nan_to_num_(tensor, nan=0.0, posinf=0.0, neginf=0.0)
