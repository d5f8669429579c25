"""Gradients on their way: out of ``p.grad``, summed over passes, and back through a loss."""

from typing import Any, List, Optional, Sequence

import torch
from torch import Tensor

from fairseq_sam.perturbation import foreach

Gradients = List[Optional[Tensor]]


def take_gradients(weights: Sequence[Tensor]) -> Gradients:
    """Returns the weights' gradients, dense, and leaves none behind."""
    taken = [weight.grad for weight in weights]
    for weight in weights:
        weight.grad = None
    return [g.to_dense() if g is not None and g.is_sparse else g for g in taken]


def put_gradients(weights: Sequence[Tensor], gradients: Gradients) -> None:
    """Makes these the weights' gradients."""
    for weight, gradient in zip(weights, gradients):
        weight.grad = gradient


def add_gradients_(total: Gradients, gradients: Gradients) -> None:
    """Adds into ``total`` in place; a gradient that only one side has is kept as it is."""
    if not total:
        total.extend(gradients)
        return
    both = [(t, g) for t, g in zip(total, gradients) if t is not None and g is not None]
    if both:
        torch._foreach_add_([t for t, _ in both], [g for _, g in both])
    total[:] = [g if t is None else t for t, g in zip(total, gradients)]


def carry_gradients(
    loss: Tensor,
    share: Tensor,
    weights: Sequence[Tensor],
    gradients: Gradients,
    factor: Tensor,
    finite: Tensor,
) -> Tensor:
    """Returns ``share * loss``, in whose backward the given gradients are added.

    They reach ``p.grad`` through the graph, multiplied by ``factor`` and by the gradient that
    arrives at the returned loss, so that loss scaling applies to them and hooks on the parameters
    (data-parallel reduction) see the whole sum once.

    Args:
        loss: scalar with a graph.
        share: scalar, its weight.
        weights: the leaves that the gradients belong to.
        gradients: one per weight or None; emptied, and overwritten in the backward.
        factor: scalar.
        finite: boolean scalar; false where gradients may hold non-finite numbers to be discarded.
    """
    live = [(w, g) for w, g in zip(weights, gradients) if g is not None]
    holder = _Holder([g for _, g in live], finite)
    gradients.clear()
    carried: Tensor = _CarryGradients.apply(  # type: ignore[no-untyped-call]
        loss, share, factor, holder, *[w for w, _ in live]
    )
    return carried


class _Holder:
    """Carries gradients past autograd, which would otherwise track them as inputs."""

    def __init__(self, gradients: List[Any], finite: Tensor) -> None:
        self.gradients = gradients
        self.finite = finite


class _CarryGradients(torch.autograd.Function):
    @staticmethod
    def forward(ctx, loss, share, factor, holder, *weights):  # type: ignore
        ctx.holder = holder
        ctx.save_for_backward(share, factor)
        return loss * share

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad_output):  # type: ignore
        share, factor = ctx.saved_tensors
        gradients, ctx.holder.gradients = ctx.holder.gradients, []
        if gradients:
            foreach.discard_non_finite_(gradients, ctx.holder.finite)
            scale = grad_output * factor
            torch._foreach_mul_(gradients, [scale.to(gradient) for gradient in gradients])
        return (grad_output * share, None, None, None, *gradients)
