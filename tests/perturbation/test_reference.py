"""Gradients and trajectories against hand calculation and against slow loops, in float64."""

import math
from typing import Any, Callable, List

import pytest
import torch

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
    gradient_at,
    gradients_of,
    summed_loss,
    values,
    watching,
)


def parameter(*numbers: float) -> torch.nn.Parameter:
    return torch.nn.Parameter(torch.tensor(numbers, dtype=torch.float64))


def quadratic_gradient(
    weights: List[torch.nn.Parameter], curvatures: List[List[float]], **settings: Any
) -> List[List[float]]:
    """The sharpness-aware gradient of ½ Σ h w² by the package."""
    bends = [torch.tensor(h, dtype=torch.float64) for h in curvatures]
    sharpness_aware = SharpnessAwareLoss(weights, PerturbationSettings(**settings))
    sharpness_aware.backward(
        lambda: ForwardPass(sum(0.5 * (h * w * w).sum() for h, w in zip(bends, weights)))
    )
    return [w.grad.tolist() for w in weights]


def close(numbers: Any) -> Any:
    return [pytest.approx(each, rel=1e-12, abs=1e-12) for each in numbers]


class TestByHand:
    """L = ½ Σ h w², where L' = h w."""

    def test_sam_l2(self):
        # g = (3, 4), a = 0.5 g / 5 = (0.3, 0.4), L'(w + a) = (3.3, 2 · 2.4)
        gradient = quadratic_gradient([parameter(3, 2)], [[1, 2]], rho=0.5)
        assert gradient == close([[3.3, 4.8]])

    def test_sam_linf(self):
        # a = 0.5 sgn(g) = (0.5, -0.5)
        gradient = quadratic_gradient([parameter(3, -2)], [[1, 2]], rho=0.5, norm="linf")
        assert gradient == close([[3.5, -5.0]])

    def test_mean_risk_of_two_l2_steps(self):
        # η = 0.75; all gradients along (3, 4)/5, so a_1 = 0.75 and a_2 = min(1.5, 1) times that:
        # L' averages w, w + (0.45, 0.6) and w + (0.6, 0.8)
        gradient = quadratic_gradient(
            [parameter(3, 4)], [[1, 1]], rho=1.0, risk="mean", num_steps=2
        )
        assert gradient == close([[3 + 1.05 / 3, 4 + 1.4 / 3]])

    def test_mean_risk_of_three_linf_steps(self):
        # η = 0.5: a_1 = 0.5, a_2 = 1, a_3 = 1 (clipped from 1.5)
        gradient = quadratic_gradient(
            [parameter(3, -4)], [[1, 2]], rho=1.0, norm="linf", risk="mean", num_steps=3
        )
        assert gradient == close([[3 + 2.5 / 4, -8 - 2 * 2.5 / 4]])

    def test_ga_sam_linf(self):
        # Two groups of one weight: T = 1 / (|g| √2), so a = 0.6 √2 / (|g| √2) = (0.2, 0.15);
        # the risk is the mean over w and w + a.
        gradient = quadratic_gradient(
            [parameter(3), parameter(4)],
            [[1], [1]],
            rho=0.6 * math.sqrt(2),
            norm="linf",
            scale="gradient-strength",
            granularity="layer",
            risk="mean",
        )
        assert gradient == close([[3.1], [4.075]])

    def test_ga_sam_l2(self):
        # T² g = g / (2 g²) = (1/6, 1/8) and ‖T g‖ = 1, so a = 0.24 (1/6, 1/8) = (0.04, 0.03)
        gradient = quadratic_gradient(
            [parameter(3), parameter(4)],
            [[1], [1]],
            rho=0.24,
            scale="gradient-strength",
            granularity="layer",
            risk="mean",
        )
        assert gradient == close([[3.02], [4.015]])

    def test_ga_sam_groups_of_different_sizes(self):
        # n = 5. Group 1: four weights with g = (1, 1, 1, 1): ‖g_1‖ = 2, T_1 = √4 / (2 √5) = 1/√5.
        # Group 2: one weight with g = 4: T_2 = 1 / (4 √5). With ρ = 0.4 √5: a = (0.4 …) and 0.1.
        gradient = quadratic_gradient(
            [parameter(1, 1, 1, 1), parameter(4)],
            [[1, 1, 1, 1], [1]],
            rho=0.4 * math.sqrt(5),
            norm="linf",
            scale="gradient-strength",
            granularity="layer",
        )
        assert gradient == close([[1.4] * 4, [4.1]])

    def test_asam_element(self):
        # T = |w| = (2, 1), g = (2, 2): T² g = (8, 2), ‖T g‖ = √20, a = ρ (8, 2) / √20
        root = math.sqrt(20)
        gradient = quadratic_gradient(
            [parameter(2, 1)], [[1, 2]], rho=0.5, scale="weight", granularity="element"
        )
        assert gradient == close([[2 + 4 / root, 2 * (1 + 1 / root)]])

    def test_layer_sam(self):
        # ‖w_1‖/‖g_1‖ = 1 and ‖w_2‖/‖g_2‖ = 1/2: T² g = (3, 4) and 12/4 = 3;
        # ‖T g‖ = ‖(3, 4, 6)‖ = √61
        root = math.sqrt(61)
        gradient = quadratic_gradient(
            [parameter(3, 4), parameter(6)],
            [[1, 1], [2]],
            rho=0.5,
            scale="weight-over-gradient",
            granularity="layer",
        )
        assert gradient == close([[3 + 1.5 / root, 4 + 2 / root], [2 * (6 + 1.5 / root)]])

    def test_the_numbers_reported(self):
        w = parameter(3, 4)
        sharpness_aware = SharpnessAwareLoss([w], method_settings("sam", rho=0.5))
        outcome = sharpness_aware.backward(lambda: ForwardPass(0.5 * (w * w).sum(), 7, "extra"))
        assert float(outcome.clean.loss) == pytest.approx(12.5)
        assert float(outcome.perturbed.loss) == pytest.approx(0.5 * (3.3**2 + 4.4**2))
        assert float(outcome.norm) == pytest.approx(0.5)
        assert outcome.clean.sample_size == outcome.perturbed.sample_size == 7
        assert outcome.clean.extra == outcome.perturbed.extra == "extra"
        assert outcome.realised is None
        assert bool(outcome.finite)


