"""Weights and accumulated gradients survive whatever happens during a step."""

from typing import Any, Callable, List, Type

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fairseq_sam.perturbation import ForwardPass, SharpnessAwareLoss, method_settings
from tests.perturbation.small_net import (
    SmallNet,
    assert_all_close,
    assert_all_equal,
    batch,
    forward_pass,
    gradient_at,
    gradients_of,
    summed_loss,
    values,
)


class RaisesInBackward(torch.autograd.Function):
    """The identity, whose backward raises what it was given."""

    @staticmethod
    def forward(ctx: Any, loss: Tensor, error: BaseException) -> Tensor:
        ctx.error = error
        return loss.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        raise ctx.error


def failing(
    net: SmallNet, x: Tensor, at_pass: int, where: str, error: BaseException
) -> Callable[[], ForwardPass]:
    """A forward pass of which one (counted from 0) raises, in its forward or its backward."""
    calls: List[int] = []

    def forward() -> ForwardPass:
        calls.append(1)
        hit = len(calls) - 1 == at_pass
        loss = summed_loss(net, x)
        if hit and where == "forward":
            raise error
        if hit and where == "backward":
            loss = RaisesInBackward.apply(loss, error)
        return ForwardPass(loss, len(x))

    return forward


passes = pytest.mark.parametrize(
    ("at_pass", "where"),
    [(0, "forward"), (0, "backward"), (1, "forward"), (1, "backward"), (2, "forward")],
)


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, MemoryError])
@passes
@pytest.mark.parametrize("accumulated", [False, True])
@pytest.mark.parametrize("method", ["sam", "ga_sam", "asam"])
def test_a_failing_inner_pass_leaves_no_trace(
    method: str, accumulated: bool, at_pass: int, where: str, error: Type[BaseException]
):
    net, x = SmallNet(), batch()
    parameters = list(net.parameters())
    if accumulated:
        summed_loss(net, batch(seed=5)).backward()
    weights, gradients = values(parameters), gradients_of(parameters)
    settings = method_settings(method, rho=0.1, num_steps=2)
    sharpness_aware = SharpnessAwareLoss(parameters, settings)
    with pytest.raises(error, match="stop here"):
        sharpness_aware.backward(failing(net, x, at_pass, where, error("stop here")))
    assert_all_equal(values(parameters), weights)
    assert_all_equal(gradients_of(parameters), gradients)

    # The next batch is none the worse for it.
    net.zero_grad(set_to_none=True)
    sharpness_aware.backward(forward_pass(net, x))
    after = gradients_of(parameters)
    net.zero_grad(set_to_none=True)
    SharpnessAwareLoss(parameters, settings).backward(forward_pass(net, x))
    assert_all_equal(after, gradients_of(parameters))


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("method", ["sam", "ga_sam"])
def test_a_failing_last_backward_leaves_the_weights_and_the_next_step_in_order(
    method: str, error: Type[BaseException]
):
    net, x = SmallNet(), batch()
    parameters = list(net.parameters())
    weights = values(parameters)
    sharpness_aware = SharpnessAwareLoss(parameters, method_settings(method, rho=0.1))

    sharpness_aware.backward(forward_pass(net, x))
    expected = gradients_of(parameters)
    with pytest.raises(error, match="stop here"):
        sharpness_aware.backward(failing(net, x, 1, "backward", error("stop here")))
    assert_all_equal(values(parameters), weights)
    net.zero_grad(set_to_none=True)
    sharpness_aware.backward(forward_pass(net, x))
    assert_all_equal(values(parameters), weights)
    assert_all_equal(gradients_of(parameters), expected)


@pytest.mark.parametrize("method", ["sam", "ga_sam"])
def test_weights_left_perturbed_are_mended_by_the_next_step(method: str):
    net, x = SmallNet(), batch()
    parameters = list(net.parameters())
    weights = values(parameters)
    sharpness_aware = SharpnessAwareLoss(parameters, method_settings(method, rho=0.1))
    sharpness_aware.weights.ascend(gradient_at(net, x)(weights))
    assert not torch.equal(net.out.weight, weights[-2])
    outcome = sharpness_aware.backward(forward_pass(net, x))
    assert float(outcome.clean.loss) == summed_loss(net, x).detach().item()
    assert_all_equal(values(parameters), weights)
    sharpness_aware.weights.restore()
    assert_all_equal(values(parameters), weights)


@settings(max_examples=40, deadline=None, database=None, derandomize=True)
@given(
    st.sampled_from(["sam", "asam", "layer_sam", "multi_step_defense", "ga_sam"]),
    st.sampled_from(["l2", "linf"]),
    st.integers(1, 3),
    st.sampled_from([1e-6, 1e-3, 0.1, 10.0]),
    st.integers(0, 1000),
)
def test_weights_are_the_same_bits_after_every_step(
    method: str, norm: str, num_steps: int, rho: float, seed: int
):
    net, x = SmallNet(seed).float(), batch(seed).float()
    parameters = list(net.parameters())
    weights = values(parameters)
    settings = method_settings(method, rho=rho, norm=norm, num_steps=num_steps)
    sharpness_aware = SharpnessAwareLoss(parameters, settings)
    for _ in range(2):
        outcome = sharpness_aware.backward(forward_pass(net, x))
        assert float(outcome.norm) > 0
        assert_all_equal(values(parameters), weights)


