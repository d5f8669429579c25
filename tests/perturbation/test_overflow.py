"""Inner passes that overflow: the batch is trained on unperturbed, and the outcome says so."""

import math
from typing import Any, Callable, List

import pytest
import torch
from torch import Tensor

from fairseq_sam.perturbation import (
    ForwardPass,
    PerturbedWeights,
    SharpnessAwareLoss,
    method_settings,
)
from tests.perturbation.small_net import (
    METHODS,
    SmallNet,
    assert_all_close,
    assert_all_equal,
    batch,
    forward_pass,
    gradient_at,
    gradients_of,
    summed_loss,
    values,
    watching,
)

every_risk = pytest.mark.parametrize("risk", ["perturbed", "mean"])
every_norm = pytest.mark.parametrize("norm", ["l2", "linf"])


class SpoilsGradient(torch.autograd.Function):
    """The identity, with something non-finite in one entry of its gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, value: float) -> Tensor:
        ctx.value = value
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        gradient = gradient.clone()
        gradient.view(-1)[0] = ctx.value
        return gradient, None


def spoiling(
    net: SmallNet, x: Tensor, at_pass: int, value: float, weight: Tensor
) -> Callable[[], ForwardPass]:
    """A forward pass of which one (counted from 0) has a bad gradient for a weight."""
    calls: List[int] = []

    def forward() -> ForwardPass:
        calls.append(1)
        loss = summed_loss(net, x)
        if len(calls) - 1 == at_pass:
            loss = loss + 0.0 * SpoilsGradient.apply(weight, value).sum()
        return ForwardPass(loss, len(x))

    return forward


@every_risk
@every_norm
@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
@pytest.mark.parametrize(("num_steps", "at_pass"), [(1, 0), (2, 0), (2, 1), (3, 1), (3, 2)])
@pytest.mark.parametrize("method", ["sam", "asam", "layer_sam", "ga_sam"])
def test_an_overflow_in_an_inner_pass_gives_the_plain_gradient(
    method: str, num_steps: int, at_pass: int, value: float, norm: str, risk: str
):
    net, x = SmallNet(), batch()
    parameters = list(net.parameters())
    before = values(parameters)
    plain = gradient_at(net, x)(before)
    settings = method_settings(method, rho=0.1, norm=norm, risk=risk, num_steps=num_steps)
    sharpness_aware = SharpnessAwareLoss(parameters, settings)
    seen: List[List[Tensor]] = []
    forward = spoiling(net, x, at_pass, value, net.hidden.weight)
    outcome = sharpness_aware.backward(watching(forward, parameters, seen))
    assert not bool(outcome.finite)
    assert float(outcome.norm) == 0
    assert_all_equal(seen[-1], before)
    assert float(outcome.perturbed.loss) == float(outcome.clean.loss)
    assert_all_equal(gradients_of(parameters), plain)
    assert_all_equal(values(parameters), before)

    # It does not stick.
    net.zero_grad(set_to_none=True)
    outcome = sharpness_aware.backward(forward_pass(net, x))
    assert bool(outcome.finite)
    assert float(outcome.norm) > 0
    assert all(g is None or bool(torch.isfinite(g).all()) for g in gradients_of(parameters))


@every_risk
@pytest.mark.parametrize("at_pass", [0, 1])
def test_an_overflow_keeps_what_earlier_micro_batches_left(at_pass: int, risk: str):
    net, x = SmallNet(), batch()
    parameters = list(net.parameters())
    summed_loss(net, batch(seed=5)).backward()
    accumulated = gradients_of(parameters)
    plain = gradient_at(net, x)(values(parameters))
    settings = method_settings("sam", rho=0.1, risk=risk, num_steps=2)
    forward = spoiling(net, x, at_pass, math.inf, net.hidden.weight)
    SharpnessAwareLoss(parameters, settings).backward(forward)
    expected = [None if a is None else a + g for a, g in zip(accumulated, plain)]
    assert_all_close(gradients_of(parameters), expected, rtol=1e-14)


@pytest.mark.parametrize("at_pass", [0, 1])
def test_an_overflow_in_a_weight_left_unperturbed_counts_too(at_pass: int):
    """Under the mean risk its gradient of the inner passes enters the sum as well."""
    net, x = SmallNet(), batch()
    parameters = list(net.parameters())
    plain = gradient_at(net, x)(values(parameters))
    chosen = [p for p in parameters if p is not net.hidden.weight]
    settings = method_settings("sam", rho=0.1, risk="mean", num_steps=2)
    sharpness_aware = SharpnessAwareLoss(parameters, settings, perturbed=chosen)
    outcome = sharpness_aware.backward(spoiling(net, x, at_pass, math.inf, net.hidden.weight))
    assert not bool(outcome.finite)
    assert_all_equal(gradients_of(parameters), plain)


def test_a_batch_without_gradients_does_not_report_the_batch_before():
    net, x = SmallNet(), batch()
    unrelated = torch.nn.Parameter(torch.ones(2, dtype=torch.float64))
    parameters = [unrelated, *net.parameters()]
    chosen = list(net.parameters())
    sharpness_aware = SharpnessAwareLoss(parameters, method_settings("sam"), perturbed=chosen)
    for value in (math.inf, 0.0):
        forward = spoiling(net, x, 0, value, net.hidden.weight)
        sharpness_aware.backward(forward)
        outcome = sharpness_aware.backward(lambda: ForwardPass(unrelated.sum()))
        assert bool(outcome.finite)
        assert float(outcome.norm) == 0


@every_norm
@every_risk
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("num_steps", [1, 2])
def test_loss_scaling_scales_the_gradient_and_nothing_else(
    num_steps: int, method: str, risk: str, norm: str
):
    net, x = SmallNet(), batch()
    parameters = list(net.parameters())
    settings = method_settings(method, rho=0.02, norm=norm, risk=risk, num_steps=num_steps)
    sharpness_aware = SharpnessAwareLoss(parameters, settings)
    seen: List[List[Tensor]] = []
    forward = watching(forward_pass(net, x), parameters, seen)
    unscaled = sharpness_aware.backward(forward)
    moved, gradients = seen[-1], gradients_of(parameters)
    net.zero_grad(set_to_none=True)
    scaled = sharpness_aware.backward(forward, scale_loss=lambda loss: loss * 1024)
    assert_all_close(seen[-1], moved)
    assert float(scaled.norm) == pytest.approx(float(unscaled.norm), rel=1e-12)
    for ours, theirs in ((scaled.clean, unscaled.clean), (scaled.perturbed, unscaled.perturbed)):
        assert ours.loss.item() == pytest.approx(theirs.loss.item(), rel=1e-12)
    found = [None if g is None else g / 1024 for g in gradients_of(parameters)]
    assert_all_close(found, gradients)


@every_risk
def test_inner_passes_are_scaled_against_underflow(risk: str):
    """Half-precision gradients below 6e-8 vanish unless the inner passes are scaled too."""
    w = torch.nn.Parameter(torch.tensor([1.0, 2.0], dtype=torch.float16))

    def forward() -> ForwardPass:
        return ForwardPass((w * torch.tensor([3.0, 4.0], dtype=torch.float16)).float().sum() * 1e-9)

    settings = method_settings("sam", rho=1.0, risk=risk)
    plain = SharpnessAwareLoss([w], settings).backward(forward)
    assert float(plain.norm) == 0
    scale_loss = lambda loss: loss * 2.0**20  # noqa: E731
    scaled = SharpnessAwareLoss([w], settings).backward(forward, scale_loss=scale_loss)
    assert float(scaled.norm) == pytest.approx(1.0, rel=0.01)


def test_half_precision_gradients_that_overflow_their_own_norm_are_finite():
    """‖g‖² of fp16 gradients exceeds 65504 long before any gradient does."""
    weights = [torch.ones(1000, dtype=torch.float16)]
    perturbed = PerturbedWeights(weights, method_settings("sam", rho=1.0))
    perturbed.ascend([torch.full((1000,), 3e4, dtype=torch.float16)])
    assert bool(perturbed.finite)
    assert float(perturbed.norm) == pytest.approx(1.0, rel=1e-3)


@pytest.mark.parametrize("size", [0, torch.tensor(0), torch.tensor(0.0)])
def test_a_batch_without_targets_moves_nothing(size: Any):
    net, x = SmallNet(), batch()
    parameters = list(net.parameters())
    before = values(parameters)
    sharpness_aware = SharpnessAwareLoss(parameters, method_settings("ga_sam", num_steps=2))
    outcome = sharpness_aware.backward(lambda: ForwardPass(summed_loss(net, x) * 0.0, size))
    assert bool(outcome.finite)
    assert float(outcome.norm) == 0
    assert all(g is None or not g.any() for g in gradients_of(parameters))
    assert_all_equal(values(parameters), before)


@pytest.mark.parametrize("size", [6, 6.0, torch.tensor(6), torch.tensor(6.0)])
def test_sample_sizes_may_be_numbers_or_tensors(size: Any):
    net, x = SmallNet(), batch()
    parameters = list(net.parameters())
    settings = method_settings("ga_sam", rho=0.02)
    found = []
    for each in (6, size):
        net.zero_grad(set_to_none=True)
        SharpnessAwareLoss(parameters, settings).backward(
            lambda each=each: ForwardPass(summed_loss(net, x), each)
        )
        found.append(gradients_of(parameters))
    assert_all_close(found[1], found[0])
