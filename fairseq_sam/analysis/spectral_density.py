"""Where all the eigenvalues of a symmetric matrix lie, from its products with vectors.

Imports nothing of fairseq.

Example:
    >>> diagonal = np.array([3.0, -1.0])
    >>> lanczos_density(lambda v: diagonal * v, 2, num_probes=1).weights.round(6).tolist()
    [0.5, 0.5]
"""

import math
from typing import List, NamedTuple, Optional, Sequence, Tuple

import numpy as np

from fairseq_sam.analysis.eigenvalues import Product, random_signs


class Density(NamedTuple):
    """A spectrum as a discrete distribution: where its mass lies, and how much there.

    Attributes:
        nodes: eigenvalues, or points that stand for them; ascending.
        weights: the share of all n eigenvalues at each; they sum to 1.
    """

    nodes: np.ndarray
    weights: np.ndarray


def lanczos_density(
    product: Product,
    size: int,
    num_steps: int = 60,
    num_probes: int = 2,
    dtype: "np.dtype | type" = np.float64,
    seed: int = 1,
) -> Density:
    """Approximates the distribution of all eigenvalues by Lanczos quadrature.

    Golub & Meurant 1994; Ubaru, Chen & Saad 2017; Ghorbani et al. 2019 for neural networks. Each
    probe gives a Gauss quadrature: with m steps, the first 2m − 1 moments of z's own spectrum.
    Lanczos runs without reorthogonalisation, which the quadrature does not need (Greenbaum 1989),
    so three vectors are all it holds.

    Args:
        product: as in :func:`~fairseq_sam.analysis.eigenvalues.top_eigenvalues`.
        size: n.
        num_steps: m, products for each probe.
        num_probes: how many random starts are averaged.
        dtype: of the vectors.
        seed: of the starts.
    """
    rng = np.random.default_rng(seed)
    nodes, weights = [], []
    for _ in range(num_probes):
        diagonal, off_diagonal = _lanczos(
            product, random_signs(rng, size, dtype), min(num_steps, size)
        )
        values, vectors = np.linalg.eigh(_tridiagonal(diagonal, off_diagonal))
        nodes.append(values)
        weights.append(vectors[0] ** 2 / num_probes)
    order = np.argsort(np.concatenate(nodes))
    return Density(np.concatenate(nodes)[order], np.concatenate(weights)[order])


def smoothing_width(densities: Sequence[Density], share: float = 0.01) -> float:
    """Returns a standard deviation for :func:`smooth`: a share of the widest range of nodes.

    Densities that are to be compared must have the same: a wide range's own would make its bulk,
    which is a single spike at 0, look broad.
    """
    low, high = max(
        ((float(each.nodes[0]), float(each.nodes[-1])) for each in densities),
        key=lambda ends: ends[1] - ends[0],
    )
    return share * (high - low) or 1e-3 * abs(high) or 1e-3


def smooth(
    density: Density, sigma: Optional[float] = None, points: int = 400
) -> Tuple[np.ndarray, np.ndarray]:
    """Returns a grid and the density there, each node a Gaussian.

    Args:
        density: the nodes.
        sigma: the Gaussian's standard deviation; default :func:`smoothing_width`.
        points: of the grid.
    """
    low, high = float(density.nodes[0]), float(density.nodes[-1])
    sigma = smoothing_width([density]) if sigma is None else sigma
    grid = np.linspace(low - 4 * sigma, high + 4 * sigma, points)
    bells = np.exp(-0.5 * ((grid[:, None] - density.nodes) / sigma) ** 2)
    return grid, bells @ density.weights / (sigma * math.sqrt(2 * math.pi))


def _lanczos(product: Product, start: np.ndarray, steps: int) -> Tuple[List[float], List[float]]:
    """Returns the diagonal and the off-diagonal of the tridiagonal matrix of some steps."""
    current, previous = start / np.linalg.norm(start), np.zeros_like(start)
    diagonal: List[float] = []
    off_diagonal: List[float] = []
    largest = 0.0
    for _ in range(steps):
        following = product(current) - (off_diagonal[-1] if off_diagonal else 0.0) * previous
        diagonal.append(float(np.dot(following, current)))
        following = following - diagonal[-1] * current
        length = float(np.linalg.norm(following))
        largest = max(largest, abs(diagonal[-1]), length)
        if length <= 10 * np.finfo(start.dtype).eps * largest:
            break  # the start lies in an invariant subspace, whose spectrum is now known
        off_diagonal.append(length)
        previous, current = current, (following / length).astype(start.dtype)
    return diagonal, off_diagonal[: len(diagonal) - 1]


def _tridiagonal(diagonal: List[float], off_diagonal: List[float]) -> np.ndarray:
    return np.diag(diagonal) + np.diag(off_diagonal, 1) + np.diag(off_diagonal, -1)
