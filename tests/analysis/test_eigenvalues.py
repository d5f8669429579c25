"""Eigenvalues, traces and densities against dense float64 matrices and closed forms."""

from typing import Any

import numpy as np
import pytest
import torch

from fairseq_sam.analysis import eigenvalues
from fairseq_sam.analysis.curvature import Hessian
from fairseq_sam.analysis.measured_spectrum import hessian_spectrum
from fairseq_sam.analysis.spectral_density import Density, lanczos_density, smooth, smoothing_width
from fairseq_sam.criterions.float64 import preserve_float64
from tests.analysis.test_curvature import (
    TextCNN,
    dense_rows,
    fairseq_problem,
    plain_problem,
)


def made_matrix(eigenvalues: np.ndarray, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    basis, _ = np.linalg.qr(rng.standard_normal((len(eigenvalues),) * 2))
    return basis @ np.diag(eigenvalues) @ basis.T


EIGENVALUES = np.concatenate([[50.0, 20.0, 19.9], np.linspace(5, -3, 297)])
MATRIX = made_matrix(EIGENVALUES)
SIZE = len(EIGENVALUES)


def product(vector: np.ndarray) -> np.ndarray:
    return (MATRIX @ vector).astype(vector.dtype)


class TestTopEigenvalues:
    @pytest.mark.parametrize("count", [1, 3, 20, 149, 150, 300])
    def test_of_a_made_matrix(self, count: int) -> None:
        """From a few, by Lanczos, to all of them, by the dense matrix."""
        found = eigenvalues.top_eigenvalues(product, SIZE, count, tolerance=1e-10)
        assert found == pytest.approx(np.sort(EIGENVALUES)[::-1][:count], abs=1e-8)

    def test_stated_tolerance_holds_in_float32(self) -> None:
        found = eigenvalues.top_eigenvalues(product, SIZE, 20, tolerance=1e-3, dtype=np.float32)
        wanted = np.sort(EIGENVALUES)[::-1][:20]
        assert (np.abs(found - wanted) <= 1e-3 * wanted).all()

    @pytest.mark.parametrize("count", [1, 3, 50])
    def test_beyond_what_arpack_can_address(
        self, count: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(eigenvalues, "_MOST_ENTRIES", 10)
        wanted = np.sort(EIGENVALUES)[::-1][:count]
        found = eigenvalues.top_eigenvalues(product, SIZE, count, tolerance=1e-8)
        assert found == pytest.approx(wanted, abs=1e-6)
        found = eigenvalues.top_eigenvalues(product, SIZE, count, dtype=np.float32)
        assert (np.abs(found - wanted) <= 1e-3 * wanted).all()

    def test_beyond_arpack_with_few_different_eigenvalues(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Krylov spaces that end early are continued."""
        monkeypatch.setattr(eigenvalues, "_MOST_ENTRIES", 10)
        diagonal = np.array([7.0] * 3 + [2.0] * 297)
        found = eigenvalues.top_eigenvalues(lambda v: diagonal * v, SIZE, 4, tolerance=1e-8)
        assert found == pytest.approx([7, 7, 7, 2])

    def test_negative_ones_come_last_however_large(self) -> None:
        found = eigenvalues.top_eigenvalues(lambda v: -product(v), SIZE, 5, tolerance=1e-8)
        assert found == pytest.approx(np.sort(-EIGENVALUES)[::-1][:5], abs=1e-6)

    def test_repeatable(self) -> None:
        one, two = (eigenvalues.top_eigenvalues(product, SIZE, 5, tolerance=0.1) for _ in range(2))
        assert np.array_equal(one, two)

    def test_more_than_there_are(self) -> None:
        with pytest.raises(ValueError, match="301 eigenvalues"):
            eigenvalues.top_eigenvalues(product, SIZE, 301)

    @pytest.mark.parametrize("most_entries", [10, 10**9])
    def test_not_converged(self, most_entries: int, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(eigenvalues, "_MOST_PRODUCTS", 1)
        monkeypatch.setattr(eigenvalues, "_MOST_ENTRIES", most_entries)
        with pytest.raises(eigenvalues.NotConverged, match="of 20 eigenvalues were found"):
            eigenvalues.top_eigenvalues(product, SIZE, 20, tolerance=1e-12)


def test_basis_size_follows_memory() -> None:
    size = 100_000_000
    assert eigenvalues.basis_size(50, size) == 101
    assert eigenvalues.basis_size(50, size, memory=10**12) == 101
    assert eigenvalues.basis_size(50, size, memory=64 * 10**9) == 75
    assert eigenvalues.basis_size(50, size, memory=10**9) == 60
    assert eigenvalues.basis_size(50, 70) == 70
    assert eigenvalues.basis_memory(60, size) == 65 * 400_000_000


class TestTrace:
    def test_signs_are_exact_for_a_diagonal(self) -> None:
        found = eigenvalues.hutchinson_trace(lambda v: EIGENVALUES * v, SIZE, 3)
        assert found.mean == pytest.approx(EIGENVALUES.sum())
        assert found.standard_error == pytest.approx(0, abs=1e-10)

    def test_error_is_the_theoretical_one(self) -> None:
        found = eigenvalues.hutchinson_trace(product, SIZE, 400)
        off_diagonal = (MATRIX**2).sum() - (MATRIX.diagonal() ** 2).sum()
        assert found.standard_error == pytest.approx((2 * off_diagonal / 400) ** 0.5, rel=0.15)
        assert abs(found.mean - EIGENVALUES.sum()) < 4 * found.standard_error

    def test_one_probe_has_no_error(self) -> None:
        assert eigenvalues.hutchinson_trace(product, SIZE, 1).standard_error is None


class TestDensity:
    def test_moments_are_those_of_the_matrix(self) -> None:
        found = lanczos_density(product, SIZE, num_steps=40, num_probes=200)
        assert found.weights.sum() == pytest.approx(1)
        assert (np.diff(found.nodes) >= 0).all()
        assert found.nodes[-1] == pytest.approx(50)
        assert found.nodes[0] == pytest.approx(-3, abs=0.01)
        for power in (1, 2, 3):
            ours = found.weights @ found.nodes**power
            assert ours == pytest.approx((EIGENVALUES**power).mean(), rel=0.15, abs=0.05)
        below = found.weights[found.nodes < 1].sum()
        assert below == pytest.approx((EIGENVALUES < 1).mean(), abs=0.03)

    def test_one_probe_has_the_moments_of_its_own_vector(self) -> None:
        """Gauss quadrature: m steps are exact for polynomials of degree 2m − 1."""
        starts = []

        def watched(vector: np.ndarray) -> np.ndarray:
            starts.append(vector)
            return product(vector)

        found = lanczos_density(watched, SIZE, num_steps=3, num_probes=1)
        start = starts[0]
        for power in range(6):
            wanted = start @ np.linalg.matrix_power(MATRIX, power) @ start
            assert found.weights @ found.nodes**power == pytest.approx(wanted)

    def test_a_multiple_of_the_identity_ends_after_one_step(self) -> None:
        found = lanczos_density(lambda v: 2 * v, 50, num_probes=2)
        assert found.nodes == pytest.approx([2, 2])
        grid, values = smooth(found)
        assert grid[0] < 2 < grid[-1]
        assert np.isfinite(values).all()

    def test_smooth_keeps_the_mass(self) -> None:
        grid, values = smooth(lanczos_density(product, SIZE))
        assert values.sum() * (grid[1] - grid[0]) == pytest.approx(1, abs=1e-3)

    def test_spikes_are_as_broad_beside_each_other(self) -> None:
        narrow = Density(np.array([0.0, 1.0]), np.array([0.9, 0.1]))
        wide = Density(np.array([0.0, 20.0]), np.array([0.9, 0.1]))
        sigma = smoothing_width([narrow, wide])
        assert sigma == smoothing_width([wide]) > smoothing_width([narrow])
        heights = [max(smooth(each, sigma)[1]) for each in (narrow, wide)]
        assert heights[0] == pytest.approx(heights[1], rel=0.02)


class TestHessians:
    def test_text_cnn_in_float64(self) -> None:
        torch.manual_seed(0)
        dataset = plain_problem(TextCNN())
        matrix = dense_rows(dataset, range(Hessian(dataset).size))
        wanted = np.linalg.eigvalsh(matrix)[::-1]
        calls = []
        found = hessian_spectrum(
            dataset, 8, 1e-8, 200, with_density=True, after_each=lambda: calls.append(1)
        )
        assert found.eigenvalues == pytest.approx(wanted[:8], rel=1e-7)
        assert abs(found.trace.mean - matrix.trace()) < 4 * found.trace.standard_error
        assert found.density is not None
        assert found.density.nodes[-1] == pytest.approx(wanted[0])
        assert found.density.nodes[0] == pytest.approx(wanted[-1])
        assert len(calls) > 200 + 8

    @pytest.mark.slow
    @pytest.mark.parametrize(
        ("case_name", "criterion_name"),
        [("translation", "label_smoothed_cross_entropy"), ("lstm_lm", "cross_entropy")],
    )
    def test_fairseq_models_in_float64(self, case_name: str, criterion_name: str) -> None:
        dataset = fairseq_problem(case_name, criterion_name)
        with preserve_float64(dataset.model):
            matrix = dense_rows(dataset, range(Hessian(dataset).size))
            found = hessian_spectrum(dataset, 50, 1e-6, 50)
        wanted = np.linalg.eigvalsh(matrix)[::-1]
        assert found.eigenvalues == pytest.approx(wanted[:50], rel=1e-6, abs=1e-9)
        assert abs(found.trace.mean - matrix.trace()) < 4 * found.trace.standard_error

    def test_lstm_in_float32(self) -> None:
        """What the command does: float32, against the dense float64 matrix."""
        dataset = fairseq_problem("lstm_lm", "cross_entropy")
        dataset.model.float()
        found = hessian_spectrum(dataset, 5, 1e-3, 2)
        assert found.eigenvalues.dtype == np.float64
        dataset.model.double()
        with preserve_float64(dataset.model):
            matrix: Any = Hessian(dataset)
            wanted = eigenvalues.top_eigenvalues(matrix, matrix.size, 5, 1e-10)
        assert (np.abs(found.eigenvalues - wanted) <= 1e-3 * wanted).all()
