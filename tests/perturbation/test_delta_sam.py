"""δ-SAM in the engine: what it climbs, what it minimises, what it costs and leaves behind."""

import copy
from typing import Any, Callable, List, NamedTuple, Optional, Sequence

import pytest
import torch
from torch import Tensor, nn

from fairseq_sam.perturbation import (
    ForwardPass,
    SharpnessAwareLoss,
    method_settings,
    sentence_weights,
)
from tests.perturbation import reference, sentence_reference
from tests.perturbation.small_net import (
    SmallNet,
    assert_all_close,
    assert_all_equal,
    batch,
    gradients_of,
    summed_loss,
    values,
    watching,
)
from tests.perturbation.test_replay import (
    RecordingDropout,
    _keep_generators,  # noqa: F401  (an autouse fixture)
    draw_from_everything,
    seed_everything,
)

ETA, BETA, PROBE = 1e-3, 3.0, 0.03

every_weighting = pytest.mark.parametrize("weighting", ["published", "draft"])
every_risk = pytest.mark.parametrize("risk", ["perturbed", "mean"])
every_step = pytest.mark.parametrize("num_steps", [1, 2, 3])
every_norm = pytest.mark.parametrize("norm", ["l2", "linf"])


def losses_of(net: nn.Module, x: Tensor) -> Tensor:
    target = torch.arange(len(x), device=x.device) % 3
    return nn.functional.cross_entropy(net(x), target, reduction="none")


def forward_pass(net: nn.Module, x: Tensor) -> Callable[[], ForwardPass]:
    """One that does not know the losses: what the last pass has to be content with."""
    return lambda: ForwardPass(summed_loss(net, x), len(x))


def per_sentence(net: nn.Module, x: Tensor) -> Callable[[], ForwardPass]:
    def forward() -> ForwardPass:
        losses = losses_of(net, x)
        return ForwardPass(losses.sum(), len(x), None, losses)

    return forward


def delta_settings(weighting: str, **parts: Any) -> Any:
    parts = {"rho": 0.05, "probe_radius": PROBE, "eta": ETA, "beta": BETA, **parts}
    return method_settings("delta_sam", weighting=weighting, **parts)


def evaluate(sharpness_aware: SharpnessAwareLoss, net: nn.Module, x: Tensor, **how: Any) -> Any:
    forward = how.pop("forward", forward_pass(net, x))
    return sharpness_aware.backward(forward, per_sentence=per_sentence(net, x), **how)


def evaluate_watching(
    sharpness_aware: SharpnessAwareLoss, net: nn.Module, x: Tensor, tensors: Sequence[Tensor]
) -> Any:
    """Also returns the tensors as they are in the last pass, the only one of ``forward``."""
    seen: List[List[Tensor]] = []
    forward = watching(forward_pass(net, x), tensors, seen)
    outcome = evaluate(sharpness_aware, net, x, forward=forward)
    assert len(seen) == 1
    return outcome, seen[0]


@pytest.fixture
def directions(monkeypatch: pytest.MonkeyPatch) -> List[List[Tensor]]:
    """The random directions that the engine draws, as it draws them."""
    drawn: List[List[Tensor]] = []
    draw = sentence_weights.random_direction

    def recorded(weights: List[Tensor], length: Tensor, draws: Any) -> List[Tensor]:
        direction = draw(weights, length, draws)
        drawn.append([part / length for part in direction])
        return direction

    monkeypatch.setattr(sentence_weights, "random_direction", recorded)
    return drawn


