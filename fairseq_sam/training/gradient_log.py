"""``--sam-log-gradients N``: the norm of each layer's gradient, logged every N updates.

Alongside fairseq's ``gnorm``, and in its unit, there is then one metric ``gnorm_LAYER`` for each
layer (GA-SAM Figs. 4 and 5). The gradients are those the optimizer gets, before clipping: of the
sharpness-aware loss where the run is perturbed, of the loss where it is not. Squared, the layers
add up to ``gnorm``.

Everything stays on the device until fairseq reads its own metrics.
"""

import functools
from typing import Any, Dict, List, Sequence, Tuple

import torch
from fairseq.logging import metrics
from torch import Tensor

from fairseq_sam.perturbation import foreach
from fairseq_sam.training.metrics import DIGITS
from fairseq_sam.training.parameters import layer_of

PREFIX = "gnorm_"


class GradientLog:
    """Measures the layers' norms whenever fairseq clips the gradient, and logs them.

    In half precision ``p.grad`` is scaled in ways that only fairseq's optimizer knows. So each
    layer's share of the norm is taken from ``p.grad``, and the norm itself from the optimizer.

    Args:
        named: the trained parameters.
        optimizer: the optimizer of fairseq's trainer.
        interval: updates from one measurement to the next.
    """

    def __init__(self, named: Sequence[Tuple[str, Tensor]], optimizer: Any, interval: int) -> None:
        self.optimizer = optimizer
        self.interval = interval
        self.update_num = 0
        self._layers: Dict[str, List[Tensor]] = {}
        for name, weight in named:
            self._layers.setdefault(layer_of(name), []).append(weight)
        self._measured: Dict[str, Tensor] = {}
        clip_grad_norm = optimizer.clip_grad_norm

        @functools.wraps(clip_grad_norm)
        def measuring(*args: Any, **kwargs: Any) -> Any:
            total = clip_grad_norm(*args, **kwargs)
            self._measure(total)
            return total

        optimizer.clip_grad_norm = measuring

    def _measure(self, total: Tensor) -> None:
        self._measured = {}
        if self.update_num % self.interval:
            return
        norms = {
            layer: torch.linalg.vector_norm(foreach.norms(gradients))
            for layer, weights in self._layers.items()
            for gradients in [[w.grad for w in weights if w.grad is not None]]
            if gradients
        }
        if norms:
            everything = torch.linalg.vector_norm(torch.stack(list(norms.values())))
            unit = total / everything.clamp(min=torch.finfo(everything.dtype).tiny)
            self._measured = {layer: norm * unit for layer, norm in norms.items()}

    def log(self) -> None:
        """Logs what was measured since it was last called."""
        for layer, norm in self._measured.items():
            metrics.log_scalar(PREFIX + layer, norm, priority=410, round=DIGITS)
        self._measured = {}
