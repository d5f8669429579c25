"""The adversarial risk against a slow loop over deep copies, and what it must leave alone."""

import copy
import doctest
import math
import subprocess
import sys
from typing import Any, Callable, Dict, List

import pytest
import torch
from fairseq.criterions import CRITERION_DATACLASS_REGISTRY, CRITERION_REGISTRY
from torch import Tensor, nn

from fairseq_sam.analysis import adversarial_risk
from fairseq_sam.analysis.adversarial_risk import (
    AdversarialRisk,
    SentenceRisk,
    estimate,
    sentence_risks,
    summarise,
)
from tests.criterions.conftest import CASES, LENGTHS
from tests.perturbation.small_net import SmallNet, batch, gradients_of, values

RHO = 0.07
PAD = 1


class Labels(nn.Module):
    """A criterion with a trained weight of its own: labels are 0, 1, 2 in turn."""

    def __init__(self) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.tensor([0.1, -0.2, 0.3], dtype=torch.float64))

    def losses_only(self, model: nn.Module, sample: Dict[str, Any]) -> Tensor:
        logits = model(sample["x"]) + self.bias
        return nn.functional.cross_entropy(logits, sample["target"], reduction="none")


def mini_batch(size: int = 6) -> Dict[str, Any]:
    labels = torch.arange(size) % 3
    tokens = {"src_tokens": torch.full((size, 1), 7)}
    return {
        "id": torch.arange(size),
        "x": batch(size=size),
        "target": labels,
        "net_input": tokens,
    }


def flat(tensors: Any) -> Tensor:
    return torch.cat([tensor.flatten() for tensor in tensors])


def slow_risk(
    modules: List[nn.Module],
    loss: Callable[..., Tensor],
    rho: float,
    num_steps: int = 1,
    norm: str = "l2",
) -> SentenceRisk:
    """Eq. 2 for one sentence in one flat vector, on copies of model and criterion."""
    modules = [copy.deepcopy(module).eval() for module in modules]
    weights = [w for module in modules for w in module.parameters() if w.requires_grad]
    origin = flat(weights).detach()

    def move(perturbation: Tensor) -> Tensor:
        position = 0
        with torch.no_grad():
            for weight in weights:
                end = position + weight.numel()
                weight.copy_((origin + perturbation)[position:end].view_as(weight))
                position = end
        return loss(*modules)

    a = torch.zeros_like(origin)
    step = min(rho, 1.5 * rho / num_steps)
    seen = []
    for k in range(num_steps):
        value = move(a)
        seen.append(float(value.detach()))
        gradients = torch.autograd.grad(value, weights, allow_unused=True)
        g = flat([torch.zeros_like(w) if x is None else x for w, x in zip(weights, gradients)])
        a = a + step * (g / g.norm() if norm == "l2" else g.sign())
        if k > 0:
            a = a * min(1.0, rho / float(a.norm())) if norm == "l2" else a.clamp(-rho, rho)
    seen.append(float(move(a).detach()))
    return SentenceRisk(seen[0], max(seen[1:]), float(a.norm()))


@pytest.mark.parametrize("norm", ["l2", "linf"])
@pytest.mark.parametrize("num_steps", [1, 2, 5])
def test_equals_a_slow_loop(norm: str, num_steps: int) -> None:
    net, criterion, sample = SmallNet(), Labels(), mini_batch()
    ours = list(sentence_risks(net, criterion, [sample], PAD, RHO, num_steps, norm))
    assert len(ours) == 6
    for j, risk in enumerate(ours):
        part = {key: sample[key][j : j + 1] for key in ("x", "target")}
        theirs = slow_risk(
            [net, criterion], lambda n, c, p=part: c.losses_only(n, p).sum(), RHO, num_steps, norm
        )
        assert risk == pytest.approx(theirs, rel=1e-10)


def test_a_mini_batch_of_one_is_taken_as_it_is() -> None:
    """Whatever it consists of: only text can be taken apart."""
    whole = mini_batch()
    part = {"x": whole["x"][2:3], "target": whole["target"][2:3], "nsentences": 1}
    net, criterion = SmallNet(), Labels()
    (ours,) = sentence_risks(net, criterion, [part], PAD, RHO)
    assert ours == pytest.approx(list(sentence_risks(net, criterion, [whole], PAD, RHO))[2])


