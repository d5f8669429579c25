"""How far two predictions lie apart; pure torch, no fairseq."""

from typing import Optional

from torch import Tensor


def symmetric_kl(first: Tensor, second: Tensor, mask: Optional[Tensor] = None) -> Tensor:
    """Returns KL(p‖q) + KL(q‖p) of each sentence: Σ (p − q)(log p − log q), in nats.

    Args:
        first: log p, ``[batch, classes]`` or ``[batch, tokens, classes]``.
        second: log q, of the same shape.
        mask: bool ``[batch, tokens]``, true where a token counts.

    Returns:
        Sums over the tokens, ``[batch]``; differentiable in both.

    >>> import torch
    >>> p, q = torch.tensor([[0.5, 0.5]]), torch.tensor([[0.25, 0.75]])
    >>> round(float(symmetric_kl(p.log(), q.log())), 4)
    0.2747
    """
    each = ((first.exp() - second.exp()) * (first - second)).sum(-1)
    if mask is not None:
        each = each.masked_fill(~mask, 0.0)
    return each if each.dim() == 1 else each.sum(1)


def squared_difference(first: Tensor, second: Tensor) -> Tensor:
    """Returns Σ (a − b)² over the targets of each sentence, for regression.

    Args:
        first: predictions ``[batch, targets]``.
        second: of the same shape.

    Returns:
        ``[batch]``; differentiable in both.
    """
    return (first - second).pow(2).flatten(1).sum(1)
