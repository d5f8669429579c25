"""Eigenvalues and trace of a symmetric matrix known by its products alone.

A *product* is a function from a vector [n] to the matrix times it. Every random draw comes from a
seed, so that a measurement can be repeated.

Imports nothing of fairseq; scipy where ARPACK is needed.

Example:
    >>> diagonal = np.array([3.0, -1.0, 2.0])
    >>> top_eigenvalues(lambda v: diagonal * v, 3, count=2).tolist()
    [3.0, 2.0]
    >>> hutchinson_trace(lambda v: diagonal * v, 3, num_probes=5)
    Trace(mean=4.0, standard_error=0.0)
"""

import math
from typing import Callable, NamedTuple, Optional, Sequence

import numpy as np

from fairseq_sam import FairseqSamError
from fairseq_sam.analysis.restarted_lanczos import largest_eigenvalues

Product = Callable[[np.ndarray], np.ndarray]

_EXTRA_VECTORS = 5  # what a Lanczos iteration holds in addition to its basis
_MOST_ENTRIES = 2**31 - 1  # of a basis that ARPACK in scipy can address
_MOST_PRODUCTS = 1000  # for each eigenvalue; ARPACK counts restarts


class NotConverged(FairseqSamError):
    """The eigenvalues were not found to the tolerance; the text is one line that says so."""


class Trace(NamedTuple):
    """A trace: its estimate and that one's standard error (0: exact; None: a single draw)."""

    mean: float
    standard_error: Optional[float]


def basis_size(count: int, size: int, itemsize: int = 4, memory: Optional[int] = None) -> int:
    """Returns how many Lanczos vectors to keep for so many eigenvalues.

    2k + 1 (ARPACK's advice) where half the memory holds them, fewer where it does not, but never
    under k + max(5, k / 5): with less room the iteration restarts too often to get anywhere.

    Args:
        count: k.
        size: n.
        itemsize: bytes of a number.
        memory: bytes that are free, if known.
    """
    best, least = max(2 * count + 1, 20), count + max(5, count // 5)
    if memory is not None:
        best = max(least, min(best, memory // 2 // (size * itemsize) - _EXTRA_VECTORS))
    return min(best, size)


def basis_memory(vectors: int, size: int, itemsize: int = 4) -> int:
    """Returns the bytes that so many Lanczos vectors take."""
    return (vectors + _EXTRA_VECTORS) * size * itemsize


def top_eigenvalues(
    product: Product,
    size: int,
    count: int = 50,
    tolerance: float = 1e-3,
    vectors: Optional[int] = None,
    dtype: "np.dtype | type" = np.float64,
    seed: int = 1,
) -> np.ndarray:
    """Returns the largest eigenvalues (algebraically), the largest first.

    Restarted Lanczos: ARPACK by scipy's ``eigsh``, or where the basis has too many entries for it
    :mod:`~fairseq_sam.analysis.restarted_lanczos`. A matrix with no more rows than Lanczos vectors
    is put together and decomposed as a whole.

    Args:
        product: v to the matrix times v.
        size: n.
        count: k.
        tolerance: each pair found has ‖Av − λv‖ ≤ tolerance · |λ|, so that a true eigenvalue is
            as near to λ as that, up to the rounding of the products.
        vectors: the number of Lanczos vectors; default :func:`basis_size`.
        dtype: of the vectors.
        seed: of the first vector.

    Raises:
        ValueError: k is larger than n.
        NotConverged: the tolerance was not reached within a great many products.
    """
    if count > size:
        raise ValueError(f"{count} eigenvalues of a matrix with {size} rows")
    vectors = vectors or basis_size(count, size)
    if vectors >= size:
        return dense_eigenvalues(product, size, dtype)[:count]
    start = np.random.default_rng(seed).standard_normal(size).astype(dtype)
    if vectors * size > _MOST_ENTRIES:
        values, found = largest_eigenvalues(
            product, start, count, tolerance, vectors, _MOST_PRODUCTS * count
        )
        if found < count:
            raise _not_converged(found, count, tolerance)
        return values
    return _by_arpack(product, start, count, tolerance, vectors)


def _by_arpack(
    product: Product, start: np.ndarray, count: int, tolerance: float, vectors: int
) -> np.ndarray:
    from scipy.sparse.linalg import ArpackError, ArpackNoConvergence, LinearOperator, eigsh

    operator = LinearOperator(
        (start.size, start.size), matvec=lambda v: product(v.ravel()), dtype=start.dtype
    )
    try:
        values = eigsh(
            operator,
            k=count,
            which="LA",
            ncv=vectors,
            tol=tolerance,
            v0=start,
            maxiter=_MOST_PRODUCTS,
            return_eigenvectors=False,
        )
    except ArpackNoConvergence as error:
        raise _not_converged(len(error.eigenvalues), count, tolerance) from error
    except ArpackError as error:
        raise NotConverged(f"the Lanczos iteration failed ({error})") from error
    return np.sort(values.astype(np.float64))[::-1]


def _not_converged(found: int, count: int, tolerance: float) -> NotConverged:
    return NotConverged(
        f"only {found} of {count} eigenvalues were found to a tolerance of {tolerance:g}: allow a "
        "larger one, or ask for fewer"
    )


def dense_eigenvalues(
    product: Product, size: int, dtype: "np.dtype | type" = np.float64
) -> np.ndarray:
    """Returns all eigenvalues, the largest first, by n products."""
    columns = [product(unit) for unit in np.eye(size, dtype=dtype)]
    matrix = np.stack(columns).astype(np.float64)
    return np.linalg.eigvalsh((matrix + matrix.T) / 2)[::-1]


def hutchinson_trace(
    product: Product,
    size: int,
    num_probes: int = 30,
    dtype: "np.dtype | type" = np.float64,
    seed: int = 1,
) -> Trace:
    """Estimates the trace as the mean of z · Hz over random signs z (Hutchinson 1990).

    The standard error is that of the probes, not of the data. For signs the variance of one probe
    is 2 Σ_{i≠j} H_ij²: a diagonal matrix has none.
    """
    rng = np.random.default_rng(seed)
    values = []
    for _ in range(num_probes):
        signs = random_signs(rng, size, dtype)
        values.append(float(np.dot(signs, product(signs))))
    return mean_and_error(values)


def mean_and_error(values: Sequence[float]) -> Trace:
    """Returns the mean of independent estimates and its standard error.

    >>> mean_and_error([1.0, 3.0])
    Trace(mean=2.0, standard_error=1.0)
    """
    error = float(np.std(values, ddof=1)) / math.sqrt(len(values)) if len(values) > 1 else None
    return Trace(float(np.mean(values)), error)


def random_signs(rng: np.random.Generator, size: int, dtype: "np.dtype | type") -> np.ndarray:
    """Returns a vector of −1 and 1, each as likely."""
    signs = rng.integers(0, 2, size, dtype=np.int8) * np.int8(2) - np.int8(1)
    return signs.astype(dtype)