@pytest.mark.parametrize(
    ("case_name", "criterion_name"),
    [
        ("translation", "per_sentence_label_smoothed_cross_entropy"),
        ("transformer_lm", "per_sentence_cross_entropy"),
        ("lstm_lm", "per_sentence_cross_entropy"),
        ("classification", "per_sentence_sentence_prediction"),
        ("regression", "per_sentence_sentence_prediction"),
        ("masked_lm", "per_sentence_masked_lm"),
    ],
)
def test_every_criterion_equals_a_slow_loop(case_name: str, criterion_name: str) -> None:
    torch.manual_seed(0)
    case = CASES[case_name]()
    case.model.double()
    cfg = CRITERION_DATACLASS_REGISTRY[criterion_name]()
    settings = {"sentence_avg": False, "tpu": False, "label_smoothing": 0.1}
    settings["regression_target"] = case_name == "regression"
    for flag, value in settings.items():
        if hasattr(cfg, flag):
            setattr(cfg, flag, value)
    criterion = CRITERION_REGISTRY[criterion_name].build_criterion(cfg, case.task)
    pad = case.task.source_dictionary.pad()
    before = values(case.model.parameters())
    ours = list(sentence_risks(case.model, criterion, [case.batch()], pad, RHO))
    for j in range(len(LENGTHS)):
        sample = case.collate([j])
        if case_name == "masked_lm" and j == 2:
            assert ours[j] == (0.0, 0.0, 0.0)  # nothing is masked in it
            continue
        theirs = slow_risk([case.model], lambda m, s=sample: criterion.losses_only(m, s).sum(), RHO)
        assert ours[j] == pytest.approx(theirs, rel=1e-9)
    assert all(map(torch.equal, before, case.model.parameters()))


@pytest.mark.parametrize("num_steps", [1, 4])
def test_the_radius_is_met(num_steps: int) -> None:
    net, x = SmallNet(), batch(size=1)
    weights = [w for w in net.parameters() if w.requires_grad]
    origin, distances = flat(weights).detach(), []

    def loss() -> Tensor:
        distances.append(float((flat(weights).detach() - origin).norm()))
        return net(x).logsumexp(dim=1).sum()

    risk = AdversarialRisk(weights, RHO, num_steps)(loss)
    assert len(distances) == num_steps + 1
    assert distances[0] == 0
    assert distances[-1] == pytest.approx(RHO, rel=1e-12)
    assert risk.length == pytest.approx(RHO, rel=1e-12)


def test_weights_gradients_and_modes_are_left_alone() -> None:
    net, criterion = SmallNet(dropout=0.5).train(), Labels()
    net.norm.eval()
    weights = [*net.parameters(), *criterion.parameters()]
    weights[0].grad = torch.full_like(weights[0], 3.0)
    before, gradients = values(weights), gradients_of(weights)
    modes = [layer.training for layer in net.modules()]
    first = list(sentence_risks(net, criterion, [mini_batch()], PAD, RHO, num_steps=3))
    second = list(sentence_risks(net, criterion, [mini_batch()], PAD, RHO, num_steps=3))
    assert first == second  # no dropout
    assert all(map(torch.equal, before, weights))
    after = gradients_of(weights)
    assert after[1:] == gradients[1:] == [None] * (len(weights) - 1)
    assert torch.equal(after[0], gradients[0])
    assert [layer.training for layer in net.modules()] == modes
    assert not any(weight.requires_grad for weight in weights if weight is net.frozen)


@pytest.mark.parametrize("failing_call", [0, 1, 2])
def test_a_failure_leaves_the_weights_in_place(failing_call: int) -> None:
    net, x = SmallNet(), batch(size=1)
    before, calls = values(net.parameters()), []

    def loss() -> Tensor:
        calls.append(1)
        if len(calls) > failing_call:
            raise RuntimeError("out of memory")
        return net(x).logsumexp(dim=1).sum()

    with pytest.raises(RuntimeError, match="out of memory"):
        AdversarialRisk([w for w in net.parameters() if w.requires_grad], RHO, num_steps=2)(loss)
    assert all(map(torch.equal, before, net.parameters()))


def test_a_consumer_that_stops_early_leaves_everything_in_place() -> None:
    net = SmallNet().train()
    before = values(net.parameters())
    risks = sentence_risks(net, Labels(), [mini_batch()], PAD, RHO)
    next(risks)
    risks.close()
    assert net.training
    assert all(map(torch.equal, before, net.parameters()))


def test_works_where_gradients_are_switched_off() -> None:
    net = SmallNet()
    with torch.no_grad():
        inside = list(sentence_risks(net, Labels(), [mini_batch()], PAD, RHO))
    assert inside == list(sentence_risks(net, Labels(), [mini_batch()], PAD, RHO))