class Slowly(NamedTuple):
    """The same net, evaluated at any weights."""

    net: nn.Module
    x: Tensor

    def at(self, weights: Sequence[Tensor]) -> nn.Module:
        net = copy.deepcopy(self.net)
        with torch.no_grad():
            for parameter, weight in zip(net.parameters(), weights):
                parameter.copy_(weight)
        return net

    def losses(self, weights: Sequence[Tensor]) -> List[float]:
        """One sentence at a time; its class is its place in the batch."""
        net, found = self.at(weights), []
        with torch.no_grad():
            for place in range(len(self.x)):
                lprobs = torch.log_softmax(net(self.x[place : place + 1]), dim=1)
                found.append(-float(lprobs[0, place % 3]))
        return found

    def gradients(
        self, weights: Sequence[Tensor], sentence_weights: Optional[Sequence[float]]
    ) -> reference.Gradients:
        net = self.at(weights)
        counts = [1.0] * len(self.x) if sentence_weights is None else sentence_weights
        for place, count in enumerate(counts):
            loss = losses_of(net, self.x)[place]
            (count * loss).backward()
        return gradients_of(list(net.parameters()))

    def sentence_weights(
        self, weighting: str, weights: Sequence[Tensor], r: Sequence[Tensor], rho: float
    ) -> List[float]:
        """Eq. 5 or Eqs. 3-6, the former's differences brought from PROBE to ρ."""
        clean = self.losses(weights)
        plus = self.losses([w + PROBE * part for w, part in zip(weights, r)])
        if weighting == "draft":
            return sentence_reference.mean_one(sentence_reference.draft(clean, plus, BETA))
        minus = self.losses([w - PROBE * part for w, part in zip(weights, r)])
        first = [(p - m) * rho / PROBE for p, m in zip(plus, minus)]
        second = [(p + m - 2 * c) * (rho / PROBE) ** 2 for c, p, m in zip(clean, plus, minus)]
        found = [abs(s) / max(abs(f), ETA) for s, f in zip(second, first)]
        return sentence_reference.mean_one(found)


def perturbable(net: nn.Module) -> List[Tensor]:
    return [parameter for parameter in net.parameters() if parameter.requires_grad]


SCALES = [
    ("none", None),
    ("weight", "element"),
    ("weight-over-gradient", "layer"),
    ("gradient-strength", "layer"),
    ("inverse-gradient", "filter"),
    ("weight-strength", "model"),
]


@every_weighting
@every_risk
@every_step
@every_norm
@pytest.mark.parametrize(("scale", "granularity"), SCALES)
def test_a_step_is_that_of_the_slow_reference(
    scale: str,
    granularity: Any,
    norm: str,
    num_steps: int,
    risk: str,
    weighting: str,
    directions: List[List[Tensor]],
):
    """Every part of the family with either weights: δ-GA-SAM, δ-ASAM, …"""
    net, x, rho = SmallNet(), batch(), 0.02
    net.frozen.requires_grad_(False)
    parameters = perturbable(net)
    slowly = Slowly(copy.deepcopy(net), x)
    settings = delta_settings(
        weighting,
        rho=rho,
        norm=norm,
        scale=scale,
        granularity=granularity,
        risk=risk,
        num_steps=num_steps,
    )
    seed_everything()
    sharpness_aware = SharpnessAwareLoss(parameters, settings)
    outcome, moved = evaluate_watching(sharpness_aware, net, x, list(net.parameters()))
    before = list(slowly.net.parameters())
    assert_all_equal(values(list(net.parameters())), before)

    r = iter(directions[0])
    spread = [next(r) if p.requires_grad else torch.zeros_like(p) for p in before]
    weights = slowly.sentence_weights(weighting, values(before), spread, rho)
    assert max(weights) - min(weights) > 0.1  # nothing to see otherwise
    expected, perturbations = sentence_reference.delta_sam_gradient(
        slowly.gradients,
        before,
        weights,
        rho,
        norm,
        scale,
        granularity,
        risk,
        num_steps,
        divisor=len(x),
    )
    assert len(directions) == 1
    tolerance = 1e-6  # the second difference of losses of 1e0 with h² = 1e-3
    found = [one - other for one, other in zip(moved, before)]
    size = max(float(part.abs().max()) for part in perturbations[-1])
    assert size > 0
    for one, other in zip(found, perturbations[-1]):
        torch.testing.assert_close(one, other, rtol=0, atol=tolerance * size)
    assert_all_close(gradients_of(list(net.parameters())), expected, rtol=tolerance)
    assert float(outcome.norm) == pytest.approx(
        float(reference.flat(perturbations[-1]).norm()), rel=tolerance
    )
    assert not bool(outcome.uniform)
    assert float(outcome.clean.loss) == pytest.approx(sum(slowly.losses(before)))


