"""What the ascent follows in place of the gradient, by hand and against the papers' updates."""

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
from tests.perturbation.test_delta_sam import losses_of, per_sentence

every_norm = pytest.mark.parametrize("norm", ["l2", "linf"])
remembering = pytest.mark.parametrize("direction", ["smoothed", "friendly"])


def parameter(*numbers: float) -> nn.Parameter:
    return nn.Parameter(torch.tensor(numbers, dtype=torch.float64))


def perturbations(settings: Any, steps: List[List[float]], unit: float = 1.0) -> List[List[float]]:
    """a of each step at the same w, given the gradients of the mean loss."""
    w = parameter(*[0.0] * len(steps[0]))
    weights, found = PerturbedWeights([w], settings), []
    for g in steps:
        given = torch.tensor(g, dtype=torch.float64) * unit
        weights.ascend([given], divisor=unit, unit=unit)
        found.append(w.tolist())
        weights.restore()
    return found


def along(v: List[float], rho: float) -> Any:
    length = math.sqrt(sum(each * each for each in v))
    return [pytest.approx(rho * each / length, rel=1e-12) for each in v]


STEPS = [[3.0, 0.0], [0.0, 4.0], [-1.0, 1.0]]


@pytest.mark.parametrize("method", ["vasso", "friendly_sam"])
@pytest.mark.parametrize("dummies", [1, 3])
@pytest.mark.parametrize("position", [0, 2])
def test_dummy_batches_are_not_remembered(method: str, dummies: int, position: int):
    # A worker that has run out of batches takes part with a loss times 0.
    settings = method_settings(method, rho=0.5)
    steps = [*STEPS[:position], *[[0.0, 0.0]] * dummies, *STEPS[position:]]
    found = perturbations(settings, steps)
    assert [*found[:position], *found[position + dummies :]] == perturbations(settings, STEPS)


@pytest.mark.parametrize("unit", [1.0, 2.0**15 * 37])
class TestThreeStepsByHand:
    def test_smoothed(self, unit: float):
        # d: (3, 0); 0.6 (3, 0) + 0.4 (0, 4) = (1.8, 1.6); 0.6 (1.8, 1.6) + 0.4 (−1, 1)
        a = perturbations(method_settings("vasso", rho=0.5), STEPS, unit)
        assert a == [along([3, 0], 0.5), along([1.8, 1.6], 0.5), along([0.68, 1.36], 0.5)]

    def test_friendly(self, unit: float):
        # d before each step: (0, 0), (0.3, 0), (0.27, 0.4); a follows g − d
        a = perturbations(method_settings("friendly_sam", rho=0.5), STEPS, unit)
        assert a == [along([3, 0], 0.5), along([-0.3, 4], 0.5), along([-1.27, 0.6], 0.5)]

    def test_friendly_with_flags_of_its_own(self, unit: float):
        # θ = 0.5: d is (0, 0), (1.5, 0), (0.75, 2); σ = 0.2
        settings = method_settings("friendly_sam", rho=1.0, smoothing=0.5, friendly=0.2)
        a = perturbations(settings, STEPS, unit)
        assert a == [along([3, 0], 1), along([-0.3, 4], 1), along([-1.15, 0.6], 1)]


@remembering
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("share", [None, 0.05])
def test_the_first_step_is_that_of_the_gradient(
    method: str, direction: str, share: Optional[float]
):
    net, twin, x = SmallNet(), SmallNet(), batch()
    for each, other in ((net, direction), (twin, "gradient")):
        settings = method_settings(method, direction=other, share=share)
        loss = SharpnessAwareLoss(list(each.parameters()), settings)
        loss.backward(forward_pass(each, x))
    assert_all_close(gradients_of(net.parameters()), gradients_of(twin.parameters()), rtol=1e-12)