def test_grows_with_the_radius_on_a_convex_loss() -> None:
    weight = torch.zeros(3, 4, dtype=torch.float64, requires_grad=True)
    x = batch(size=1)[0, 0, :4]

    def loss() -> Tensor:
        return torch.logsumexp(weight @ x, dim=0) - (weight @ x)[1]

    risks = [AdversarialRisk([weight], rho, 3)(loss) for rho in (1e-3, 0.01, 0.1, 0.5, 2.0)]
    adversarial = [risk.adversarial for risk in risks]
    assert adversarial == sorted(set(adversarial))
    assert adversarial[0] > risks[0].clean == pytest.approx(math.log(3))


def test_more_steps_come_closer_to_the_maximum() -> None:
    """½ wᵀ diag(h) w: the gradient points away from the worst direction."""
    h = torch.tensor([1.0, 9.0], dtype=torch.float64)
    weight = torch.tensor([1.0, 0.05], dtype=torch.float64, requires_grad=True)
    angles = torch.linspace(0, 2 * math.pi, 20001, dtype=torch.float64)
    circle = torch.stack([angles.cos(), angles.sin()], dim=1)
    maximum = float((0.5 * h * (weight.detach() + circle) ** 2).sum(dim=1).max())
    found = [
        AdversarialRisk([weight], 1.0, steps)(lambda: 0.5 * (h * weight**2).sum()).adversarial
        for steps in (1, 3, 10)
    ]
    assert found == sorted(found)
    assert found[0] < 0.6 * maximum
    assert 0.9 * maximum < found[-1] <= maximum * (1 + 1e-6)


def test_a_loss_without_gradient_is_its_own_worst_case() -> None:
    weight = torch.ones(2, requires_grad=True)
    risk = AdversarialRisk([weight], RHO)
    assert risk(lambda: (weight * weight).sum()).length == pytest.approx(RHO)
    assert risk(lambda: torch.tensor(2.5)) == (2.5, 2.5, 0.0)
    assert risk(lambda: 2.5 + 0 * weight.sum()) == (2.5, 2.5, 0.0)


@pytest.mark.parametrize("factor", [math.inf, math.nan])
def test_a_loss_that_is_not_finite_is_an_error(factor: float) -> None:
    weight = torch.ones(2, requires_grad=True)
    risk = AdversarialRisk([weight], RHO)
    with pytest.raises(FloatingPointError, match="not finite"):
        risk(lambda: factor * weight.sum())
    assert risk(lambda: weight.sum()).clean == 2.0
    assert torch.equal(weight.detach(), torch.ones(2))


@pytest.mark.parametrize("rho", [0.0, -1.0, math.nan, math.inf])
def test_radii_that_are_none(rho: float) -> None:
    with pytest.raises(ValueError, match="rho"):
        AdversarialRisk([torch.ones(1)], rho)


@pytest.mark.parametrize("setting", [{"num_steps": 0}, {"norm": "l1"}])
def test_impossible_settings(setting: Dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(setting))):
        AdversarialRisk([torch.ones(1)], RHO, **setting)


def test_summary() -> None:
    summary = summarise([SentenceRisk(c, a, 0.1) for c, a in ((1, 2), (2, 5), (6, 5))])
    assert summary.clean.mean == 3
    assert summary.clean.standard_error == pytest.approx(math.sqrt(7 / 3))
    assert summary.adversarial == pytest.approx((4.0, 1.0))
    assert summary.difference == pytest.approx((1.0, math.sqrt(4 / 3)))
    assert summary.num_sentences == 3
    assert summarise([SentenceRisk(1.0, 2.0, 0.1)]).clean == (1.0, None)
    with pytest.raises(ValueError, match="no sentences"):
        summarise([])


def test_an_infinite_value_is_a_result() -> None:
    mean, error = estimate([1.0, math.inf])
    assert mean == math.inf
    assert error is None or math.isnan(error)


def test_imports_nothing_of_fairseq() -> None:
    code = (
        "import sys, fairseq_sam.analysis.adversarial_risk as module; "
        "sys.exit(any(name.split('.')[0] == 'fairseq' for name in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-W", "ignore", "-c", code], timeout=120).returncode == 0


def test_examples() -> None:
    result = doctest.testmod(adversarial_risk)
    assert result.attempted >= 4
    assert result.failed == 0