@every_weighting
def test_sentence_weights_are_constants_to_the_gradient(
    weighting: str, directions: List[List[Tensor]]
):
    """Differentiating through the weights as well gives another direction."""
    net, x = SmallNet(), batch()
    parameters = perturbable(net)
    before = values(parameters)
    seed_everything()
    sharpness_aware = SharpnessAwareLoss(parameters, delta_settings(weighting, rho=0.05))
    evaluate(sharpness_aware, net, x)
    _, moved = evaluate_watching(sharpness_aware, net, x, parameters)
    found = reference.flat([p - b for p, b in zip(moved, before)])
    assert_all_equal(values(parameters), before)

    names = [name for name, p in net.named_parameters() if p.requires_grad]
    step = dict(zip(names, directions[-1]))

    def losses_at(h: float) -> Tensor:
        moved = {name: p + h * step[name] for name, p in net.named_parameters() if name in step}
        net_at = lambda inputs: torch.func.functional_call(net, moved, (inputs,))  # noqa: E731
        return losses_of(net_at, x)

    clean, plus, minus = losses_at(0.0), losses_at(PROBE), losses_at(-PROBE)
    if weighting == "published":
        ratio = 0.05 / PROBE
        second = (plus + minus - 2 * clean).abs() * ratio**2
        weights = second / ((plus - minus).abs() * ratio).clamp(min=ETA)
        weights = weights / weights.sum()
    else:
        change = plus - clean
        share = change.abs() / change.abs().sum()
        mix = BETA * change.mean().abs() / (share * change).sum().abs()
        weights = (share - 1 / 6) * mix + 1 / 6

    def direction(constant: Tensor) -> Tensor:
        given = torch.autograd.grad(
            (constant * clean).sum(), parameters, retain_graph=True, allow_unused=True
        )
        g = reference.flat(
            [torch.zeros_like(p) if part is None else part for p, part in zip(parameters, given)]
        )
        return 0.05 * g / g.norm()

    expected, other = direction(weights.detach()), direction(weights)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6 * 0.05)
    assert float((other - expected).norm()) > 0.01 * 0.05


class Counted(nn.Module):
    """Counts forward passes with and without autograd, and backward passes."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net
        self.events: List[str] = []

    def forward(self, x: Tensor) -> Tensor:
        output = self.net(x)
        self.events.append("forward" if torch.is_grad_enabled() else "probe")
        if output.requires_grad:
            output.register_hook(lambda _: self.events.append("backward"))
        return output


@every_weighting
@every_step
def test_passes_of_a_single_step_risk(num_steps: int, weighting: str):
    net, x = Counted(SmallNet()), batch()
    settings = delta_settings(weighting, num_steps=num_steps)
    evaluate(SharpnessAwareLoss(perturbable(net), settings), net, x)
    probes = ["probe"] * (2 if weighting == "published" else 1)
    assert net.events == probes + ["forward", "backward"] * (num_steps + 1)


@every_weighting
@every_step
def test_passes_of_a_multi_step_risk(num_steps: int, weighting: str):
    """Its own gradient is unweighted, the ascent's is not: two backward passes from one graph."""
    net, x = Counted(SmallNet()), batch()
    settings = delta_settings(weighting, num_steps=num_steps, risk="mean")
    evaluate(SharpnessAwareLoss(perturbable(net), settings), net, x)
    probes = ["probe"] * (2 if weighting == "published" else 1)
    inner = ["forward", "backward", "backward"] * num_steps
    assert net.events == probes + inner + ["forward", "backward"]


