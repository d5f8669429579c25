"""Several mini-batches, or several sentences, with a perturbation each and one gradient."""

import contextlib
from typing import Any, Callable, Iterator, List

import pytest
import torch
from torch import Tensor, nn

from fairseq_sam.perturbation import (
    ForwardPass,
    PerturbationSettings,
    SharpnessAwareLoss,
    method_settings,
)
from tests.perturbation import reference
from tests.perturbation.small_net import (
    MIXTURES,
    SmallNet,
    assert_all_close,
    assert_all_equal,
    batch,
    forward_pass,
    gradients_of,
    summed_loss,
    values,
    watching,
)

every_norm = pytest.mark.parametrize("norm", ["l2", "linf"])
every_risk = pytest.mark.parametrize("risk", ["perturbed", "mean"])
every_step = pytest.mark.parametrize("num_steps", [1, 2, 3])
every_reduction = pytest.mark.parametrize("loss_reduction", ["mean", "sum"])


@every_norm
@every_risk
@every_reduction
@pytest.mark.parametrize(("scale", "granularity"), MIXTURES)
def test_scaled_mini_batches_are_perturbed_as_each_of_them_alone(
    scale: str, granularity: Any, loss_reduction: str, risk: str, norm: str
):
    """A loss divided by N would be perturbed otherwise where the scale looks at the gradient."""
    net, count = SmallNet(), 3
    parameters = list(net.parameters())
    forwards = [forward_pass(net, batch(seed, size)) for seed, size in ((1, 6), (2, 4), (3, 5))]
    settings = PerturbationSettings(
        rho=0.02,
        norm=norm,
        scale=scale,
        granularity=granularity,
        risk=risk,
        num_steps=2,
        loss_reduction=loss_reduction,
    )
    sharpness_aware = SharpnessAwareLoss(parameters, settings, modules=[net])
    alone, norms, places = [], [], []
    for forward in forwards:
        net.zero_grad(set_to_none=True)
        norms.append(sharpness_aware.backward(watching(forward, parameters, places)).norm)
        alone.append(gradients_of(parameters))
    expected = [None if each[0] is None else sum(each) / count for each in zip(*alone)]

    net.zero_grad(set_to_none=True)
    found: List[List[Tensor]] = []
    for forward, norm_alone in zip(forwards, norms):
        watched = watching(forward, parameters, found)
        outcome = sharpness_aware.backward(watched, scale=1 / count)
        assert float(outcome.norm) == pytest.approx(float(norm_alone), rel=1e-12)
    assert_all_close(gradients_of(parameters), expected, rtol=1e-12)
    assert len(found) == len(places) == 9
    for ours, theirs in zip(found, places):
        assert_all_close(ours, theirs, rtol=1e-12)


@every_risk
@pytest.mark.parametrize("method", ["ga_sam", "layer_sam", "delta_sam"])
def test_a_scale_and_loss_scaling_go_together(method: str, risk: str):
    net, x = SmallNet(), batch()
    parameters = list(net.parameters())
    settings = method_settings(method, rho=0.02, risk=risk, num_steps=2)
    found = []
    for how in ({}, {"scale": 0.25, "scale_loss": lambda loss: loss * 1024}):
        net.zero_grad(set_to_none=True)
        with torch.random.fork_rng():
            torch.manual_seed(3)
            SharpnessAwareLoss(parameters, settings).backward(
                forward_pass(net, x), per_sentence=sentence(net, x), **how
            )
        found.append(gradients_of(parameters))
    assert_all_close([g if g is None else g / 256 for g in found[1]], found[0], rtol=1e-9)


def sentence(net: nn.Module, x: Tensor, first_class: int = 0) -> Callable[[], ForwardPass]:
    """The forward pass of some sentences of which the first has the given class."""

    def forward() -> ForwardPass:
        target = (first_class + torch.arange(len(x))) % 3
        losses = nn.functional.cross_entropy(net(x), target, reduction="none")
        return ForwardPass(losses.sum(), len(x), None, losses)

    return forward


def sentences(net: nn.Module, x: Tensor) -> List[Callable[[], ForwardPass]]:
    return [sentence(net, x[place : place + 1], place % 3) for place in range(len(x))]


