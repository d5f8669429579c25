"""The radius as a share of the loss: ρ = σ L / ‖T g‖_q, against loops over the equations."""

import copy
import math
from typing import Any, List, Optional, Sequence

import pytest
import torch
from torch import Tensor

from fairseq_sam.perturbation import ForwardPass, SharpnessAwareLoss, method_settings
from tests.perturbation import reference, sentence_reference
from tests.perturbation.small_net import (
    METHODS,
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
from tests.perturbation.test_delta_sam import losses_of, per_sentence

every_norm = pytest.mark.parametrize("norm", ["l2", "linf"])
every_scale = pytest.mark.parametrize(("scale", "granularity"), MIXTURES)


def dual_norm(g: Sequence[float], T: Sequence[float], norm: str) -> float:
    """‖T g‖_q."""
    parts = [abs(T_i * g_i) for g_i, T_i in zip(g, T)]
    return reference.length(parts) if norm == "l2" else sum(parts)


def radius_by_loops(net: SmallNet, x: Tensor, share: float, settings: Any) -> float:
    """σ L / ‖T g‖_q of the mean loss, T of the loss that the settings name."""
    weights = values(net.parameters())
    summed = gradient_at(net, x)(weights)
    moving = [i for i, gradient in enumerate(summed) if gradient is not None]
    g = reference.flat([summed[i] for i in moving]) / len(x)
    w = reference.flat([weights[i] for i in moving])
    T = reference.scale_of(
        settings.scale,
        settings.granularity,
        [weights[i].shape for i in moving],
        w,
        g if settings.loss_reduction == "mean" else g * len(x),
    )
    loss = float(summed_loss(net, x).detach()) / len(x)
    return share * loss / dual_norm(g.tolist(), T, settings.norm)


@every_norm
@every_scale
@pytest.mark.parametrize("loss_reduction", ["mean", "sum"])
def test_the_loss_rises_by_the_share_to_first_order(
    norm: str, scale: str, granularity: Optional[str], loss_reduction: str
):
    net, x = SmallNet(), batch()
    settings = method_settings(
        "sam",
        share=0.05,
        norm=norm,
        scale=scale,
        granularity=granularity,
        loss_reduction=loss_reduction,
    )
    g, before = gradient_at(net, x)(values(net.parameters())), values(net.parameters())
    seen: List[List[Tensor]] = []
    forward = watching(forward_pass(net, x), list(net.parameters()), seen)
    outcome = SharpnessAwareLoss(list(net.parameters()), settings).backward(forward)
    rise = sum(
        float((gradient * (there - here)).sum())
        for gradient, there, here in zip(g, seen[1], before)
        if gradient is not None
    )
    assert rise == pytest.approx(0.05 * float(summed_loss(net, x).detach()), rel=1e-10)
    assert float(outcome.rho) == pytest.approx(radius_by_loops(net, x, 0.05, settings), rel=1e-10)


@every_norm
@pytest.mark.parametrize("num_steps", [1, 2, 3])
@pytest.mark.parametrize("risk", ["perturbed", "mean"])
@pytest.mark.parametrize(("scale", "granularity"), [("none", None), ("weight", "element")])
def test_one_radius_serves_all_steps(
    norm: str, num_steps: int, risk: str, scale: str, granularity: Optional[str]
):
    net, x = SmallNet(), batch()
    parts = {
        "norm": norm,
        "scale": scale,
        "granularity": granularity,
        "risk": risk,
        "num_steps": num_steps,
    }
    settings = method_settings("sam", share=0.2, **parts)
    rho = radius_by_loops(net, x, 0.2, settings)
    expected, _ = reference.sharpness_aware_gradient(
        gradient_at(net, x), values(net.parameters()), rho, divisor=len(x), **parts
    )
    outcome = SharpnessAwareLoss(list(net.parameters()), settings).backward(forward_pass(net, x))
    assert_all_close(gradients_of(net.parameters()), expected, rtol=1e-9)
    assert float(outcome.rho) == pytest.approx(rho, rel=1e-10)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("scale", [1.0, 0.25, 2.0**15])
def test_the_scale_of_loss_does_not_matter(method: str, scale: float):
    """Neither loss scaling nor gradient accumulation is seen in the perturbation."""
    x, results = batch(), []
    for factor in (1.0, scale):
        for how in (
            {"scale": factor},
            {"scale_loss": lambda loss, by=factor: loss * by},
        ):
            net = SmallNet()
            settings = method_settings(method, share=0.05, loss_reduction="mean")
            loss = SharpnessAwareLoss(list(net.parameters()), settings)
            outcome = loss.backward(forward_pass(net, x), **how)
            results.append(
                (outcome, [g / factor for g in gradients_of(net.parameters()) if g is not None])
            )
    for outcome, gradients in results[1:]:
        assert float(outcome.rho) == pytest.approx(float(results[0][0].rho), rel=1e-12)
        assert float(outcome.norm) == pytest.approx(float(results[0][0].norm), rel=1e-12)
        assert_all_close(gradients, results[0][1])


@pytest.mark.parametrize("method", METHODS)
def test_the_size_of_the_batch_does_not_matter(method: str):
    """A batch that is twice the same has the same mean loss, gradient, and perturbation."""
    once = batch()
    norms, radii = [], []
    for x in (once, once.repeat(3, 1, 1)[: 2 * len(once)]):
        net = SmallNet()
        settings = method_settings(method, share=0.05, loss_reduction="mean")
        outcome = SharpnessAwareLoss(list(net.parameters()), settings).backward(
            forward_pass(net, x)
        )
        norms.append(float(outcome.norm))
        radii.append(float(outcome.rho))
    assert norms[0] == pytest.approx(norms[1], rel=1e-10)
    assert radii[0] == pytest.approx(radii[1], rel=1e-10)


@every_norm
def test_the_radius_has_a_limit(norm: str):
    net, twin, x = SmallNet(), SmallNet(), batch()
    share = method_settings("sam", share=0.5, rho=1e-3, norm=norm)
    fixed = method_settings("sam", rho=1e-3, norm=norm)
    outcome = SharpnessAwareLoss(list(net.parameters()), share).backward(forward_pass(net, x))
    SharpnessAwareLoss(list(twin.parameters()), fixed).backward(forward_pass(twin, x))
    assert float(outcome.rho) == 1e-3
    assert_all_equal(gradients_of(net.parameters()), gradients_of(twin.parameters()))


@every_norm
@pytest.mark.parametrize("num_steps", [1, 2])
def test_without_gradient_nothing_moves(norm: str, num_steps: int):
    w = torch.nn.Parameter(torch.tensor([1.0, 2.0]))
    settings = method_settings("sam", share=0.05, norm=norm, num_steps=num_steps)
    seen: List[List[Tensor]] = []
    forward = watching(lambda: ForwardPass(3.0 + 0.0 * w.sum()), [w], seen)
    outcome = SharpnessAwareLoss([w], settings).backward(forward)
    assert float(outcome.rho) == float(outcome.norm) == 0.0
    assert all(torch.equal(values[0], w) for values in seen)
    assert torch.equal(w.grad, torch.zeros(2))


@every_norm
def test_a_loss_that_is_not_finite_voids_the_step(norm: str):
    w = torch.nn.Parameter(torch.tensor([1.0, 2.0]))
    seen: List[List[Tensor]] = []
    forward = watching(lambda: ForwardPass(w.sum() + math.inf), [w], seen)
    outcome = SharpnessAwareLoss([w], method_settings("sam", share=0.05, norm=norm)).backward(
        forward
    )
    assert not bool(outcome.finite)
    assert float(outcome.rho) == 0.0
    assert torch.equal(seen[1][0], w)


def test_a_negative_loss_rises_too():
    w = torch.nn.Parameter(torch.tensor([3.0, 4.0], dtype=torch.float64))
    loss = SharpnessAwareLoss([w], method_settings("sam", share=0.1))
    outcome = loss.backward(lambda: ForwardPass(w.sum() - 17.0))  # −10
    assert float(outcome.norm) == pytest.approx(1.0 / math.sqrt(2))
    assert float(outcome.perturbed.loss) == pytest.approx(-9.0)


def test_each_sentence_has_a_radius_of_its_own():
    net, x = SmallNet(), batch()
    settings = method_settings("per_instance_sam", share=0.05)
    loss = SharpnessAwareLoss(list(net.parameters()), settings)
    outcomes = loss.backward_each([forward_pass(net, x[i : i + 1]) for i in range(len(x))])
    alone = [radius_by_loops(net, x[i : i + 1], 0.05, settings) for i in range(len(x))]
    assert [float(outcome.rho) for outcome in outcomes] == pytest.approx(alone, rel=1e-10)
    assert len(set(alone)) == len(x)


@every_norm
@pytest.mark.parametrize("weighting", ["published", "draft"])
@pytest.mark.parametrize("risk", ["perturbed", "mean"])
@pytest.mark.parametrize(("scale", "granularity"), [("none", None), ("gradient-strength", "layer")])
def test_delta_sam_takes_the_radius_of_the_loss_without_weights(
    norm: str, weighting: str, risk: str, scale: str, granularity: Optional[str]
):
    net, x, eta, beta, probe = SmallNet(), batch(), 0.5, 3.0, 0.03
    parts = {"norm": norm, "scale": scale, "granularity": granularity, "risk": risk}
    settings = method_settings(
        "delta_sam",
        share=0.05,
        weighting=weighting,
        eta=eta,
        beta=beta,
        probe_radius=probe,
        **parts,
    )
    rho = radius_by_loops(net, x, 0.05, settings)
    moved: List[List[float]] = []
    probing = copy.deepcopy(net)
    sharpness_aware = SharpnessAwareLoss(list(net.parameters()), settings)

    def look() -> Tensor:
        losses = losses_of(net, x)
        moved.append(losses.tolist())
        return losses

    outcome = sharpness_aware.backward(
        forward_pass(net, x), per_sentence=per_sentence(net, x), probe=look
    )
    clean = losses_of(probing, x).tolist()
    if weighting == "published":
        plus, minus = moved
        ratio = rho / probe
        second = [abs(p + m - 2 * c) * ratio**2 for c, p, m in zip(clean, plus, minus)]
        first = [max(abs(p - m) * ratio, eta) for p, m in zip(plus, minus)]
        weights = [s / f for s, f in zip(second, first)]
    else:
        weights = sentence_reference.draft(clean, moved[0], beta)
    weights = sentence_reference.mean_one(weights)
    expected, _ = sentence_reference.delta_sam_gradient(
        weighted_gradient_at(probing, x),
        values(probing.parameters()),
        weights,
        rho,
        num_steps=1,
        divisor=len(x),
        **parts,
    )
    assert float(outcome.rho) == pytest.approx(rho, rel=1e-10)
    assert_all_close(gradients_of(net.parameters()), expected, rtol=1e-6)


def weighted_gradient_at(net: SmallNet, x: Tensor) -> Any:
    net = copy.deepcopy(net)
    parameters = list(net.parameters())

    def gradients(at: Sequence[Tensor], weights: Optional[Sequence[float]]) -> Any:
        with torch.no_grad():
            for parameter, value in zip(parameters, at):
                parameter.copy_(value)
                parameter.grad = None
        losses = losses_of(net, x)
        factors = torch.ones_like(losses) if weights is None else losses.new_tensor(weights)
        (losses * factors).sum().backward()
        return gradients_of(parameters)

    return gradients


@pytest.mark.parametrize("reach", [0.25, 1.0])
@pytest.mark.parametrize("share", [None, 0.05])
def test_the_reach_multiplies_the_radius(reach: float, share: Optional[float]):
    net, x = SmallNet(), batch()
    rho = 0.05 if share is None else radius_by_loops(net, x, 0.05, method_settings("sam"))
    settings = method_settings("sam", share=share)
    loss = SharpnessAwareLoss(list(net.parameters()), settings)

    def step(this: Any) -> ForwardPass:
        output = forward_pass(net, x)()
        this.backward(output.loss)
        return output

    outcome = loss.run(step, lambda loss: loss.backward(), reach=reach)
    assert float(outcome.rho) == pytest.approx(reach * rho, rel=1e-12)
    assert float(outcome.norm) == pytest.approx(reach * rho, rel=1e-12)
