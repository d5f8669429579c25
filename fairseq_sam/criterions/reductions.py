"""From token losses to sentence losses: pure torch, no fairseq.

Everything here is a *sum* (fairseq divides by its ``sample_size`` later), in the unit of the input
(nats for fairseq's criterions), differentiable, and without host synchronisation. Shapes are
written ``[batch, ...]``; the first dimension is the sentence.

The order of the additions depends on shapes only, never on atomics, so two passes over the same
batch round alike: second differences of the losses are as small as 1e-7 (delta-SAM, Eq. 5) and
would drown in a reduction that changes its order.
"""

from typing import Optional

import torch
from torch import Tensor


def at_least_float32(values: Tensor) -> Tensor:
    """Returns ``values`` in float32 if they come in half precision, else as they are.

    >>> at_least_float32(torch.ones(1, dtype=torch.bfloat16)).dtype
    torch.float32
    >>> at_least_float32(torch.ones(1, dtype=torch.float64)).dtype
    torch.float64
    """
    return values.float() if values.dtype in (torch.float16, torch.bfloat16) else values


def sum_tokens_per_sentence(
    token_losses: Tensor, mask: Optional[Tensor] = None, dtype: Optional[torch.dtype] = None
) -> Tensor:
    """Sums everything but the first dimension.

    Args:
        token_losses: losses ``[batch]`` or ``[batch, ...]``.
        mask: bool, same shape, true where a token counts. What lies outside (padding) reaches
            neither the sum nor its gradient, even when it is infinite or NaN.
        dtype: what to add up and return in; default float32, or float64 if the losses are float64.

    Returns:
        Sums ``[batch]``; zero for a sentence without tokens.

    >>> losses = torch.tensor([[1.0, 2.0], [3.0, float("inf")]])
    >>> sum_tokens_per_sentence(losses, torch.tensor([[True, True], [True, False]])).tolist()
    [3.0, 3.0]
    """
    if mask is not None:
        token_losses = token_losses.masked_fill(~mask, 0.0)
    if dtype is None:
        dtype = torch.float64 if token_losses.dtype == torch.float64 else torch.float32
    if token_losses.dim() == 1:
        return token_losses.to(dtype)
    return token_losses.flatten(1).sum(dim=1, dtype=dtype)


def one_row_per_sentence(values: Tensor, num_sentences: int) -> Tensor:
    """Undoes the ``.view(-1)`` of a batch-first ``[batch, tokens]`` tensor.

    Args:
        values: any shape with ``batch * tokens`` elements, sentence after sentence.
        num_sentences: the batch size; 0 and sentences without tokens are fine.

    Returns:
        A tensor ``[batch, tokens]``.

    Raises:
        ValueError: The elements cannot be dealt out evenly.

    >>> one_row_per_sentence(torch.arange(6), 2).tolist()
    [[0, 1, 2], [3, 4, 5]]
    """
    num_values = values.numel()
    if num_values != 0 and (num_sentences == 0 or num_values % num_sentences != 0):
        raise ValueError(
            f"{num_values} token losses are not divisible among {num_sentences} sentences"
        )
    return values.reshape(num_sentences, num_values // num_sentences if num_sentences else 0)


def place_tokens(values: Tensor, positions: Tensor) -> Tensor:
    """Puts the losses of selected tokens back where they were selected from.

    Args:
        values: losses ``[n]`` in the order of ``tokens[positions]``.
        positions: bool ``[batch, tokens]`` with ``n`` true entries.

    Returns:
        Losses ``[batch, tokens]``, zero elsewhere.

    >>> positions = torch.tensor([[False, True], [False, False], [True, True]])
    >>> place_tokens(torch.tensor([1.0, 2.0, 3.0]), positions).tolist()
    [[0.0, 1.0], [0.0, 0.0], [2.0, 3.0]]
    """
    return values.new_zeros(positions.shape).masked_scatter(positions, values)
