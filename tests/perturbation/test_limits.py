"""Where two methods must agree, and where a method must be the plain gradient."""

from typing import Any, List

import pytest
import torch
from torch import Tensor

from fairseq_sam.perturbation import (
    PerturbationSettings,
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
    generator,
    gradient_at,
    gradients_of,
    values,
    watching,
)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=generator(seed))


def moved(weights: List[Tensor], gradients: List[List[Tensor]], **settings: Any) -> List[Tensor]:
    """Returns a_K after ascending along the given gradients."""
    weights = values(weights)
    before = values(weights)
    perturbed = PerturbedWeights(weights, PerturbationSettings(**settings))
    for step in gradients:
        perturbed.ascend([g.clone() for g in step])
    return [w - b for w, b in zip(weights, before)]


@pytest.mark.parametrize("num_steps", [1, 2])
@pytest.mark.parametrize("norm", ["l2", "linf"])
@pytest.mark.parametrize("method", METHODS)
def test_a_vanishing_radius_gives_the_plain_gradient(method: str, norm: str, num_steps: int):
    net, x = SmallNet(), batch()
    parameters = list(net.parameters())
    plain = gradient_at(net, x)(values(parameters))
    settings = method_settings(method, rho=1e-9, norm=norm, num_steps=num_steps)
    SharpnessAwareLoss(parameters, settings).backward(forward_pass(net, x))
    assert_all_close(gradients_of(parameters), plain, rtol=1e-6)


@pytest.mark.parametrize("num_steps", [1, 2])
@pytest.mark.parametrize("norm", ["l2", "linf"])
@pytest.mark.parametrize("method", METHODS)
def test_a_radius_of_zero_gives_the_plain_gradient(method: str, norm: str, num_steps: int):
    net, x = SmallNet(), batch()
    parameters = list(net.parameters())
    before = values(parameters)
    plain = gradient_at(net, x)(before)
    settings = method_settings(method, rho=0.0, norm=norm, num_steps=num_steps)
    SharpnessAwareLoss(parameters, settings).backward(forward_pass(net, x))
    assert_all_close(gradients_of(parameters), plain, rtol=1e-14)
    assert_all_equal(values(parameters), before)


@pytest.mark.parametrize("norm", ["l2", "linf"])
@pytest.mark.parametrize("granularity", ["layer", "model"])
@pytest.mark.parametrize("num_steps", [1, 3])
def test_one_tensor_layer_sam_is_sam_with_a_radius_of_its_own(
    num_steps: int, granularity: str, norm: str
):
    w, steps = normal(3, 4), [[normal(3, 4, seed=k + 1)] for k in range(num_steps)]
    radius = {
        "weight": w.norm(),
        "weight-over-gradient": w.norm() / steps[0][0].norm(),
        "gradient-strength": 1 / steps[0][0].norm(),
        "inverse-gradient": 1 / steps[0][0].norm(),
        "weight-strength": w.norm() / 12**0.5,
    }
    for scale, factor in radius.items():
        ours = moved(
            [w],
            steps,
            rho=0.3,
            norm=norm,
            scale=scale,
            granularity=granularity,
            num_steps=num_steps,
        )
        sam = moved([w], steps, rho=0.3 * float(factor), norm=norm, num_steps=num_steps)
        assert_all_close(ours, sam, rtol=1e-12)


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_the_single_l2_or_linf_step_of_every_model_wise_scale_is_parallel_to_sams(norm: str):
    weights, gradients = (
        [normal(2, 3), normal(4, seed=1)],
        [[normal(2, 3, seed=2), normal(4, seed=3)]],
    )
    sam = torch.cat([a.flatten() for a in moved(weights, gradients, rho=1.0, norm=norm)])
    for scale in ("weight", "weight-over-gradient", "gradient-strength", "inverse-gradient"):
        ours = moved(weights, gradients, rho=1.0, norm=norm, scale=scale, granularity="model")
        ours = torch.cat([a.flatten() for a in ours])
        assert float(torch.cosine_similarity(ours, sam, dim=0)) == pytest.approx(1.0, abs=1e-12)


@pytest.mark.parametrize("norm", ["l2", "linf"])
@pytest.mark.parametrize("scale", ["weight", "gradient-strength", "weight-over-gradient"])
class TestGranularitiesThatCoincide:
    def agree(self, shape: Any, norm: str, scale: str, one: str, other: str) -> None:
        weights = [normal(*shape), normal(*shape, seed=9)]
        steps = [[normal(*shape, seed=2 * k + 1), normal(*shape, seed=2 * k + 2)] for k in range(2)]
        parts = {"rho": 0.3, "norm": norm, "scale": scale, "num_steps": 2}
        assert_all_close(
            moved(weights, steps, granularity=one, **parts),
            moved(weights, steps, granularity=other, **parts),
            rtol=1e-12,
        )

    def test_a_matrix_of_one_row_is_one_filter(self, norm: str, scale: str):
        self.agree((1, 5), norm, scale, "filter", "layer")

    def test_filters_of_one_weight_are_elements(self, norm: str, scale: str):
        self.agree((5, 1, 1), norm, scale, "filter", "element")

    def test_a_vector_has_no_filters(self, norm: str, scale: str):
        self.agree((5,), norm, scale, "filter", "element")

    def test_a_scalar_is_everything_but_the_model(self, norm: str, scale: str):
        self.agree((), norm, scale, "filter", "element")
        self.agree((), norm, scale, "layer", "element")


