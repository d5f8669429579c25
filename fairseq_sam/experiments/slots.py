"""Which GPUs each of several runs at once may see."""

from __future__ import annotations

import os
from typing import List, Optional, Sequence


def visible_gpus() -> List[str]:
    """Returns the GPUs of this process, as ``CUDA_VISIBLE_DEVICES`` names them."""
    import torch

    count = torch.cuda.device_count()
    named = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    return named[:count] or [str(index) for index in range(count)]


def gpu_slots(gpus: Sequence[str], per_run: int, parallel: Optional[int]) -> List[Optional[str]]:
    """Deals GPUs out to runs.

    Args:
        gpus: all there are; none where runs are on the CPU.
        per_run: how many each run gets.
        parallel: runs at once; None for as many as there are whole shares. More than that share
            GPUs.

    Returns:
        The value of ``CUDA_VISIBLE_DEVICES`` for each run, None to leave it.

    >>> gpu_slots("0123", 2, None), gpu_slots("01", 1, 3), gpu_slots("", 1, None)
    (['0,1', '2,3'], ['0', '1', '0'], [None])
    """
    shares: List[Optional[str]] = [
        ",".join(gpus[start : start + per_run])
        for start in range(0, len(gpus) - per_run + 1, per_run)
    ]
    shares = shares or [None]
    return [shares[index % len(shares)] for index in range(parallel or len(shares))]
