"""Contrastive learning of sentence embeddings: pure torch, no fairseq.

Shapes: tokens ``[batch, tokens]``, features ``[batch, tokens, dim]``, embeddings ``[batch, dim]``.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from fairseq_sam.criterions.reductions import at_least_float32

POOLINGS = ("mean", "cls")


def pool(features: Tensor, is_token: Tensor, pooling: str) -> Tensor:
    """Makes one embedding of each sentence's features.

    Args:
        features: the encoder's last hidden states.
        is_token: bool ``[batch, tokens]``, false at padding.
        pooling: ``cls`` takes the first token; ``mean`` averages all tokens, the special ones too.

    >>> features = torch.tensor([[[1.0], [3.0], [9.0]]])
    >>> pool(features, torch.tensor([[True, True, False]]), "mean").tolist()
    [[2.0]]
    """
    if pooling == "cls":
        return features[:, 0]
    kept = features.masked_fill(~is_token.unsqueeze(-1), 0.0)
    return kept.sum(dim=1) / is_token.sum(dim=1, keepdim=True).clamp(min=1)


def pair_similarities(one: Tensor, other: Tensor, temperature: float) -> Tensor:
    """Returns cos(z_i, z_k)/τ ``[2 batch, 2 batch]`` of z = (one, other); −∞ on the diagonal."""
    embeddings = F.normalize(at_least_float32(torch.cat([one, other])), dim=-1)
    similarities = embeddings @ embeddings.t() / temperature
    diagonal = torch.eye(len(embeddings), dtype=torch.bool, device=embeddings.device)
    return similarities.masked_fill(diagonal, -torch.inf)


def info_nce(one: Tensor, other: Tensor, temperature: float) -> Tensor:
    """InfoNCE with the other sentences of the batch, in both views, as negatives.

    Liu et al. (2021), Eq. 1, as they implement it (NT-Xent): each of the 2 batch embeddings is an
    anchor once, −log(exp(cos(z, z⁺)/τ) / Σ_{z' ≠ z} exp(cos(z, z')/τ)), and a sentence's loss is
    the mean of its two anchors', so that the mean over sentences is that over anchors.

    Args:
        one: embeddings of the first views ``[batch, dim]``.
        other: of the second views.
        temperature: τ > 0.

    Returns:
        Losses ``[batch]`` in nats, float32 at least; zero for a batch of one, which has no
        negatives.

    >>> info_nce(torch.eye(2), torch.eye(2), temperature=1.0)  # log((e + 2) / e)
    tensor([0.5514, 0.5514])
    """
    size = len(one)
    lprobs = F.log_softmax(pair_similarities(one, other, temperature), dim=-1)
    forwards, backwards = lprobs[:size, size:].diagonal(), lprobs[size:, :size].diagonal()
    return -(forwards + backwards) / 2


def mask_random_spans(tokens: Tensor, ordinary: Tensor, span: int, mask_idx: int) -> Tensor:
    """Replaces ``span`` neighbouring tokens of each sentence by masks, at a random place.

    Sentences of fewer than three times as many tokens stay whole. Random numbers are torch's.

    Args:
        tokens: indices.
        ordinary: bool ``[batch, tokens]``, true where a token may be masked: one run in each row.
        span: how many; 0 for none.
        mask_idx: the index of the mask.

    Returns:
        New tokens of the same shape.
    """
    lengths = ordinary.sum(dim=1)
    places = (lengths - span + 1).clamp(min=1)
    chosen = (torch.rand(len(tokens), device=tokens.device) * places).long()
    number = ordinary.long().cumsum(dim=1) - 1 - chosen.unsqueeze(1)  # of the token in the span
    masked = (number >= 0) & (number < span) & ordinary & (lengths >= 3 * span).unsqueeze(1)
    return tokens.masked_fill(masked, mask_idx)
