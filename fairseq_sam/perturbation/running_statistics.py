"""Batch normalisation's running statistics move once a step, whatever the number of passes."""

from typing import List, Tuple

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase


class RunningStatistics:
    """The running means, variances and counters of a model's normalisation layers.

    Args:
        model: any module; only its layers in training mode are looked at.
    """

    def __init__(self, model: nn.Module) -> None:
        self._buffers: List[Tensor] = [
            buffer
            for layer in model.modules()
            if isinstance(layer, _NormBase) and layer.training and layer.track_running_stats
            for buffer in layer.buffers(recurse=False)
        ]
        self._saved: List[Tuple[Tensor, Tensor]] = []

    def save(self) -> None:
        """Remembers the statistics: those after the pass at the unperturbed weights."""
        self._saved = [(buffer, buffer.clone()) for buffer in self._buffers]

    def restore(self) -> None:
        """Puts the remembered statistics back.

        Past autograd, which would refuse a backward pass still to come: it has noted the buffers
        though in training mode it does not read them.
        """
        for buffer, saved in self._saved:
            buffer.data.copy_(saved)
        self._saved = []
