"""A fault in how fairseq looks for the origin of a NaN: the search fails and hides the finding."""

import functools
import logging
from typing import Any, Iterator

import torch
from torch import Tensor, nn

from .patching import Repair

logger = logging.getLogger(__name__)


class _Encoder(nn.Module):
    """Returns what fairseq's encoders return: tensors in lists, some of them empty."""

    def forward(self, x: Tensor) -> Any:
        return {"encoder_embedding": [], "encoder_out": [x]}


def _diagnosis_fails() -> bool:
    from fairseq.nan_detector import NanDetector

    encoder = _Encoder()
    detector = NanDetector(encoder)
    try:
        encoder(torch.ones(2, requires_grad=True) * 2)
    except (IndexError, RuntimeError, StopIteration):
        return True
    finally:
        detector.close()
    return False


def _tensors(output: Any) -> Iterator[Tensor]:
    if isinstance(output, Tensor):
        yield output
    elif isinstance(output, dict):
        for value in output.values():
            yield from _tensors(value)
    elif isinstance(output, (list, tuple)):
        for value in output:
            yield from _tensors(value)


def _diagnose_any_output() -> None:
    """Lets a run that diverges end with the ``FloatingPointError`` that says so.

    fairseq repeats the step with hooks that report the first NaN.  torch's older kind of backward
    hook, which it uses, ends in ``StopIteration`` or ``IndexError`` at a module whose output holds
    no tensor at the place where torch looks, as with every encoder.  The gradient is now watched at
    the first tensor wherever it is, and whatever else fails during the search is only logged.
    """
    from fairseq.nan_detector import NanDetector

    leave = NanDetector.__exit__

    def watch_gradient(self: Any, module: nn.Module, inputs: Any, output: Any) -> None:
        tensor = next(_tensors(output), None)
        if tensor is not None and tensor.grad_fn is not None:
            tensor.grad_fn.register_hook(functools.partial(self.bhook_fn, module))

    def add_hooks(self: Any, module: nn.Module) -> None:
        if self.forward:
            self.fhooks.append(module.register_forward_hook(self.fhook_fn))
        if self.backward:
            hook = functools.partial(watch_gradient, self)
            self.bhooks.append(module.register_forward_hook(hook))

    @functools.wraps(leave)
    def __exit__(self: Any, exc_type: Any, exc_value: Any, exc_traceback: Any) -> bool:
        leave(self, exc_type, exc_value, exc_traceback)
        if not isinstance(exc_value, Exception):
            return False
        logger.warning("the search for the origin of the NaN ended early: %r", exc_value)
        return True

    vars(add_hooks)["__wrapped__"] = NanDetector.add_hooks
    NanDetector.add_hooks, NanDetector.__exit__ = add_hooks, __exit__


REPAIRS = (Repair("a diverged run ends in StopIteration", _diagnosis_fails, _diagnose_any_output),)