@pytest.mark.parametrize("num_steps", [1, 2])
def test_other_methods_do_not_probe(num_steps: int):
    net, x = Counted(SmallNet()), batch()
    settings = method_settings("ga_sam", num_steps=num_steps)
    outcome = evaluate(SharpnessAwareLoss(perturbable(net), settings), net, x)
    assert net.events == ["forward", "backward"] * (num_steps + 1)
    assert outcome.uniform is None


@every_weighting
@every_risk
@every_step
def test_every_pass_draws_the_same_masks(num_steps: int, risk: str, weighting: str):
    net, x = SmallNet(), batch()
    net.dropout = RecordingDropout()
    settings = delta_settings(weighting, num_steps=num_steps, risk=risk)
    sharpness_aware = SharpnessAwareLoss(perturbable(net), settings)
    seed_everything()
    for _ in range(2):
        evaluate(sharpness_aware, net, x)
    masks, calls = net.dropout.masks, 2  # in a forward pass
    passes = num_steps + 1 + (2 if weighting == "published" else 1)
    assert len(masks) == 2 * passes * calls
    steps = [masks[: passes * calls], masks[passes * calls :]]
    for step in steps:
        for i, mask in enumerate(step):
            assert torch.equal(mask, step[i % calls])
    first, second = (torch.cat(step[:calls]) for step in steps)
    assert not torch.equal(first, second)


@every_weighting
@every_risk
@pytest.mark.parametrize("num_steps", [1, 2])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_the_generators_end_where_a_plain_pass_leaves_them(
    dtype: Any, num_steps: int, risk: str, weighting: str
):
    net, x = SmallNet(dropout=0.3).to(dtype), batch().to(dtype)
    seed_everything()
    plain = summed_loss(net, x).item()
    expected = draw_from_everything()
    seed_everything()
    settings = delta_settings(weighting, num_steps=num_steps, risk=risk)
    outcome = evaluate(SharpnessAwareLoss(perturbable(net), settings), net, x)
    assert draw_from_everything() == expected
    assert outcome.clean.loss.item() == pytest.approx(plain, rel=1e-2)


@every_weighting
def test_every_step_has_its_own_direction(weighting: str, directions: List[List[Tensor]]):
    net, x = SmallNet(dropout=0.3), batch()
    sharpness_aware = SharpnessAwareLoss(perturbable(net), delta_settings(weighting))
    seed_everything()
    for _ in range(3):
        evaluate(sharpness_aware, net, x)
    seed_everything()
    evaluate(sharpness_aware, net, x)
    first, second, third, again = (reference.flat(r) for r in directions)
    assert float(first.norm()) == pytest.approx(1)
    assert torch.equal(first, again)
    for one, other in ((first, second), (first, third), (second, third)):
        assert float((one - other).norm()) > 0.5


@every_weighting
def test_only_what_is_perturbed_is_probed(weighting: str, directions: List[List[Tensor]]):
    net, x = SmallNet(), batch()
    chosen = [net.hidden.weight, net.out.weight]
    rest = [p for p in net.parameters() if all(p is not c for c in chosen)]
    before, seen = values(rest), []
    net.register_forward_hook(lambda *_: seen.append(values(rest)))
    settings = delta_settings(weighting)
    sharpness_aware = SharpnessAwareLoss(perturbable(net), settings, perturbed=chosen)
    evaluate(sharpness_aware, net, x)
    for values_then in seen:
        assert_all_equal(values_then, before)
    assert [part.shape for part in directions[0]] == [weight.shape for weight in chosen]


