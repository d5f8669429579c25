"""The scale ``adam``, T² = 1/(√v̂ + δ), against its equation written out weight by weight."""

import math
from typing import Any, List, Optional

import pytest
import torch
from torch import Tensor, nn

from fairseq_sam.perturbation import (
    ForwardPass,
    PerturbedWeights,
    SecondMoment,
    SharpnessAwareLoss,
    method_settings,
)
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


def written_out(
    g: List[float], v: List[float], rho: float, norm: str, decay: float, correction: float
) -> List[float]:
    """u = ρ T² g / ‖T g‖₂, or ρ T sgn(g), entry by entry."""
    after = [decay * vi + (1 - decay) * gi * gi for gi, vi in zip(g, v)]
    T = [
        1 / math.sqrt(math.sqrt(correction * vi) + DELTA) if gi else 0.0 for gi, vi in zip(g, after)
    ]
    if norm == "linf":
        return [rho * Ti * math.copysign(1, gi) for Ti, gi in zip(T, g)]
    length = math.sqrt(sum((Ti * gi) ** 2 for Ti, gi in zip(T, g)))
    return [rho * Ti * Ti * gi / length for Ti, gi in zip(T, g)]


@every_norm
@pytest.mark.parametrize("unit", [1.0, 2.0**15 * 37])
@pytest.mark.parametrize(("decay", "correction"), [(0.98, 1.0), (0.9, 4.0), (0.0, 1.0)])
def test_weight_by_weight(norm: str, unit: float, decay: float, correction: float):
    """Whatever the gradients are multiplied by: v̂ is of the mean loss as it is."""
    g, v = [0.3, -2.0, 0.0, 1e-3], [0.04, 9.0, 1.0, 0.0]
    moment = SecondMoment(
        torch.tensor(v, dtype=torch.float64) / 2, decay=decay, correction=correction, factor=2.0
    )
    found = perturbation([1.0, 2.0, 3.0, 4.0], g, [moment], unit, rho=0.5, norm=norm)
    assert found == pytest.approx(written_out(g, v, 0.5, norm, decay, correction), rel=1e-12)


def test_with_the_square_of_the_gradient_it_is_a_sign_step():
    """With v = g² and δ → 0 the L2 step is one of the L∞ norm, for every weight as long."""
    g = [0.3, -2.0, 1e-3]
    moment = SecondMoment(torch.tensor(g, dtype=torch.float64).square(), delta=0.0)
    found = perturbation([0.0] * 3, g, [moment], rho=0.5)
    each = 0.5 / math.sqrt(sum(map(abs, g)))
    assert found == pytest.approx([each, -each, each], rel=1e-12)


@pytest.mark.parametrize("v", [0.0, 1e-30, 1e-12])
def test_a_word_that_comes_after_a_long_while_does_not_move_alone(v: float):
    """Its own gradient counts, so that its share of the rise is bounded by √(1 − β)."""
    g = [0.1] * 100 + [0.1]
    moment = SecondMoment(torch.tensor([0.01] * 100 + [v], dtype=torch.float64), decay=0.98)
    found = perturbation([0.0] * 101, g, [moment], rho=0.5)
    rises = [gi * ai for gi, ai in zip(g, found)]
    assert rises[-1] / sum(rises) == pytest.approx(1 / (1 + 100 * 0.02**0.5), rel=1e-3)


@every_norm
def test_what_is_rounding_noise_stays(norm: str):
    """A bias that a later softmax ignores, of which v remembers noise too."""
    layer = nn.Linear(4, 3).double()
    settings = method_settings("sam", scale="adam", rho=0.1, norm=norm)
    weights = PerturbedWeights([layer.weight, layer.bias], settings, layers=[1, 1])
    gradients = [torch.rand(3, 4).double(), 1e-16 * torch.rand(3).double()]
    weights.second_moments = [SecondMoment(g.square()) for g in gradients]
    before = layer.bias.detach().clone()
    weights.ascend(gradients)
    assert torch.equal(layer.bias, before)
    assert float(weights.norm) > 0


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
    moment = SecondMoment(rows, columns, decay=1.0, delta=0.0)
    wanted = [[math.sqrt(r * c / (4 / 3)) for c in (4.0, 8.0)] for r in (1.0, 3.0, 0.0)]
    found = moment.denominator(torch.ones(3, 2).double())
    assert found.tolist() == [pytest.approx(row, rel=1e-12) for row in wanted]


def test_nothing_was_ever_seen():
    empty = SecondMoment(torch.zeros(2), torch.zeros(3), decay=0.75, delta=0.0)
    assert torch.equal(empty.denominator(torch.ones(2, 3)), torch.full((2, 3), 0.5))


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
            bound: Tensor = 0.1 / (0.999 * moment.value).sqrt().sqrt()
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