@pytest.mark.parametrize("norm", ["l2", "linf"])
@pytest.mark.parametrize(
    ("scale", "granularity"), [("none", None), ("weight", "filter"), ("gradient-strength", "layer")]
)
def test_steps_along_a_constant_gradient_end_where_one_step_ends(
    norm: str, scale: str, granularity: Any
):
    """On a linear loss a_1 of one step maximises it on S already."""
    weights, gradient = [normal(2, 3), normal(4, seed=1)], [normal(2, 3, seed=2), normal(4, seed=3)]
    parts = {"rho": 0.3, "norm": norm, "scale": scale, "granularity": granularity}
    once = moved(weights, [gradient], **parts)
    for num_steps in (2, 3, 5):
        assert_all_close(
            moved(weights, [gradient] * num_steps, num_steps=num_steps, **parts), once, rtol=1e-12
        )


@pytest.mark.parametrize("method", METHODS)
def test_the_loss_scale_and_the_batch_size_cancel(method: str):
    """A loss summed over twice the sentences, with twice the sample size, is the same mean."""
    net, x = SmallNet(), batch()
    parameters = list(net.parameters())
    settings = method_settings(method, rho=1e-3, num_steps=2)
    SharpnessAwareLoss(parameters, settings).backward(forward_pass(net, x))
    once = gradients_of(parameters)
    net.zero_grad(set_to_none=True)
    SharpnessAwareLoss(parameters, settings).backward(forward_pass(net, torch.cat([x, x])))
    twice = [None if p.grad is None else p.grad / 2 for p in parameters]
    assert_all_close(twice, once)


@pytest.mark.parametrize("num_steps", [1, 2])
@pytest.mark.parametrize("risk", ["perturbed", "mean"])
@pytest.mark.parametrize("method", METHODS)
def test_weights_that_thaw_between_steps_are_perturbed_from_then_on(
    method: str, risk: str, num_steps: int
):
    """As in gradual unfreezing: the gradient is that of an object made after the thaw."""
    net, x = SmallNet(), batch()
    parameters = list(net.parameters())
    settings = method_settings(method, rho=0.02, risk=risk, num_steps=num_steps)
    thawing = [net.conv.weight, net.conv.bias, net.hidden.weight]
    for weight in thawing:
        weight.requires_grad_(False)
    sharpness_aware = SharpnessAwareLoss(parameters, settings, modules=[net])
    seen: List[List[Tensor]] = []
    forward = watching(forward_pass(net, x), thawing, seen)
    for frozen in (True, False, True, False):
        for weight in thawing:
            weight.requires_grad_(not frozen)
        before, found = values(thawing), []
        for each in (sharpness_aware, SharpnessAwareLoss(parameters, settings, modules=[net])):
            net.zero_grad(set_to_none=True)
            outcome = each.backward(forward)
            found.append([*gradients_of(parameters), outcome.norm])
        assert_all_equal(found[0], found[1])
        assert all((weight.grad is None) == frozen for weight in thawing)
        moved = [not torch.equal(one, other) for one, other in zip(seen[-1], before)]
        assert moved == [not frozen] * len(thawing)


@pytest.mark.parametrize("risk", ["perturbed", "mean"])
@pytest.mark.parametrize("method", METHODS)
def test_a_weight_that_is_given_twice_counts_once(method: str, risk: str):
    net, x = SmallNet(), batch()
    parameters = list(net.parameters())
    settings = method_settings(method, rho=0.02, risk=risk, num_steps=2)
    twice = [*parameters, net.hidden.weight, *parameters]
    found = []
    for each in (parameters, twice):
        for perturbed in (None, each):
            net.zero_grad(set_to_none=True)
            sharpness_aware = SharpnessAwareLoss(each, settings, perturbed=perturbed)
            outcome = sharpness_aware.backward(forward_pass(net, x))
            found.append([*gradients_of(parameters), outcome.norm])
    for other in found[1:]:
        assert_all_equal(other, found[0])


@pytest.mark.parametrize("scale", [{}, {"scale": "weight", "granularity": "element"}])
@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_of_large_weights_too_the_rise_is_that_asked_for(norm: str, scale: Any):
    """In float32, of which torch's norm on a CPU adds up all entries one by one."""
    count = 2**22 + 5
    gradient = torch.randn(count, generator=generator(0))
    weight = torch.ones(count)
    perturbed = PerturbedWeights([weight], PerturbationSettings(norm=norm, rho=1.0, **scale))
    perturbed.ascend([gradient], radius=1e9, rise=torch.tensor(5e6))
    rise = float(torch.dot(gradient.double(), weight.double() - 1))
    assert rise == pytest.approx(5e6, rel=1e-5)