@pytest.mark.parametrize(
    ("direction", "parts"), [("smoothed", {"smoothing": 1.0}), ("friendly", {"friendly": 0.0})]
)
@pytest.mark.parametrize("method", METHODS)
def test_without_memory_they_are_the_gradient(method: str, direction: str, parts: Any):
    net, twin = SmallNet(), SmallNet()
    ours = method_settings(method, direction=direction, share=0.05, **parts)
    loss = SharpnessAwareLoss(list(net.parameters()), ours)
    base = SharpnessAwareLoss(list(twin.parameters()), method_settings(method, share=0.05))
    for seed in range(3):
        loss.backward(forward_pass(net, batch(seed)))
        base.backward(forward_pass(twin, batch(seed)))
    assert_all_close(gradients_of(net.parameters()), gradients_of(twin.parameters()), rtol=1e-12)


@remembering
def test_a_gradient_that_is_not_finite_is_not_remembered(direction: str):
    settings = method_settings("sam", rho=0.5, direction=direction)
    broken = [STEPS[0], [math.inf, 1.0], STEPS[1], [math.nan, 0.0], STEPS[2]]
    found = perturbations(settings, broken)
    whole = perturbations(settings, STEPS)
    assert [found[0], found[2], found[4]] == whole
    assert found[1] == found[3] == [0.0, 0.0]


@remembering
def test_what_is_remembered_is_of_the_mean_loss(direction: str):
    """Neither batch size nor loss scale of an earlier step counts."""
    w = parameter(0.0, 0.0)
    weights = PerturbedWeights([w], method_settings("sam", rho=0.5, direction=direction))
    found = []
    for g, unit in zip(STEPS, (1.0, 64.0, 2.0**15)):
        weights.ascend([torch.tensor(g, dtype=torch.float64) * unit], divisor=unit, unit=unit)
        found.append(w.tolist())
        weights.restore()
    expected = perturbations(method_settings("sam", rho=0.5, direction=direction), STEPS)
    assert found == [pytest.approx(each, rel=1e-12) for each in expected]


@every_norm
@pytest.mark.parametrize(
    ("scale", "granularity"), [("none", None), ("weight", "layer"), ("gradient-strength", "filter")]
)
def test_a_random_direction_has_the_norms_of_the_gradient(
    norm: str, scale: str, granularity: Optional[str]
):
    net, x = SmallNet(), batch()
    parts = {"norm": norm, "scale": scale, "granularity": granularity}
    lengths, before = {}, values(net.parameters())
    for direction in ("random", "gradient"):
        seen: List[List[Tensor]] = []
        settings = method_settings("sam", rho=0.1, direction=direction, **parts)
        loss = SharpnessAwareLoss(list(net.parameters()), settings)
        outcome = loss.backward(watching(forward_pass(net, x), list(net.parameters()), seen))
        lengths[direction] = float(outcome.norm)
        moved = [there - here for there, here in zip(seen[-1], before)]
        g = gradient_at(net, x)(before)
        climbs = sum(float((a * b).sum()) for a, b in zip(g, moved) if a is not None)
        assert climbs > 0 or direction == "random"
    assert lengths["random"] == pytest.approx(
        lengths["gradient"], rel=1e-6 if norm == "l2" else 0.3
    )


@pytest.mark.parametrize("method", ["sam", "delta_sam"])
def test_what_is_drawn_is_another_in_each_step_of_a_model_that_draws_nothing(method: str):
    net, x, drawn = SmallNet(), batch(), []
    direction = "random" if method == "sam" else "gradient"
    loss = SharpnessAwareLoss(
        list(net.parameters()), method_settings(method, rho=0.1, direction=direction)
    )
    state, w = torch.get_rng_state(), net.conv.weight.detach().clone()

    def losses() -> Tensor:  # the probe's place tells the direction
        drawn.append(net.conv.weight.detach() - w)
        return losses_of(net, x)

    for _ in range(3):
        seen: List[List[Tensor]] = []
        loss.backward(
            watching(forward_pass(net, x), [net.conv.weight], seen),
            per_sentence=per_sentence(net, x),
            probe=losses,
        )
        if method == "sam":
            drawn.append(seen[-1][0] - w)
    each = drawn if method == "sam" else drawn[::2]  # at w + h r and at w - h r
    assert len(each) == 3
    cosines = torch.nn.functional.cosine_similarity(
        each[0].flatten(), torch.stack([a.flatten() for a in each[1:]])
    )
    assert cosines.abs().max() < 0.9
    assert torch.equal(torch.get_rng_state(), state)