@every_weighting
@every_risk
@every_step
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_the_weights_come_back_bit_for_bit(dtype: Any, num_steps: int, risk: str, weighting: str):
    net, x = SmallNet().to(dtype), batch().to(dtype)
    before = values(list(net.parameters()))
    settings = delta_settings(weighting, num_steps=num_steps, risk=risk)
    sharpness_aware = SharpnessAwareLoss(perturbable(net), settings)
    for _ in range(2):
        evaluate(sharpness_aware, net, x)
        assert_all_equal(values(list(net.parameters())), before)


@every_weighting
@every_risk
@pytest.mark.parametrize("at_pass", range(6))
def test_a_pass_that_raises_leaves_weights_and_gradients(at_pass: int, risk: str, weighting: str):
    net, x = SmallNet(batch_norm=True), batch()
    parameters = list(net.parameters())
    summed_loss(net, batch(seed=5)).backward()
    accumulated, before = gradients_of(parameters), values(parameters)
    buffers, plain = values(list(net.buffers())), copy.deepcopy(net)
    summed_loss(plain, x)
    calls: List[int] = []

    def out_of_memory(*_: Any) -> None:
        calls.append(1)
        if len(calls) - 1 == at_pass:
            raise MemoryError("stop here")

    hook = net.out.register_forward_hook(out_of_memory)
    settings = delta_settings(weighting, risk=risk, num_steps=2)
    sharpness_aware = SharpnessAwareLoss(parameters, settings, modules=[net])
    passes = 5 if weighting == "published" else 4
    if at_pass >= passes:
        evaluate(sharpness_aware, net, x)
        assert len(calls) == passes
        return
    with pytest.raises(MemoryError, match="stop here"):
        evaluate(sharpness_aware, net, x)
    assert_all_equal(values(parameters), before)
    assert_all_equal(gradients_of(parameters), accumulated)
    found = list(net.buffers())
    assert any(
        all(torch.equal(ours, theirs) for ours, theirs in zip(found, allowed))
        for allowed in (buffers, list(plain.buffers()))
    )
    hook.remove()
    evaluate(sharpness_aware, net, x)  # and it goes on
    assert_all_equal(values(parameters), before)


@every_weighting
@every_risk
@every_step
def test_accumulated_gradients_survive(num_steps: int, risk: str, weighting: str):
    net, x = SmallNet(), batch()
    parameters = list(net.parameters())
    settings = delta_settings(weighting, num_steps=num_steps, risk=risk)
    seed_everything()
    evaluate(SharpnessAwareLoss(parameters, settings), net, x)
    alone = gradients_of(parameters)
    net.zero_grad(set_to_none=True)
    summed_loss(net, batch(seed=5)).backward()
    accumulated = gradients_of(parameters)
    seed_everything()
    evaluate(SharpnessAwareLoss(parameters, settings), net, x)
    expected = [None if a is None else a + g for a, g in zip(accumulated, alone)]
    assert_all_close(gradients_of(parameters), expected, rtol=1e-13)


@every_weighting
@every_risk
@pytest.mark.parametrize("num_steps", [1, 2])
def test_loss_scaling_scales_the_gradient_and_nothing_else(
    num_steps: int, risk: str, weighting: str
):
    net, x = SmallNet(), batch()
    parameters = list(net.parameters())
    settings = delta_settings(weighting, num_steps=num_steps, risk=risk, scale="gradient-strength")
    found = []
    for factor in (1.0, 1024.0):
        net.zero_grad(set_to_none=True)
        seed_everything()
        scale_loss = lambda loss, factor=factor: loss * factor  # noqa: E731
        evaluate(SharpnessAwareLoss(parameters, settings), net, x, scale_loss=scale_loss)
        found.append([g if g is None else g / factor for g in gradients_of(parameters)])
    assert_all_close(found[1], found[0], rtol=1e-9)


