"""One checkpoint's spectrum: largest eigenvalues, trace and density of the Hessian or a Fisher.

All matrices belong to the mean loss per unit L(w) = Σ_j l_j(w) / S, S the sum of the sample sizes
(tokens, or sentences in classification), so that their eigenvalues can be compared:

    Hessian                ∇²L(w)
    empirical Fisher       (1/S) Σ_j ∇l_j ∇l_jᵀ, l_j the loss of a sentence, labels of the data
    Monte-Carlo Fisher     the same with labels that the model draws, the mean over m draws

Imports nothing of fairseq.
"""

from typing import Callable, NamedTuple, Optional, Sequence, Tuple

import numpy as np
import torch
from torch import Tensor

from fairseq_sam.analysis import eigenvalues, fisher
from fairseq_sam.analysis.curvature import Hessian, num_weights, vector_type
from fairseq_sam.analysis.dataset_loss import DatasetLoss
from fairseq_sam.analysis.spectral_density import Density, lanczos_density


class MeasuredSpectrum(NamedTuple):
    """What is known of a matrix.

    Attributes:
        eigenvalues: the k largest, the largest first, in nats per unit.
        trace: of the whole matrix; its error is Hutchinson's, or that of drawing labels.
        density: where all n eigenvalues lie; None if it was not asked for.
    """

    eigenvalues: np.ndarray
    trace: eigenvalues.Trace
    density: Optional[Density]


def hessian_spectrum(
    dataset: DatasetLoss,
    count: int,
    tolerance: float = 1e-3,
    num_probes: int = 30,
    with_density: bool = False,
    memory: Optional[int] = None,
    seed: int = 1,
    after_each: Callable[[], object] = lambda: None,
) -> MeasuredSpectrum:
    """Measures the Hessian by products with vectors.

    Args:
        dataset: the loss.
        count: k, the number of eigenvalues.
        tolerance: of :func:`~fairseq_sam.analysis.eigenvalues.top_eigenvalues`.
        num_probes: of Hutchinson's estimate.
        with_density: whether to measure the density too (120 more products).
        memory: bytes that are free; chooses the number of Lanczos vectors.
        seed: of every draw.
        after_each: called after each product.

    Raises:
        FloatingPointError: a product is not finite.
        NotConverged: the tolerance was not reached.
        ValueError: k is larger than the number of weights.
    """
    hessian = Hessian(dataset)
    size, dtype = hessian.size, hessian.dtype

    def product(vector: np.ndarray) -> np.ndarray:
        result = hessian(vector)
        after_each()
        return result

    vectors = eigenvalues.basis_size(count, size, dtype.itemsize, memory)
    return MeasuredSpectrum(
        eigenvalues.top_eigenvalues(product, size, count, tolerance, vectors, dtype, seed),
        eigenvalues.hutchinson_trace(product, size, num_probes, dtype, seed),
        lanczos_density(product, size, dtype=dtype, seed=seed) if with_density else None,
    )


def fisher_spectrum(
    weights: Sequence[Tensor],
    losses: Sequence[Callable[[], Tensor]],
    sample_size: float,
    count: int,
    num_draws: int = 1,
    drawn: bool = False,
    with_density: bool = False,
    held: Optional[int] = None,
    after_each: Callable[[], object] = lambda: None,
) -> MeasuredSpectrum:
    """Measures a Fisher matrix through the Gram matrix of the sentences' gradients.

    Args:
        weights: what the gradients are with respect to.
        losses: of the sentences, summed over their tokens; of the first draw, the second …
        sample_size: S.
        count: k; eigenvalues beyond the number of gradients are 0.
        num_draws: m; ``losses`` has m entries a sentence.
        drawn: whether the labels are drawn, which gives the trace an error.
        with_density: whether to return the density.
        held: how many gradients to hold at a time; default all.
        after_each: called after each gradient.

    Raises:
        FloatingPointError: a gradient is not finite.
        ValueError: k is larger than the number of weights.
    """
    size = num_weights(weights)
    if count > size:
        raise ValueError(f"{count} eigenvalues of a matrix with {size} rows")
    gram = fisher.gram_matrix(weights, losses, held, after_each)
    values = fisher.eigenvalues_of_gram(gram, 1.0 / (sample_size * num_draws))
    squares = gram.diagonal().reshape(num_draws, -1).sum(1) / sample_size
    trace = eigenvalues.mean_and_error(squares.tolist())
    return MeasuredSpectrum(
        fisher.pad_with_zeros(values, count),
        trace if drawn else eigenvalues.Trace(trace.mean, 0.0),
        fisher.density_of_gram(values, size) if with_density else None,
    )


def memory_needed(dataset: DatasetLoss, count: int, memory: Optional[int] = None) -> int:
    """Returns the bytes that the Lanczos vectors of :func:`hessian_spectrum` will take."""
    size, itemsize = num_weights(dataset.weights), vector_type(dataset.weights).itemsize
    vectors = eigenvalues.basis_size(count, size, itemsize, memory)
    return eigenvalues.basis_memory(vectors, size, itemsize)


def loss_and_sample_size(dataset: DatasetLoss) -> Tuple[float, float]:
    """Returns L(w), in nats per unit, and S."""
    total, size = 0.0, 0.0
    with dataset.evaluating(), torch.no_grad():
        for sample in dataset.samples:
            loss, sample_size, _ = dataset.criterion(dataset.model, sample)
            total += float(loss.double())
            size += float(sample_size)
    return total / size, size
