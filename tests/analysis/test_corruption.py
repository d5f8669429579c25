"""Corrupted weights: closed forms, a slow reference, exact radii, and weights put back."""

import doctest
import math
from typing import Any

import pytest
import torch

from fairseq_sam.analysis import corruption
from fairseq_sam.analysis.corruption import adversarial_corruption, random_corruption
from tests.analysis.closed_forms import (
    CURVATURE,
    SLOPE,
    bowl,
    closed_form,
    copies,
    flat,
    identical,
    linear,
    valley,
)

NORMS = ("l2", "linf")


def moved(weights: Any, origins: Any) -> torch.Tensor:
    return flat(weights) - flat(origins)


def size(vector: torch.Tensor, norm: str) -> float:
    return float(vector.norm() if norm == "l2" else vector.abs().max())


@pytest.mark.parametrize("num_steps", [1, 2, 7])
class TestClosedForms:
    """Where the gradient does not turn, any number of steps ends at the maximum."""

    def test_linear_loss(self, num_steps: int) -> None:
        loss = closed_form(linear)
        before = loss()
        with adversarial_corruption(loss, 0.3, "l2", num_steps):
            assert loss() - before == pytest.approx(0.3 * float(SLOPE.norm()), rel=1e-12)
        with adversarial_corruption(loss, 0.3, "linf", num_steps):
            assert loss() - before == pytest.approx(0.3 * float(SLOPE.abs().sum()), rel=1e-12)

    def test_round_bowl(self, num_steps: int) -> None:
        loss = closed_form(bowl)
        distance = float(flat(loss.weights).norm())
        with adversarial_corruption(loss, 0.3, "l2", num_steps):
            assert loss() == pytest.approx(0.5 * (distance + 0.3) ** 2, rel=1e-12)

    @pytest.mark.parametrize("norm", NORMS)
    def test_slow_reference(self, num_steps: int, norm: str) -> None:
        loss = closed_form(valley)
        origins = copies(loss.weights)
        w, rho = flat(loss.weights), 0.8
        a = torch.zeros_like(w)
        for _ in range(num_steps):
            gradient = CURVATURE * (w + a)
            direction = gradient / gradient.norm() if norm == "l2" else gradient.sign()
            a = a + 1.5 * rho / num_steps * direction
            a = a * min(1.0, rho / float(a.norm())) if norm == "l2" else a.clamp(-rho, rho)
        assert size(a, norm) == pytest.approx(rho)  # or else it would be moved out
        with adversarial_corruption(loss, rho, norm, num_steps):
            assert torch.allclose(moved(loss.weights, origins), a, rtol=0, atol=1e-12)


class TestRadii:
    @pytest.mark.parametrize("norm", NORMS)
    @pytest.mark.parametrize("rho", [1e-4, 0.05, 20.0])
    @pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
    def test_met_and_told(self, norm: str, rho: float, dtype: torch.dtype) -> None:
        loss = closed_form(valley, dtype)
        origins = copies(loss.weights)
        rounding = torch.finfo(dtype).eps * (float(flat(origins).abs().max()) + rho)
        for context in (
            adversarial_corruption(loss, rho, norm, 3),
            random_corruption(loss.weights, rho, norm),
        ):
            with context as told:
                after = copies(loss.weights)
            every = [(w.double() - o.double()).flatten() for w, o in zip(after, origins)]
            found = size(torch.cat(every), norm)
            assert told == pytest.approx(found, rel=1e-12)
            assert found == pytest.approx(rho, rel=0, abs=2 * rounding)

    def test_an_ascent_that_ends_inside_is_moved_out(self) -> None:
        w = flat(closed_form(bowl).weights)
        top = w.clone()
        top[0] += 0.3  # the maximum is inside the ball, and the steps dance around it
        loss = closed_form(lambda w, _: -(w - top.to(w)).pow(2).sum())
        origins = copies(loss.weights)
        with adversarial_corruption(loss, 1.0, "l2", 10) as told:
            a = moved(loss.weights, origins)
        assert told == pytest.approx(1.0, rel=1e-12)
        assert float(a[0]) == pytest.approx(1.0)

    def test_weights_without_gradient_stay(self) -> None:
        loss = closed_form(linear)
        origins = copies(loss.weights)
        for norm in NORMS:
            with adversarial_corruption(loss, 0.5, norm, 2):
                assert float(moved(loss.weights, origins)[-1]) == 0.0
                assert torch.equal(loss.weights[2], origins[2])

    def test_no_gradient_at_all(self) -> None:
        loss = closed_form(lambda w, _: (0.0 * w).sum())
        origins = copies(loss.weights)
        for norm in NORMS:
            with adversarial_corruption(loss, 0.5, norm, 2) as told:
                assert told == 0.0
                assert identical(loss.weights, origins)

    @pytest.mark.parametrize("rho", [0.0, -0.1, math.nan, math.inf])
    def test_impossible(self, rho: float) -> None:
        loss = closed_form(bowl)
        with pytest.raises(ValueError, match=r"rho is .*finite number above 0"):
            adversarial_corruption(loss, rho).__enter__()
        with pytest.raises(ValueError, match=r"rho is .*finite number above 0"):
            random_corruption(loss.weights, rho).__enter__()
        with pytest.raises(ValueError, match="norm is l1"):
            random_corruption(loss.weights, 0.1, "l1").__enter__()
        with pytest.raises(ValueError, match="num_steps is 0"):
            adversarial_corruption(loss, 0.1, "l2", 0).__enter__()


