"""Largest eigenvalues by thick-restarted Lanczos (Wu & Simon 2000), for very large matrices.

scipy's ``eigsh`` counts the entries of its basis in 32 bits (scipy 1.17) and fails where there are
more: 100M weights allow it 21 vectors. This iteration has no such limit; it is otherwise the same
method with the same stopping rule, in plain numpy.

Imports nothing of fairseq.
"""

from typing import Callable, Tuple

import numpy as np

_COLUMNS = 1 << 16  # combined at a time, so that the basis is never there twice


def largest_eigenvalues(
    product: Callable[[np.ndarray], np.ndarray],
    start: np.ndarray,
    count: int,
    tolerance: float,
    vectors: int,
    max_products: int,
) -> Tuple[np.ndarray, int]:
    """Returns the largest eigenvalues (algebraically), the largest first, and how many converged.

    Args:
        product: v to the matrix times v.
        start: the first vector, of any length; shape [n].
        count: k.
        tolerance: an eigenvalue has converged when ‖Av − λv‖ ≤ tolerance · |λ|.
        vectors: m, how many vectors the basis holds (one more is kept in addition); k < m < n.
        max_products: stop after so many.
    """
    basis = np.empty((vectors + 1, start.size), start.dtype)
    basis[0] = start / np.linalg.norm(start)
    small = np.zeros((vectors, vectors))  # the matrix in that basis
    kept, products = 0, 0
    while True:
        for index in range(kept, vectors):
            coefficients, length = _extend(basis, index, product(basis[index]))
            small[: index + 1, index] = small[index, : index + 1] = coefficients
        products += vectors - kept
        values, weights = np.linalg.eigh(small)
        values, weights = values[::-1], weights[:, ::-1]
        residuals = length * np.abs(weights[-1])
        converged = residuals[:count] <= tolerance * np.abs(values[:count])
        if converged.all() or products >= max_products:
            return values[:count], int(converged.sum())
        kept = count + (vectors - count) // 2
        _combine(basis, weights[:, :kept])
        basis[kept] = basis[vectors]
        small[:] = 0
        small[range(kept), range(kept)] = values[:kept]


def _extend(basis: np.ndarray, index: int, image: np.ndarray) -> Tuple[np.ndarray, float]:
    """Orthogonalises A v_i against the basis, twice, and appends it.

    Returns:
        Its coefficients, shape [i + 1], and the length of what was left.
    """
    held = basis[: index + 1]
    coefficients = np.zeros(index + 1)
    rest = image.astype(basis.dtype)
    for _ in range(2):
        part = held @ rest
        rest = rest - part @ held
        coefficients += part
    length = float(np.linalg.norm(rest))
    if length > np.finfo(basis.dtype).eps * float(np.linalg.norm(coefficients)):
        basis[index + 1] = rest / length
    else:  # an invariant subspace: any direction outside it goes on
        basis[index + 1] = _outside(held)
        length = 0.0
    return coefficients, length


def _outside(held: np.ndarray) -> np.ndarray:
    """Returns a random unit vector that is orthogonal to all rows."""
    normal = np.random.default_rng(len(held)).standard_normal
    vector: np.ndarray = np.asarray(normal(held.shape[1]), held.dtype)
    for _ in range(2):
        vector -= (held @ vector) @ held
    unit: np.ndarray = vector / np.linalg.norm(vector)
    return unit


def _combine(basis: np.ndarray, weights: np.ndarray) -> None:
    """Replaces the first rows by combinations of all but the last; ``weights`` has one a column."""
    rows, kept = weights.shape
    matrix = weights.T.astype(basis.dtype)
    for first in range(0, basis.shape[1], _COLUMNS):
        part = basis[:rows, first : first + _COLUMNS]
        basis[:kept, first : first + _COLUMNS] = matrix @ part
