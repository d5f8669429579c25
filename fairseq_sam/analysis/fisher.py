"""The Fisher matrix of a data set by its Gram matrix: the whole spectrum but for zeros, exactly.

    F = (1/c) Σ_j g_j g_jᵀ = (1/c) Gᵀ G,    with one gradient g_j a row of G

F is n × n but has the non-zero eigenvalues and the trace of G Gᵀ / c, which is as large as there
are sentences. That needs no iteration, and memory for as many gradients as one wants to hold at a
time: with fewer, gradients are computed more than once. Products are in the weights' own format:
eigenvalues below about 1e-6 (float32) of the largest are rounding.

Imports nothing of fairseq.
"""

from typing import Callable, Optional, Sequence

import numpy as np
import torch
from torch import Tensor

from fairseq_sam.analysis.curvature import flatten, num_weights, vector_type
from fairseq_sam.analysis.spectral_density import Density

_UNKNOWN = 64  # gradients to hold where nothing is known of the memory
_CHUNK = 8  # gradients that pass by the held ones at a time


def rows_in_memory(size: int, itemsize: int, memory: Optional[int]) -> int:
    """Returns how many gradients half of some memory (bytes) holds, less those passing by."""
    if memory is None:
        return _UNKNOWN
    return max(1, memory // 2 // (size * itemsize) - _CHUNK)


def num_gradients(count: int, held: int) -> int:
    """Returns how many gradients :func:`gram_matrix` computes.

    >>> num_gradients(6, held=6), num_gradients(6, held=2)
    (6, 12)
    """
    return sum(count - start for start in range(0, count, held))


def gram_matrix(
    weights: Sequence[Tensor],
    losses: Sequence[Callable[[], Tensor]],
    held: Optional[int] = None,
    after_each: Callable[[], object] = lambda: None,
) -> np.ndarray:
    """Returns G Gᵀ in float64, shape [len(losses), len(losses)].

    Args:
        weights: what the gradients are with respect to.
        losses: each runs the model and returns a scalar with its graph.
        held: how many gradients to hold at a time; default all.
        after_each: called after each gradient.

    Raises:
        FloatingPointError: a gradient is not finite.
    """
    count = len(losses)
    held = min(held or count, count)
    gram = np.zeros((count, count))
    dtype = vector_type(weights)
    ours = np.empty((held, num_weights(weights)), dtype)
    theirs = np.empty((min(_CHUNK, count), num_weights(weights)), dtype) if held < count else ours

    def fill(rows: np.ndarray, start: int, end: int) -> np.ndarray:
        for row, loss in zip(rows, losses[start:end]):
            row[:] = _gradient(weights, loss)
            after_each()
        return rows[: end - start]

    for start in range(0, count, held):
        end = min(start + held, count)
        block = fill(ours, start, end)
        gram[start:end, start:end] = block @ block.T
        for first in range(end, count, _CHUNK):
            last = min(first + _CHUNK, count)
            gram[start:end, first:last] = block @ fill(theirs, first, last).T
            gram[first:last, start:end] = gram[start:end, first:last].T
    return gram


def eigenvalues_of_gram(gram: np.ndarray, scale: float) -> np.ndarray:
    """Returns the eigenvalues of ``gram`` · ``scale``, the largest first, none below 0."""
    values: np.ndarray = np.linalg.eigvalsh(gram * scale)[::-1].clip(min=0.0)
    return values


def pad_with_zeros(eigenvalues: np.ndarray, count: int) -> np.ndarray:
    """Returns the first ``count`` eigenvalues of F: zeros after those of the Gram matrix."""
    return np.pad(eigenvalues[:count], (0, max(0, count - len(eigenvalues))))


def density_of_gram(eigenvalues: np.ndarray, size: int) -> Density:
    """Returns the spectrum of F, n × n, from that of its Gram matrix."""
    largest = eigenvalues[: min(size, len(eigenvalues))][::-1]
    nodes = np.concatenate([[0.0], largest])
    weights = np.concatenate([[size - len(largest)], np.ones(len(largest))]) / size
    return Density(nodes, weights)


def _gradient(weights: Sequence[Tensor], loss: Callable[[], Tensor]) -> np.ndarray:
    with torch.enable_grad():
        value = loss()
        gradients: Sequence[Optional[Tensor]] = [None] * len(weights)
        if value.requires_grad:
            gradients = torch.autograd.grad(value, weights, allow_unused=True)
    present = [torch.zeros_like(w) if g is None else g for w, g in zip(weights, gradients)]
    flat = flatten(present, vector_type(weights))
    if not np.isfinite(flat).all():
        raise FloatingPointError("the gradient of a sentence is not finite")
    return flat