def test_a_random_direction_is_random_and_leaves_the_masks_alone():
    x, norms = batch(), []
    for seed in (1, 1, 2):
        net = SmallNet(dropout=0.3)
        torch.manual_seed(seed)
        settings = method_settings("sam", rho=0.1, direction="random")
        loss = SharpnessAwareLoss(list(net.parameters()), settings)
        seen: List[List[Tensor]] = []
        outcome = loss.backward(watching(forward_pass(net, x), list(net.parameters()), seen))
        norms.append((seen[-1][0], torch.get_rng_state()))
        twin = SmallNet(dropout=0.3)
        torch.manual_seed(seed)
        assert float(outcome.clean.loss) == float(summed_loss(twin, x).detach())
        assert torch.equal(torch.get_rng_state(), norms[-1][1])
    assert torch.equal(norms[0][0], norms[1][0])
    assert not torch.equal(norms[0][0], norms[2][0])


class TestMomentum:
    def test_there_is_one_pass_only(self):
        net, x = SmallNet(), batch()
        seen: List[List[Tensor]] = []
        momentum = [torch.randn_like(w) for w in net.parameters()]
        kept = values(momentum)
        loss = SharpnessAwareLoss(list(net.parameters()), method_settings("momentum_sam", rho=0.3))
        before = values(net.parameters())
        outcome = loss.backward(
            watching(forward_pass(net, x), list(net.parameters()), seen), momentum=momentum
        )
        assert len(seen) == 2  # in its first step it looks for what passes write into weights
        assert_all_equal(seen.pop(0), before)
        length = torch.cat([m.flatten() for m in momentum]).norm()
        expected = [w - 0.3 * m / length for w, m in zip(before, momentum)]
        assert_all_close(seen[0], expected, rtol=1e-12)
        assert_all_close(gradients_of(net.parameters()), gradient_at(net, x)(expected), rtol=1e-10)
        assert_all_equal(values(net.parameters()), before)
        assert_all_equal(momentum, kept)
        assert outcome.clean is None
        assert outcome.logged is outcome.perturbed
        assert float(outcome.norm) == pytest.approx(0.3)

    def test_two_micro_batches_are_one_batch_of_both(self):
        net, twin, x = SmallNet(), SmallNet(), batch()
        momentum = [torch.randn_like(w) for w in net.parameters()]
        settings = method_settings("momentum_sam", rho=0.3)
        loss = SharpnessAwareLoss(list(net.parameters()), settings)
        whole = SharpnessAwareLoss(list(twin.parameters()), settings)

        def forward(model: nn.Module, rows: slice) -> Any:
            target = torch.arange(len(x))[rows] % 3
            return lambda: ForwardPass(
                nn.functional.cross_entropy(model(x[rows]), target, reduction="sum"), 1
            )

        for rows in (slice(0, 4), slice(4, None)):
            loss.backward(forward(net, rows), momentum=momentum)
        whole.backward(forward(twin, slice(None)), momentum=momentum)
        assert_all_close(
            gradients_of(net.parameters()), gradients_of(twin.parameters()), rtol=1e-13
        )

    def test_without_momentum_nothing_moves(self):
        net, twin, x = SmallNet(), SmallNet(), batch()
        loss = SharpnessAwareLoss(list(net.parameters()), method_settings("momentum_sam"))
        outcome = loss.backward(forward_pass(net, x), momentum=[None] * len(loss.trained))
        summed_loss(twin, x).backward()
        assert_all_equal(gradients_of(net.parameters()), gradients_of(twin.parameters()))
        assert float(outcome.norm) == float(outcome.rho) == 0.0

    def test_with_sgd_it_looks_where_nesterov_does(self):
        """With ‖a‖ = η μ ‖m‖ the gradient is taken at w − η μ m, and w moves as Nesterov's."""
        rate, mu, curvature = 0.05, 0.9, torch.tensor([1.0, 10.0], dtype=torch.float64)
        w, m, ours = parameter(1.0, 1.0), torch.zeros(2, dtype=torch.float64), []
        for _ in range(10):
            rho = float(rate * mu * m.norm())
            settings = method_settings("momentum_sam", rho=rho)
            w.grad = None
            SharpnessAwareLoss([w], settings).backward(
                lambda: ForwardPass(0.5 * (curvature * w * w).sum()), momentum=[m]
            )
            m = mu * m + w.grad
            with torch.no_grad():
                w.sub_(rate * m)
            ours.append(w.tolist())
        position, velocity, theirs = torch.ones(2, dtype=torch.float64), torch.zeros(2).double(), []
        for _ in range(10):
            velocity = mu * velocity - rate * curvature * (position + mu * velocity)
            position = position + velocity
            theirs.append(position.tolist())
        assert ours == [pytest.approx(each, rel=1e-10) for each in theirs]

    def test_the_cosine_is_that_with_the_gradient(self):
        w = parameter(3.0, 4.0)
        loss = SharpnessAwareLoss([w], method_settings("momentum_sam", rho=1e-9))
        m = torch.tensor([-1.0, 0.0], dtype=torch.float64)
        outcome = loss.backward(lambda: ForwardPass(0.5 * (w * w).sum()), momentum=[m])
        assert float(outcome.cosine) == pytest.approx(0.6)

    def test_it_has_to_be_given(self):
        loss = SharpnessAwareLoss([parameter(1.0)], method_settings("momentum_sam"))
        with pytest.raises(ValueError, match="direction is momentum"):
            loss.backward(lambda: ForwardPass(loss.trained[0].sum()))

    def test_an_exception_leaves_the_weights_in_place(self):
        net = SmallNet()
        before = values(net.parameters())

        def fail() -> ForwardPass:
            raise KeyboardInterrupt

        loss = SharpnessAwareLoss(list(net.parameters()), method_settings("momentum_sam"))
        with pytest.raises(KeyboardInterrupt):
            loss.backward(fail, momentum=[torch.ones_like(w) for w in net.parameters()])
        assert_all_equal(values(net.parameters()), before)


@pytest.mark.parametrize(
    "parts",
    [
        {"risk": "mean"},
        {"risk": "functional"},
        {"num_steps": 2},
        {"share": 0.05},
        {"weighting": "draft"},
        {"ascent_fraction": 0.5},
        {"loss_reduction": "sum"},
        {"per_instance": True},
    ],
)
def test_momentum_refuses_what_needs_a_pass_at_w(parts: Any):
    with pytest.raises(ValueError, match=r"momentum|sentence by sentence"):
        method_settings("momentum_sam", **parts)


def test_momentum_goes_on_where_a_step_does_something_at_w():
    """Going to w and back within a pass is not taken for the pass's own writing."""
    net, x = SmallNet(), batch(1)
    trained = list(net.parameters())
    momentum = [torch.randn_like(w) for w in trained]
    loss = SharpnessAwareLoss(trained, method_settings("momentum_sam", rho=0.3), modules=[net])

    def step(this: Any) -> ForwardPass:
        this.once(lambda: None)
        output = forward_pass(net, x)()
        this.backward(output.loss)
        return output

    for _ in range(3):
        outcome = loss.run(step, lambda each: each.backward(), momentum=momentum)
        assert float(outcome.norm) == pytest.approx(0.3)
    assert loss.written == []