@pytest.mark.parametrize("method", ["sam", "ga_sam"])
def test_gradients_accumulate_over_micro_batches(method: str):
    net = SmallNet()
    parameters = list(net.parameters())
    batches = [batch(seed, size) for seed, size in ((1, 6), (2, 4), (3, 5))]
    sharpness_aware = SharpnessAwareLoss(parameters, method_settings(method, rho=0.1, num_steps=2))
    alone = []
    for x in batches:
        net.zero_grad(set_to_none=True)
        sharpness_aware.backward(forward_pass(net, x))
        alone.append(gradients_of(parameters))
    net.zero_grad(set_to_none=True)
    for x in batches:
        sharpness_aware.backward(forward_pass(net, x))
    expected = [None if each[0] is None else sum(each) for each in zip(*alone)]
    assert_all_close(gradients_of(parameters), expected, rtol=1e-14)


@pytest.mark.parametrize("method", ["sam", "ga_sam"])
def test_a_scale_multiplies_the_gradient(method: str):
    """Gradient accumulation does."""
    net, x = SmallNet(), batch()
    parameters = list(net.parameters())
    sharpness_aware = SharpnessAwareLoss(parameters, method_settings(method, rho=0.1, num_steps=2))
    sharpness_aware.backward(forward_pass(net, x))
    once = gradients_of(parameters)
    net.zero_grad(set_to_none=True)
    sharpness_aware.backward(forward_pass(net, x), scale=3)
    assert_all_close([g if g is None else g / 3 for g in gradients_of(parameters)], once, 1e-13)


@pytest.mark.parametrize("risk", ["perturbed", "mean"])
def test_sparse_gradients_of_embeddings_count_like_dense_ones(risk: str):
    words = torch.tensor([1, 3, 3])
    start = torch.arange(10, dtype=torch.float64).reshape(5, 2)
    found = []
    for sparse in (False, True):
        weight = torch.nn.Parameter(start.clone())

        def forward(weight: Tensor = weight, sparse: bool = sparse) -> ForwardPass:
            vectors = torch.nn.functional.embedding(words, weight, sparse=sparse)
            return ForwardPass(vectors.square().sum())

        settings = method_settings("sam", rho=0.5, risk=risk, num_steps=2)
        SharpnessAwareLoss([weight], settings).backward(forward)
        assert torch.equal(weight.detach(), start)
        found.append(weight.grad.to_dense())
    assert_all_close(found[1:], found[:1])


@pytest.mark.parametrize("risk", ["perturbed", "mean"])
def test_a_layer_without_gradient_in_one_of_the_passes(risk: str):
    """Layers skipped at random have a gradient in some passes only."""
    first = torch.nn.Parameter(torch.tensor([3.0, 4.0], dtype=torch.float64))
    second = torch.nn.Parameter(torch.tensor([1.0], dtype=torch.float64))
    calls: List[int] = []

    def forward() -> ForwardPass:
        calls.append(1)
        used = [first] if len(calls) % 3 == 2 else [first, second]
        return ForwardPass(sum(0.5 * (w * w).sum() for w in used))

    settings = method_settings("sam", rho=0.5, risk=risk, num_steps=2)
    sharpness_aware = SharpnessAwareLoss([first, second], settings)
    sharpness_aware.backward(forward)
    assert torch.isfinite(first.grad).all()
    assert torch.equal(first.detach(), torch.tensor([3.0, 4.0], dtype=torch.float64))
    assert torch.equal(second.detach(), torch.tensor([1.0], dtype=torch.float64))
    # η = 0.375: a_1 = η g / √26; at w + a_1 the second weight has no gradient and stays.
    root = 26**0.5
    at_last = 1 + 0.375 / root
    a = torch.tensor([3.0, 4.0], dtype=torch.float64) * (0.375 / root + 0.375 / 5)
    length = float((a.square().sum() + (0.375 / root) ** 2).sqrt())
    shrink = min(1.0, 0.5 / length)
    at_last = 1 + 0.375 / root * shrink
    expected = at_last if risk == "perturbed" else (1 + at_last) / 3
    assert float(second.grad) == pytest.approx(expected, rel=1e-12)


def test_the_plain_gradient_of_the_reference_is_the_networks():
    """Guards the tests themselves."""
    net, x = SmallNet(), batch()
    summed_loss(net, x).backward()
    names = [name for name, p in net.named_parameters() if p.grad is None]
    assert names == ["unused", "frozen"]
    parameters = list(net.parameters())
    assert_all_equal(gradient_at(net, x)(values(parameters)), gradients_of(parameters))
    assert not net.gradientless.grad.any()