class TestRandom:
    def test_one_direction_for_all_radii(self) -> None:
        loss = closed_form(bowl)
        origins = copies(loss.weights)
        found = []
        for rho, seed in ((1e-2, 1), (1.0, 1), (1.0, 2)):
            with random_corruption(loss.weights, rho, "l2", seed):
                found.append(moved(loss.weights, origins) / rho)
        assert torch.allclose(found[0], found[1], rtol=0, atol=1e-12)
        assert not torch.allclose(found[1], found[2], rtol=0, atol=0.1)

    def test_coins_of_linf(self) -> None:
        loss = closed_form(bowl)
        origins = copies(loss.weights)
        with random_corruption(loss.weights, 0.25, "linf"):
            a = moved(loss.weights, origins)
        assert torch.allclose(a.abs(), torch.full_like(a, 0.25), rtol=0, atol=1e-12)
        assert 0 < int((a > 0).sum()) < len(a)

    def test_normal_directions_have_no_favourites(self) -> None:
        """Of a round bowl, the mean growth over directions is ρ²/2: the slope averages out."""
        loss = closed_form(bowl)
        before, grown = loss(), []
        for seed in range(200):
            with random_corruption(loss.weights, 0.5, "l2", seed):
                grown.append(loss() - before)
        unused = 2 / 19  # its share of the squared radius moves nothing
        error = 0.5 * float(flat(loss.weights).norm()) / math.sqrt(19 * 200)
        assert sum(grown) / 200 == pytest.approx(0.125 * (1 - unused), abs=4 * error)


class Failure(Exception):
    pass


class TestRestored:
    @pytest.mark.parametrize("norm", NORMS)
    @pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
    def test_bit_for_bit(self, norm: str, dtype: torch.dtype) -> None:
        loss = closed_form(valley, dtype)
        origins = copies(loss.weights)
        loss.weights[0].grad = torch.ones_like(loss.weights[0])
        for context in (
            adversarial_corruption(loss, 0.3, norm, 3),
            random_corruption(loss.weights, 0.3, norm),
        ):
            with context:
                assert not identical(loss.weights, origins)
            assert identical(loss.weights, origins)
        assert torch.equal(loss.weights[0].grad, torch.ones_like(loss.weights[0]))
        assert loss.weights[1].grad is None

    def test_after_a_failure_inside(self) -> None:
        loss = closed_form(valley)
        origins = copies(loss.weights)
        for context in (
            adversarial_corruption(loss, 0.3),
            random_corruption(loss.weights, 0.3),
        ):
            with pytest.raises(Failure), context:
                raise Failure
            assert identical(loss.weights, origins)

    @pytest.mark.parametrize("failing_call", [1, 4, 5])
    def test_after_a_failure_of_the_model(self, failing_call: int) -> None:
        calls = iter(range(1, 100))

        def formula(w: torch.Tensor, sample: Any) -> torch.Tensor:
            if next(calls) == failing_call:
                raise Failure
            return valley(w, sample)

        loss = closed_form(formula)
        origins = copies(loss.weights)
        with pytest.raises(Failure):
            adversarial_corruption(loss, 0.3, "l2", 5).__enter__()
        assert identical(loss.weights, origins)

    def test_after_a_gradient_that_is_not_finite(self) -> None:
        # √ has an infinite slope where the first step of 1 leads
        loss = closed_form(lambda w, _: -(w - w.detach() + 1e200).pow(2).sum())
        origins = copies(loss.weights)
        with pytest.raises(FloatingPointError, match="not finite"):
            adversarial_corruption(loss, 1.0, "l2", 2).__enter__()
        assert identical(loss.weights, origins)


def test_examples() -> None:
    assert doctest.testmod(corruption).failed == 0