@every_weighting
@every_risk
@every_step
def test_running_statistics_move_exactly_once(num_steps: int, risk: str, weighting: str):
    net, x = SmallNet(batch_norm=True), batch()
    plain = copy.deepcopy(net)
    settings = delta_settings(weighting, rho=0.5, num_steps=num_steps, risk=risk)
    sharpness_aware = SharpnessAwareLoss(perturbable(net), settings, modules=[net])
    for update in range(1, 4):
        evaluate(sharpness_aware, net, x)
        summed_loss(plain, x)
        assert int(net.norm.num_batches_tracked) == update
        assert_all_close(list(net.buffers()), list(plain.buffers()), rtol=1e-14)


def test_beta_of_zero_is_sam():
    x, found = batch(), []
    for settings in (method_settings("sam", rho=0.05), delta_settings("draft", beta=0.0)):
        net, seen = SmallNet(), []
        parameters = list(net.parameters())
        forward = watching(forward_pass(net, x), parameters, seen)
        evaluate(SharpnessAwareLoss(parameters, settings), net, x, forward=forward)
        found.append(seen[-1])
    assert_all_close(found[1], found[0], rtol=1e-14)
    assert not torch.equal(found[0][-2], net.out.weight)


@every_weighting
@every_risk
def test_a_batch_of_one_sentence_is_not_weighted(risk: str, weighting: str):
    x, found = batch(size=1), []
    for settings in (
        delta_settings(weighting, risk=risk, num_steps=2),
        method_settings("sam", rho=0.05, risk=risk, num_steps=2),
    ):
        net = SmallNet()
        parameters = list(net.parameters())
        evaluate(SharpnessAwareLoss(parameters, settings), net, x)
        found.append(gradients_of(parameters))
    assert_all_close(found[0], found[1], rtol=1e-13)


@every_weighting
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_probes_that_overflow_make_the_batch_one_of_sam(bad: float, weighting: str):
    found = []
    for settings in (delta_settings(weighting), method_settings("sam", rho=0.05)):
        net, x = SmallNet(), batch()
        parameters = list(net.parameters())

        def losses(net: nn.Module = net, x: Tensor = x) -> ForwardPass:
            losses = losses_of(net, x)
            if not torch.is_grad_enabled():
                losses = losses + torch.tensor([0, 0, bad, 0, 0, 0])
            return ForwardPass(losses.sum(), len(x), None, losses)

        outcome = SharpnessAwareLoss(parameters, settings).backward(
            forward_pass(net, x), per_sentence=losses
        )
        assert bool(outcome.finite)
        found.append((outcome.uniform, gradients_of(parameters)))
    assert bool(found[0][0])
    assert found[1][0] is None
    assert_all_close(found[0][1], found[1][1], rtol=1e-13)


def test_losses_are_asked_for():
    net, x = SmallNet(), batch()
    before = values(list(net.parameters()))
    sharpness_aware = SharpnessAwareLoss(perturbable(net), delta_settings("published"))
    with pytest.raises(ValueError, match="loss of each sentence"):
        sharpness_aware.backward(forward_pass(net, x))
    assert_all_equal(values(list(net.parameters())), before)


@every_weighting
def test_half_precision_weights_are_probed_at_the_length_asked_for(weighting: str):
    """Rounding at random keeps the displacement's mean, whatever the spacing of the format."""
    net, x = SmallNet().to(torch.bfloat16), batch().to(torch.bfloat16)
    before, seen = values(net.parameters()), []

    def keep(*_: Any) -> None:
        if not torch.is_grad_enabled():
            seen.append(reference.flat(values(net.parameters())))

    net.register_forward_hook(keep)
    settings = delta_settings(weighting, probe_radius=4.0)
    evaluate(SharpnessAwareLoss(perturbable(net), settings), net, x)
    for at in seen:
        assert float((at - reference.flat(before)).norm()) == pytest.approx(4.0, rel=0.1)
    if weighting == "published":
        moved = [at - reference.flat(before) for at in seen]
        assert float(moved[0] @ moved[1]) / float(moved[0].norm() * moved[1].norm()) < -0.95