@pytest.mark.parametrize("loss_reduction", ["mean", "sum"])
@pytest.mark.parametrize("risk", ["perturbed", "mean"])
@pytest.mark.parametrize("num_steps", [1, 2, 3])
@pytest.mark.parametrize("norm", ["l2", "linf"])
@pytest.mark.parametrize(("scale", "granularity"), MIXTURES)
def test_every_mixture_equals_the_slow_loop(
    scale: str, granularity: str, norm: str, num_steps: int, risk: str, loss_reduction: str
):
    net, x = SmallNet(), batch()
    parts = {"norm": norm, "scale": scale, "granularity": granularity, "risk": risk}
    parts.update(num_steps=num_steps, rho=moderate_radius(scale, granularity, norm, net, x))
    if loss_reduction == "mean" and scale in (
        "weight-over-gradient",
        "gradient-strength",
        "inverse-gradient",
    ):
        parts["rho"] /= len(x)
    parameters = list(net.parameters())
    before = values(parameters)
    expected, path = reference.sharpness_aware_gradient(
        gradient_at(net, x),
        parameters,
        divisor=len(x) if loss_reduction == "mean" else 1,
        **parts,
    )
    settings = PerturbationSettings(loss_reduction=loss_reduction, **parts)
    seen: List[List[torch.Tensor]] = []
    forward = watching(forward_pass(net, x), parameters, seen)
    outcome = SharpnessAwareLoss(parameters, settings).backward(forward)
    moved = [perturbed - w for perturbed, w in zip(seen[-1], before)]

    distance = reference.length(reference.flat(path[-1]).tolist())
    assert distance > 0.05  # far enough for the terms of second order to be seen
    assert float(outcome.norm) == pytest.approx(distance, rel=1e-10)
    assert_all_close(moved, path[-1])
    assert_all_close(gradients_of(parameters), expected)
    assert_all_equal(values(parameters), before)


def moderate_radius(scale: str, granularity: Any, norm: str, net: SmallNet, x: Any) -> float:
    """A radius under which the perturbation of the summed loss has length 0.3."""
    _, path = reference.sharpness_aware_gradient(
        gradient_at(net, x), list(net.parameters()), 1.0, norm, scale, granularity, "mean", 1
    )
    return 0.3 / reference.length(reference.flat(path[-1]).tolist())


def few_line_sam(
    net: SmallNet, x: Any, rho: float, make_optimizer: Callable[[Any], Any], updates: int
) -> None:
    """SAM as in the first lines of most repositories: two steps around a base optimizer."""
    optimizer = make_optimizer(net.parameters())
    for _ in range(updates):
        optimizer.zero_grad()
        summed_loss(net, x).backward()
        moved = [p for p in net.parameters() if p.grad is not None]
        norm = torch.norm(torch.stack([p.grad.norm(p=2) for p in moved]), p=2)
        old = [p.data.clone() for p in moved]
        with torch.no_grad():
            for p in moved:
                p.add_(p.grad * (rho / (norm + 1e-12)))
        optimizer.zero_grad()
        summed_loss(net, x).backward()
        for p, w in zip(moved, old):
            p.data = w
        optimizer.step()


