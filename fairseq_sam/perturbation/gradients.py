"""Gradients on their way: out of ``p.grad``, summed over passes, and back."""

from typing import List, Optional, Sequence

import torch
from torch import Tensor

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


def add_scaled_gradients_(weights: Sequence[Tensor], gradients: Gradients, factor: Tensor) -> None:
    """Adds ``factor`` times each gradient to the weights' own; overwrites the gradients.

    Args:
        weights: the leaves.
        gradients: one per weight or None.
        factor: scalar.
    """
    live = [(w, g) for w, g in zip(weights, gradients) if g is not None]
    if live:
        torch._foreach_mul_([g for _, g in live], [factor.to(g) for _, g in live])
    held = [(w.grad, g) for w, g in live if w.grad is not None]
    if held:
        torch._foreach_add_([own for own, _ in held], [g for _, g in held])
    for weight, gradient in live:
        if weight.grad is None:
            weight.grad = gradient
