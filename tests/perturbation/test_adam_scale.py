"""The scale ``adam``, T² = 1/(√v̂ + δ), against its equation written out weight by weight."""

import math
from typing import Any, List, Optional

import pytest
import torch
from torch import Tensor, nn

from fairseq_sam.perturbation import (
    ForwardPass,
    PerturbedWeights,
    SharpnessAwareLoss,
    method_settings,
)
from fairseq_sam.perturbation.ascent import SecondMoment
from tests.perturbation.small_net import (
    SmallNet,
    assert_all_close,
    assert_all_equal,
    batch,
    forward_pass,
    values,
)

DELTA = 1e-8
every_norm = pytest.mark.parametrize("norm", ["l2", "linf"])


def perturbation(
    w: List[float], g: List[float], moments: Any, unit: float = 1.0, **parts: Any
) -> List[float]:
    weight = nn.Parameter(torch.tensor(w, dtype=torch.float64))
    weights = PerturbedWeights([weight], method_settings("sam", scale="adam", **parts))
    weights.second_moments = moments
    weights.ascend([torch.tensor(g, dtype=torch.float64) * unit], divisor=unit)
    moved = weight.detach() - torch.tensor(w, dtype=torch.float64)
    weights.restore()
    found: List[float] = moved.tolist()
    return found


def written_out(g: List[float], v: List[float], rho: float, norm: str) -> List[float]:
    """u = ρ T² g / ‖T g‖₂, or ρ T sgn(g), entry by entry."""
    T = [
        1 / math.sqrt((math.sqrt(vi) if vi > 0 else abs(gi)) + DELTA * (vi > 0)) if gi != 0 else 0.0
        for gi, vi in zip(g, v)
    ]
    if norm == "linf":
        return [rho * Ti * math.copysign(1, gi) if gi else 0.0 for Ti, gi in zip(T, g)]
    length = math.sqrt(sum((Ti * gi) ** 2 for Ti, gi in zip(T, g)))
    return [rho * Ti * Ti * gi / length for Ti, gi in zip(T, g)]


@every_norm
@pytest.mark.parametrize("unit", [1.0, 2.0**15 * 37])
@pytest.mark.parametrize("correction", [1.0, 4.0])
def test_weight_by_weight(norm: str, unit: float, correction: float):
    """Whatever the gradients are multiplied by: v̂ is of the mean loss as it is."""
    g, v = [0.3, -2.0, 0.0, 1e-3], [0.04, 9.0, 1.0, 0.0]
    moment = SecondMoment(torch.tensor(v, dtype=torch.float64) / correction, None, correction)
    found = perturbation([1.0, 2.0, 3.0, 4.0], g, [moment], unit, rho=0.5, norm=norm)
    assert found == pytest.approx(written_out(g, v, 0.5, norm), rel=1e-12)


def test_with_the_square_of_the_gradient_it_is_a_sign_step():
    """With v = g² and δ → 0 the L2 step is one of the L∞ norm, for every weight as long."""
    g = [0.3, -2.0, 1e-3]
    moment = SecondMoment(torch.tensor(g, dtype=torch.float64).square(), delta=0.0)
    found = perturbation([0.0] * 3, g, [moment], rho=0.5)
    each = 0.5 / math.sqrt(sum(map(abs, g)))
    assert found == pytest.approx([each, -each, each], rel=1e-12)
    nothing = SecondMoment(torch.zeros(3, dtype=torch.float64))
    assert perturbation([0.0] * 3, g, [nothing], rho=0.5) == pytest.approx(found, rel=1e-12)


@every_norm
def test_before_the_first_update_it_is_sam(norm: str):
    ours, sam = SmallNet(), SmallNet()
    sam.load_state_dict(ours.state_dict())
    x = batch(1)
    for net, scale in ((ours, "adam"), (sam, "none")):
        trained = list(net.parameters())
        loss = SharpnessAwareLoss(trained, method_settings("sam", norm=norm, rho=0.3, scale=scale))
        loss.backward(forward_pass(net, x), second_moments=[None] * len(trained))
    gradients = [[w.grad for w in net.parameters()] for net in (ours, sam)]
    assert_all_close(*gradients)