PARTS = [
    {},
    {"norm": "linf", "scale": "gradient-strength", "granularity": "layer", "rho": 0.02},
    {"scale": "weight", "granularity": "element"},
]


@every_risk
@every_step
@pytest.mark.parametrize("parts", PARTS)
def test_a_perturbation_for_each_sentence_is_a_loop_over_sentences(
    parts: Any, num_steps: int, risk: str
):
    net, x = SmallNet(), batch()
    parameters = list(net.parameters())
    before = values(parameters)
    parts = {"rho": 0.1, "risk": risk, "num_steps": num_steps, **parts}
    forwards = sentences(net, x)
    alone = []
    for forward in forwards:
        net.zero_grad(set_to_none=True)
        SharpnessAwareLoss(parameters, PerturbationSettings(**parts)).backward(forward)
        alone.append(gradients_of(parameters))
    expected = [None if each[0] is None else sum(each) for each in zip(*alone)]

    net.zero_grad(set_to_none=True)
    each = SharpnessAwareLoss(parameters, method_settings("per_instance_sam", **parts))
    outcomes = each.backward_each(forwards)
    assert_all_close(gradients_of(parameters), expected, rtol=1e-13)
    assert_all_equal(values(parameters), before)
    assert len(outcomes) == len(x)
    total = sum(float(outcome.clean.loss) for outcome in outcomes)
    assert total == pytest.approx(summed_loss(net, x).item())
    net.zero_grad(set_to_none=True)
    each.backward_each(forwards, scale=0.5, scale_loss=lambda loss: loss * 64)
    assert_all_close([g if g is None else g / 32 for g in gradients_of(parameters)], expected)


@every_risk
@every_step
def test_a_perturbation_for_each_sentence_is_that_of_the_slow_reference(num_steps: int, risk: str):
    """δ-SAM Eq. 2: the sum over sentences of the risk under a perturbation of its own."""
    net, x = SmallNet(), batch()
    parameters = list(net.parameters())
    before = values(parameters)

    def gradient_at(forward: Callable[[], ForwardPass], weights: List[Tensor]) -> List[Any]:
        with torch.no_grad():
            for parameter, weight in zip(parameters, weights):
                parameter.copy_(weight)
        net.zero_grad(set_to_none=True)
        forward().loss.backward()
        return gradients_of(parameters)

    found = [
        reference.sharpness_aware_gradient(
            lambda weights, forward=forward: gradient_at(forward, weights),
            before,
            0.1,
            "l2",
            "none",
            None,
            risk,
            num_steps,
        )[0]
        for forward in sentences(net, x)
    ]
    expected = [None if each[0] is None else sum(each) for each in zip(*found)]
    gradient_at(sentence(net, x), before)
    net.zero_grad(set_to_none=True)
    settings = method_settings("per_instance_sam", rho=0.1, risk=risk, num_steps=num_steps)
    SharpnessAwareLoss(parameters, settings).backward_each(sentences(net, x))
    assert_all_close(gradients_of(parameters), expected)


def test_a_perturbation_for_each_sentence_asks_for_the_sentences():
    net, x = SmallNet(), batch()
    before = values(net.parameters())
    sharpness_aware = SharpnessAwareLoss(net.parameters(), method_settings("per_instance_sam"))
    with pytest.raises(ValueError, match=r"per_instance.*backward_each"):
        sharpness_aware.backward(forward_pass(net, x))
    assert_all_equal(values(net.parameters()), before)
    assert all(parameter.grad is None for parameter in net.parameters())


@every_step
def test_workers_exchange_once_for_all_sentences(num_steps: int):
    """In the last backward pass of the last sentence."""
    net, x = SmallNet(), batch(size=3)
    level, seen = [], []

    @contextlib.contextmanager
    def no_sync() -> Iterator[None]:
        level.append(1)
        yield
        level.pop()

    net.out.weight.register_hook(lambda _: seen.append(bool(level)))
    settings = method_settings("per_instance_sam", num_steps=num_steps)
    SharpnessAwareLoss(net.parameters(), settings).backward_each(sentences(net, x), no_sync=no_sync)
    assert seen == [True] * (3 * (num_steps + 1) - 1) + [False]