OPTIMIZERS = {
    "sgd": lambda parameters: torch.optim.SGD(parameters, lr=0.02, momentum=0.9),
    "adam": lambda parameters: torch.optim.Adam(parameters, lr=0.01, weight_decay=0.01),
}


def train(net: SmallNet, x: Any, settings: Any, make_optimizer: Any, updates: int) -> None:
    parameters = list(net.parameters())
    optimizer = make_optimizer(parameters)
    sharpness_aware = SharpnessAwareLoss(parameters, settings)
    for _ in range(updates):
        optimizer.zero_grad()
        sharpness_aware.backward(forward_pass(net, x))
        optimizer.step()


@pytest.mark.parametrize("optimizer", list(OPTIMIZERS))
def test_sam_trajectory_equals_an_independent_sam(optimizer: str):
    ours, theirs, plain, x = SmallNet(), SmallNet(), SmallNet(), batch()
    train(ours, x, method_settings("sam", rho=0.2), OPTIMIZERS[optimizer], 50)
    few_line_sam(theirs, x, 0.2, OPTIMIZERS[optimizer], 50)
    few_line_sam(plain, x, 0.0, OPTIMIZERS[optimizer], 50)
    assert_all_close(values(ours.parameters()), values(theirs.parameters()))
    assert (ours.out.weight - plain.out.weight).abs().max() > 1e-3


@pytest.mark.parametrize("num_steps", [1, 2, 3])
@pytest.mark.parametrize(("norm", "rho"), [("l2", 0.02), ("linf", 0.05)])
def test_ga_sam_trajectory_equals_the_slow_loop(norm: str, rho: float, num_steps: int):
    ours, theirs, x = SmallNet(), SmallNet(), batch()
    settings = method_settings(
        "ga_sam", norm=norm, rho=rho, num_steps=num_steps, loss_reduction="sum"
    )
    train(ours, x, settings, lambda weights: torch.optim.SGD(weights, lr=0.02), 15)
    weights = values(theirs.parameters())
    for _ in range(15):
        gradients, _ = reference.sharpness_aware_gradient(
            gradient_at(theirs, x),
            weights,
            rho,
            norm,
            "gradient-strength",
            "layer",
            "mean",
            num_steps,
        )
        weights = [w if g is None else w - 0.02 * g for w, g in zip(weights, gradients)]
    assert_all_close(values(ours.parameters()), weights, rtol=1e-8)


@pytest.mark.parametrize("risk", ["perturbed", "mean"])
def test_weights_left_unperturbed_still_get_the_gradient_of_the_risk(risk: str):
    net, x = SmallNet(), batch()
    parameters = list(net.parameters())
    left_out = [net.conv.weight, net.out.bias]
    settings = method_settings("sam", rho=0.3, risk=risk, num_steps=2)

    def hidden(weights: Any) -> Any:
        """Gradients with those left out absent: what the perturbation is computed from."""
        found = gradient_at(net, x)(weights)
        return [None if is_left_out(p) else g for p, g in zip(parameters, found)]

    def is_left_out(p: torch.Tensor) -> bool:
        return any(p is other for other in left_out)

    before = values(parameters)
    _, path = reference.sharpness_aware_gradient(
        hidden, parameters, 0.3, "l2", "none", None, risk, 2
    )
    at = [before] + [[w + a for w, a in zip(before, step)] for step in path]
    found = [gradient_at(net, x)(weights) for weights in at]
    if risk == "mean":
        expected = [None if each[0] is None else sum(each) / 3 for each in zip(*found)]
    else:
        expected = found[-1]

    chosen = [p for p in parameters if not is_left_out(p)]
    sharpness_aware = SharpnessAwareLoss(parameters, settings, perturbed=chosen)
    seen: List[List[torch.Tensor]] = []
    sharpness_aware.backward(watching(forward_pass(net, x), parameters, seen))
    names = [name for name, _ in net.named_parameters()]
    moved = {name for name, p, w in zip(names, seen[-1], before) if not torch.equal(p, w)}
    still = {"conv.weight", "out.bias", "unused", "gradientless", "frozen"}
    assert moved == set(names) - still
    assert_all_close(gradients_of(parameters), expected)
    assert_all_equal(values(parameters), before)


def test_a_generator_of_weights_will_do():
    net, x = SmallNet(), batch()
    sharpness_aware = SharpnessAwareLoss(net.parameters(), method_settings("sam", rho=0.3))
    sharpness_aware.backward(forward_pass(net, x))
    assert net.out.weight.grad is not None
