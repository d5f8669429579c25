"""Calling a module at w while its weights are perturbed."""

import contextlib
from typing import Any, Sequence, Tuple

import torch
from torch import Tensor, nn

try:
    from torch.func import functional_call
except ImportError:  # torch 1.13
    from torch.nn.utils.stateless import functional_call  # type: ignore[assignment]


class _ValueElsewhere(torch.autograd.Function):
    """A weight's stand-in that has another value; its gradient is the weight's."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, value: Tensor) -> Tensor:
        return value.detach()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tuple[Tensor, None]:
        return gradient, None


def call_at(
    module: nn.Module, origins: Sequence[Tuple[Tensor, Tensor]], with_graph: bool, **inputs: Any
) -> Any:
    """Calls a module with other values of its weights, which stay in place.

    Args:
        module: what to call; what it computes must depend on the weights it holds, and on no
            recomputation of them in the backward pass (activation checkpointing).
        origins: pairs of a weight and its value, which must not change before the backward pass;
            weights that are not the module's are passed over.
        with_graph: whether gradients reach the weights, as if these were their values.
        **inputs: of the module.

    >>> layer = nn.Linear(1, 1, bias=False)
    >>> weight = layer.weight
    >>> output = call_at(layer, [(weight, torch.full((1, 1), 5.0))], True, input=torch.ones(1, 1))
    >>> output.item()
    5.0
    >>> output.backward()
    >>> weight.grad.item()
    1.0
    """
    names = {id(weight): name for name, weight in module.named_parameters()}
    with contextlib.nullcontext() if with_graph else torch.no_grad():
        values = {
            names[id(weight)]: _ValueElsewhere.apply(weight, value)  # type: ignore[no-untyped-call]
            for weight, value in origins
            if id(weight) in names
        }
        output = functional_call(module, values, (), inputs)
    if not with_graph:
        torch.clear_autocast_cache()  # it would hand out its copies, which have no graph
    return output
