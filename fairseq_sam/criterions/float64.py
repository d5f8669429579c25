"""Keeps a float64 model in float64 where fairseq would round its numbers to float32.

fairseq asks for ``dtype=torch.float32`` in its softmaxes (``fairseq.utils.log_softmax``, the losses
of the masked LM and of sentence prediction). That is a promotion for half precision, but a
*demotion* for float64, after which a reference "in float64" is good to 1e-7 only. Pure torch, no
fairseq.
"""

import contextlib
from typing import Any, ContextManager, Dict, Iterable, Optional, Tuple

import torch
from torch import Tensor


def preserve_float64(model: Any) -> ContextManager[Any]:
    """Context in which ``dtype=torch.float32`` and ``.float()`` leave float64 tensors alone.

    Does nothing, and costs nothing, unless the model's first parameter is float64.

    Args:
        model: decides by the type of its parameters whether there is anything to preserve.

    Returns:
        A context manager, to be put around forward pass and loss.

    >>> model = torch.nn.Linear(1, 1).double()
    >>> with preserve_float64(model):
    ...     torch.log_softmax(torch.ones(2, dtype=torch.float64), dim=0, dtype=torch.float32).dtype
    torch.float64
    """
    first = next(model.parameters(), None)
    if first is None or first.dtype != torch.float64:
        return contextlib.nullcontext()
    return _preserving_mode()


def _preserving_mode() -> ContextManager[Any]:
    from torch.overrides import TorchFunctionMode  # torch >= 1.13; wanted for float64 only

    class PreserveFloat64(TorchFunctionMode):
        def __torch_function__(
            self,
            func: Any,
            types: Iterable[type],
            args: Tuple[Any, ...] = (),
            kwargs: Optional[Dict[str, Any]] = None,
        ) -> Any:
            kwargs = dict(kwargs or {})
            if args and isinstance(args[0], Tensor) and args[0].dtype == torch.float64:
                if func is Tensor.float:
                    return args[0]
                if kwargs.get("dtype") is torch.float32:
                    kwargs["dtype"] = torch.float64
            return func(*args, **kwargs)

    mode: ContextManager[Any] = PreserveFloat64()
    return mode
