"""Replaying random numbers, so that all passes of a step see the same dropout masks."""

import random
from typing import Any, Dict, Iterable

import numpy as np
import torch
from torch import Tensor


class RandomState:
    """The state of every generator that a forward pass may draw from.

    Covers torch on the CPU and on the CUDA devices given, numpy (span masks of speech models) and
    Python's own. The states live on the host: saving and restoring them does not wait for a GPU.

    Args:
        tensors: tensors on the devices of interest, usually the weights.
    """

    def __init__(self, tensors: Iterable[Tensor]) -> None:
        devices = {tensor.device for tensor in tensors if tensor.device.type == "cuda"}
        self._cuda: Dict[torch.device, Tensor] = {
            device: torch.cuda.get_rng_state(device) for device in devices
        }
        self._cpu = torch.get_rng_state()
        self._numpy: Any = np.random.get_state()
        self._python = random.getstate()

    def restore(self) -> None:
        """Sets every generator back to where it was."""
        torch.set_rng_state(self._cpu)
        for device, state in self._cuda.items():
            torch.cuda.set_rng_state(state, device)
        np.random.set_state(self._numpy)
        random.setstate(self._python)