def test_of_rows_and_columns():
    """As Adafactor remembers: v = rows ⊗ columns / mean(rows)."""
    rows, columns = torch.tensor([1.0, 3.0, 0.0]).double(), torch.tensor([4.0, 8.0]).double()
    found = SecondMoment(rows, columns, delta=0.0).denominator()
    wanted = [[math.sqrt(r * c / (4 / 3)) for c in (4.0, 8.0)] for r in (1.0, 3.0, 0.0)]
    assert found.tolist() == [pytest.approx(row, rel=1e-12) for row in wanted]


def test_nothing_was_ever_seen():
    empty = SecondMoment(torch.zeros(2), torch.zeros(3))
    assert torch.equal(empty.denominator(), torch.zeros(2, 3))


@every_norm
def test_a_share_is_a_share(norm: str):
    """ρ ‖T g‖_q is σ L: to first order the loss rises by 5 %."""
    net, x = SmallNet(), batch(1)
    trained = list(net.parameters())
    moments: List[Optional[SecondMoment]] = [SecondMoment(torch.rand_like(w) ** 4) for w in trained]
    settings = method_settings("sam", norm=norm, scale="adam", share=1e-6)
    loss = SharpnessAwareLoss(trained, settings)
    outcome = loss.backward(forward_pass(net, x), second_moments=moments)
    rise = float(outcome.perturbed.loss - outcome.clean.loss)
    assert rise == pytest.approx(1e-6 * float(outcome.clean.loss), rel=1e-3)


def test_what_the_optimizer_remembers_is_only_read():
    net, x = SmallNet(), batch(1)
    trained = list(net.parameters())
    moments = [SecondMoment(torch.rand_like(w)) for w in trained]
    kept, weights = values([m.value for m in moments]), values(trained)
    loss = SharpnessAwareLoss(trained, method_settings("sam", scale="adam", rho=0.3))
    loss.backward(forward_pass(net, x), second_moments=moments)
    assert_all_equal([m.value for m in moments], kept)
    assert_all_equal(values(trained), weights)
    assert loss.weights.second_moments == ()


def test_steps_share_one_constraint_set():
    """T does not change within a step, so |a| stays below ρ T with the norm L∞."""
    net, x = SmallNet(), batch(1)
    trained = list(net.parameters())
    moments = [SecondMoment(torch.rand_like(w) + 0.1) for w in trained]
    settings = method_settings("ga_sam", scale="adam", rho=0.1, num_steps=3)
    loss, moved = SharpnessAwareLoss(trained, settings), []
    before = values(trained)

    def forward() -> ForwardPass:
        moved.append([(w.detach() - b) for w, b in zip(trained, before)])
        return forward_pass(net, x)()

    loss.backward(forward, second_moments=moments)
    for each in moved:
        for a, moment in zip(each, moments):
            bound: Tensor = 0.1 / (moment.value.sqrt() + DELTA).sqrt()
            assert bool((a.abs() <= bound * (1 + 1e-9)).all())


def test_it_needs_them():
    loss = SharpnessAwareLoss([nn.Parameter(torch.ones(1))], method_settings("sam", scale="adam"))
    with pytest.raises(ValueError, match="scale is adam: it needs the second moments"):
        loss.backward(lambda: ForwardPass(torch.ones(())))


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        ({"granularity": "layer"}, "granularity is layer: it must be element"),
        ({"loss_reduction": "sum"}, "loss_reduction is sum: it must be mean"),
    ],
)
def test_what_makes_no_sense(parts: Any, words: str):
    with pytest.raises(ValueError, match=words):
        method_settings("sam", scale="adam", **parts)
