"""What mixed-precision autocast does to several passes with changing weights."""

import contextlib
from typing import Any, ContextManager, Optional

import torch


def autocast_dtype(device: torch.device) -> Optional[torch.dtype]:
    """Returns the format that autocast computes in, None where it is off."""
    if hasattr(torch, "get_autocast_dtype"):  # torch >= 2.4
        enabled = torch.is_autocast_enabled(device.type)
        return torch.get_autocast_dtype(device.type) if enabled else None
    if device.type == "cuda" and torch.is_autocast_enabled():
        return torch.get_autocast_gpu_dtype()
    if device.type == "cpu" and torch.is_autocast_cpu_enabled():
        return torch.get_autocast_cpu_dtype()
    return None


def autocast_off(device: torch.device) -> ContextManager[Any]:
    """Backward passes run outside autocast, which chooses their formats by the forward's."""
    if autocast_dtype(device) is None:
        return contextlib.nullcontext()
    return torch.autocast(device.type, enabled=False)
