"""Loss surfaces: filter normalisation by a loop, quadratics, and weights put back."""

import doctest
import math
from typing import Any

import pytest
import torch

from fairseq_sam.analysis import landscape
from fairseq_sam.analysis.landscape import difference, filter_normalised_direction, grid, surface
from tests.analysis.closed_forms import bowl, closed_form, copies, flat, identical, valley


class TestFilterNormalisation:
    def test_filter_by_filter(self) -> None:
        torch.manual_seed(0)
        weights = [torch.randn(4, 3), torch.randn(5), torch.randn(6, 2, 3, 3), torch.randn(())]
        weights[0][2] = 0.0  # the embedding of padding, say
        direction = filter_normalised_direction(weights, seed=1)
        for w, d in zip(weights, direction):
            assert w.shape == d.shape
            for filter_of_w, filter_of_d in zip(w, d) if w.dim() >= 2 else ():
                assert float(filter_of_d.norm()) == pytest.approx(float(filter_of_w.norm()))
        assert not direction[1].any()
        assert not direction[3].any()
        # The direction of each filter is that of the normal draw.
        drawn = torch.randn(4, 3, generator=torch.Generator().manual_seed(1))
        cosine = torch.nn.functional.cosine_similarity(drawn, direction[0])
        assert torch.allclose(cosine, torch.tensor([1.0, 1.0, 0.0, 1.0]), atol=1e-6)

    def test_seeds(self) -> None:
        weights = [torch.ones(4, 3)]
        one, again, other = (filter_normalised_direction(weights, seed)[0] for seed in (1, 1, 2))
        assert torch.equal(one, again)
        assert not torch.allclose(one, other)

    def test_the_scale_of_a_filter_does_not_matter(self) -> None:
        """Filters ten times as long get a direction ten times as long."""
        weights = [torch.randn(4, 3, dtype=torch.float64)]
        (one,) = filter_normalised_direction(weights, 1)
        (ten,) = filter_normalised_direction([10 * weights[0]], 1)
        assert torch.allclose(10 * one, ten)


class TestSurface:
    def test_parabola(self) -> None:
        loss = closed_form(bowl)
        direction = filter_normalised_direction(loss.weights, 1)
        w, d = flat(loss.weights), flat(direction)
        xs = grid(-1.0, 1.0, 5)
        expected = [float(0.5 * (w + x * d).pow(2).sum()) for x in xs]
        assert list(surface(loss, [direction], [xs])) == pytest.approx(expected, rel=1e-12)
        assert expected[2] == pytest.approx(loss())

    def test_plane_with_the_last_axis_fastest(self) -> None:
        loss = closed_form(valley)
        directions = [filter_normalised_direction(loss.weights, seed) for seed in (1, 2)]
        w, (d, e) = flat(loss.weights), map(flat, directions)
        curvature = torch.linspace(0.1, 3.0, 17, dtype=torch.float64)
        xs, ys = grid(-1.0, 1.0, 3), grid(0.0, 2.0, 4)
        expected = [
            float(0.5 * (curvature * (w + x * d + y * e).pow(2)).sum()) for x in xs for y in ys
        ]
        assert list(surface(loss, directions, [xs, ys])) == pytest.approx(expected, rel=1e-12)

    def test_between_two_models(self) -> None:
        loss, other = closed_form(valley), closed_form(valley)
        with torch.no_grad():
            other.weights[0].mul_(-2.0)
            other.weights[1].add_(0.5)
        direction = difference(loss.weights, other.weights)
        found = list(surface(loss, [direction], [grid(-0.5, 1.5, 5)]))
        assert found[1] == pytest.approx(loss(), rel=1e-12)
        assert found[3] == pytest.approx(other(), rel=1e-12)

    def test_far_away(self) -> None:
        loss = closed_form(lambda w, _: (w * w).sum().exp())
        direction = filter_normalised_direction(loss.weights, 1)
        found = list(surface(loss, [direction], [[0.0, 1e3]]))
        assert math.isfinite(found[0])
        assert found[1] == math.inf

    @pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
    def test_weights_are_put_back(self, dtype: torch.dtype) -> None:
        loss = closed_form(bowl, dtype)
        origins = copies(loss.weights)
        direction = filter_normalised_direction(loss.weights, 1)
        walk = surface(loss, [direction], [grid(-1.0, 1.0, 3)])
        for _ in walk:
            assert identical(loss.weights, origins)
        assert identical(loss.weights, origins)

    def test_weights_are_put_back_after_a_failure(self) -> None:
        seen: list = []

        def formula(w: torch.Tensor, sample: Any) -> torch.Tensor:
            seen.append(w.detach().clone())
            if len(seen) == 3:
                raise RuntimeError("no more")
            return bowl(w, sample)

        loss = closed_form(formula)
        origins = copies(loss.weights)
        direction = filter_normalised_direction(loss.weights, 1)
        with pytest.raises(RuntimeError, match="no more"):
            list(surface(loss, [direction], [[0.5, 1.0]]))
        assert not torch.equal(seen[2], flat(origins))
        assert identical(loss.weights, origins)

    def test_impossible(self) -> None:
        loss = closed_form(bowl)
        with pytest.raises(ValueError, match="0 directions"):
            next(surface(loss, [], []))
        with pytest.raises(ValueError, match="points is 1"):
            grid(0.0, 1.0, 1)
        with pytest.raises(ValueError, match="different shapes"):
            difference([torch.ones(2)], [torch.ones(3)])


def test_examples() -> None:
    assert doctest.testmod(landscape).failed == 0
