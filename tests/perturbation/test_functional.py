"""The functional risk J(w + a)ᵀ u, against two copies of the model and ``autograd.backward``."""

import copy
from typing import Any, Callable, List, Optional

import pytest
import torch
from torch import Tensor, nn

from fairseq_sam.perturbation import ForwardPass, SharpnessAwareLoss, method_settings
from fairseq_sam.perturbation.outputs import OutputsBypassed
from tests.perturbation.small_net import (
    METHODS,
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
from tests.perturbation.test_delta_sam import losses_of, per_sentence


def functional(net: nn.Module, **parts: Any) -> SharpnessAwareLoss:
    settings = method_settings(parts.pop("method", "functional_sam"), risk="functional", **parts)
    return SharpnessAwareLoss(list(net.parameters()), settings, modules=[net])


def by_hand(
    net: nn.Module, x: Tensor, perturbed: List[Tensor], loss_of: Callable[[Tensor], Tensor]
) -> List[Optional[Tensor]]:
    """J(w + a)ᵀ u with one copy of the model at w and another at w + a, the same dropout masks."""
    here, there = copy.deepcopy(net), copy.deepcopy(net)
    with torch.no_grad():
        for weight, value in zip(there.parameters(), perturbed):
            weight.copy_(value)
            weight.grad = None
    state = torch.get_rng_state()
    outputs = here(x).detach().requires_grad_()
    loss_of(outputs).backward()
    torch.set_rng_state(state)
    torch.autograd.backward(there(x), outputs.grad)
    return gradients_of(there.parameters())


def cross_entropy(outputs: Tensor) -> Tensor:
    target = torch.arange(len(outputs)) % 3
    return nn.functional.cross_entropy(outputs, target, reduction="sum", label_smoothing=0.1)


@pytest.mark.parametrize("method", [*METHODS, "functional_sam"])
@pytest.mark.parametrize("num_steps", [1, 2])
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_it_is_the_jacobian_at_the_perturbed_weights_times_u(
    method: str, num_steps: int, dropout: float
):
    net, x = SmallNet(dropout=dropout), batch()
    twin = copy.deepcopy(net)
    seen: List[List[Tensor]] = []
    loss = functional(net, method=method, share=0.1, num_steps=num_steps)
    forward = watching(
        lambda: ForwardPass(cross_entropy(net(x)), len(x)), list(net.parameters()), seen
    )
    state = torch.get_rng_state()
    outcome = loss.backward(forward)
    torch.set_rng_state(state)
    expected = by_hand(twin, x, seen[-1], cross_entropy)
    assert_all_close(gradients_of(net.parameters()), expected, rtol=1e-12)
    assert float(outcome.norm) > 0
    assert_all_equal(values(net.parameters()), values(twin.parameters()))


def test_at_radius_zero_it_is_the_base(capsys: Any):
    net, twin, x = SmallNet(), SmallNet(), batch()
    functional(net, rho=0.0).backward(forward_pass(net, x))
    summed_loss(twin, x).backward()
    assert_all_equal(gradients_of(net.parameters()), gradients_of(twin.parameters()))


@pytest.mark.parametrize("rho", [0.01, 1.0, 30.0])
def test_of_outputs_linear_in_the_weights_it_is_the_base(rho: float):
    x = torch.randn(6, 5, dtype=torch.float64)
    net = nn.Linear(5, 3).double()
    twin = copy.deepcopy(net)
    functional(net, rho=rho).backward(lambda: ForwardPass(cross_entropy(net(x)), len(x)))
    cross_entropy(twin(x)).backward()
    assert_all_close(gradients_of(net.parameters()), gradients_of(twin.parameters()), rtol=1e-13)


@pytest.mark.parametrize("rho", [0.01, 1.0])
def test_of_a_loss_linear_in_the_outputs_it_is_sam(rho: float):
    net, twin, x = SmallNet(), SmallNet(), batch()
    factors = torch.randn(len(x), 3, dtype=torch.float64)
    functional(net, rho=rho).backward(lambda: ForwardPass((net(x) * factors).sum(), len(x)))
    sam = SharpnessAwareLoss(list(twin.parameters()), method_settings("sam", rho=rho))
    sam.backward(lambda: ForwardPass((twin(x) * factors).sum(), len(x)))
    assert_all_equal(gradients_of(net.parameters()), gradients_of(twin.parameters()))


def test_what_it_leaves_out_is_the_path_through_the_logits():
    """(g_SAM − g_F) / ρ → Jᵀ ℓʺ J ε, and the error shrinks with ρ."""
    x, apart = batch(), []
    net = SmallNet()
    named = {n: p for n, p in net.named_parameters() if p.requires_grad and n != "unused"}

    def outputs(*weights: Tensor) -> Tensor:
        return torch.func.functional_call(net, dict(zip(named, weights)), (x,))

    weights = tuple(named.values())
    g = torch.autograd.grad(cross_entropy(outputs(*weights)), weights)
    length = torch.stack([each.norm() for each in g]).norm()
    epsilon = tuple(each / length for each in g)
    _, moved = torch.autograd.functional.jvp(outputs, weights, epsilon)
    F = outputs(*weights)
    bend = torch.autograd.functional.hvp(cross_entropy, F.detach(), moved)[1]
    path = torch.autograd.grad(F, weights, bend)
    for rho in (1e-2, 1e-3, 1e-4):
        difference = []
        for risk in ("perturbed", "functional"):
            twin = copy.deepcopy(net)
            settings = method_settings("sam", rho=rho, risk=risk)
            loss = SharpnessAwareLoss(list(twin.parameters()), settings, modules=[twin])
            loss.backward(lambda twin=twin: ForwardPass(cross_entropy(twin(x)), len(x)))
            difference.append([dict(twin.named_parameters())[name].grad for name in named])
        apart.append(
            max(
                float(((s - f) / rho - p).abs().max())
                for s, f, p in zip(difference[0], difference[1], path)
            )
        )
    assert apart[1] < apart[0] / 5
    assert apart[2] < apart[1] / 5


@pytest.mark.parametrize("scale", [2.0**-3, 2.0**15])
def test_loss_scaling_is_not_seen(scale: float):
    x, found = batch(), []
    for factor in (1.0, scale):
        net = SmallNet()
        loss = functional(net, share=0.1)
        outcome = loss.backward(forward_pass(net, x), scale_loss=lambda loss, by=factor: loss * by)
        found.append([None if g is None else g / factor for g in gradients_of(net.parameters())])
        assert float(outcome.perturbed.loss) > float(outcome.clean.loss)
    assert_all_equal(found[0], found[1])


@pytest.mark.parametrize("weighting", ["published", "draft"])
@pytest.mark.parametrize("share", [None, 0.1])
def test_weights_of_sentences_act_on_the_ascent_only(weighting: str, share: Optional[float]):
    net, x = SmallNet(), batch()
    twin = copy.deepcopy(net)
    seen: List[List[Tensor]] = []
    loss = functional(net, method="delta_sam", weighting=weighting, share=share)
    forward = watching(forward_pass(net, x), list(net.parameters()), seen)
    loss.backward(forward, per_sentence=per_sentence(net, x), probe=lambda: losses_of(net, x))
    expected = by_hand(
        twin,
        x,
        seen[-1],
        lambda F: nn.functional.cross_entropy(F, torch.arange(len(F)) % 3, reduction="sum"),
    )
    assert_all_close(gradients_of(net.parameters()), expected, rtol=1e-12)


def test_the_model_may_be_called_several_times_and_give_several_outputs():
    """As R-Drop does, and with an intermediate result among the outputs, which the loss ignores."""

    class TwoHeads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net, self.gate = SmallNet(dropout=0.3), nn.Linear(3, 1).double()

        def forward(self, x: Tensor) -> Any:
            logits = self.net(x)
            return {"logits": logits, "extra": [torch.tanh(logits), (self.gate(logits), None)]}

    net, x = TwoHeads(), batch()
    twin = copy.deepcopy(net)

    def loss_of(one: Any, other: Any) -> Tensor:
        apart = (one["logits"].softmax(1) - other["logits"].softmax(1)).square().sum()
        return cross_entropy(one["logits"]) + apart + one["extra"][1][0].square().sum()

    loss, seen = functional(net, rho=0.3), []
    state = torch.get_rng_state()
    loss.backward(
        watching(lambda: ForwardPass(loss_of(net(x), net(x)), len(x)), list(net.parameters()), seen)
    )
    here, there = copy.deepcopy(twin), copy.deepcopy(twin)
    with torch.no_grad():
        for weight, value in zip(there.parameters(), seen[-1]):
            weight.copy_(value)
    torch.set_rng_state(state)
    ours = [here(x), here(x)]
    leaves = [
        {
            "logits": o["logits"].detach().requires_grad_(),
            "extra": [None, (o["extra"][1][0].detach().requires_grad_(), None)],
        }
        for o in ours
    ]
    loss_of(*leaves).backward()
    torch.set_rng_state(state)
    theirs = [there(x), there(x)]
    torch.autograd.backward(
        [theirs[0]["logits"], theirs[1]["logits"], theirs[0]["extra"][1][0]],
        [leaves[0]["logits"].grad, leaves[1]["logits"].grad, leaves[0]["extra"][1][0].grad],
    )
    assert_all_close(gradients_of(net.parameters()), gradients_of(there.parameters()), rtol=1e-12)


def test_the_last_pass_ends_with_the_models_last_call():
    net, x, losses = SmallNet(), batch(), []

    def forward() -> ForwardPass:
        output = net(x)
        losses.append(1)
        return ForwardPass(cross_entropy(output), len(x))

    loss = functional(net)
    for _ in range(3):
        loss.backward(forward)
    assert len(losses) == 3  # once a step; the check of the first step needs none either


@pytest.mark.parametrize("kind", ["a weight of its own", "the same weight", "no output at all"])
def test_a_loss_past_the_outputs_is_refused(kind: str):
    net, x = SmallNet(), batch()
    own = nn.Linear(3, 3).double()

    def forward() -> ForwardPass:
        if kind == "a weight of its own":
            return ForwardPass(cross_entropy(own(net(x))), len(x))
        if kind == "the same weight":
            return ForwardPass(cross_entropy(net(x) @ net.out.weight[:, :3]), len(x))
        return ForwardPass(cross_entropy(net.forward(x)), len(x))

    weights = [*net.parameters(), *own.parameters()]
    before = values(weights)
    loss = SharpnessAwareLoss(weights, method_settings("functional_sam"), modules=[net, own])
    with pytest.raises(OutputsBypassed):
        loss.backward(forward)
    assert_all_equal(values(weights), before)
    assert all(weight.grad is None for weight in weights)


def test_outputs_that_a_loss_leaves_out_may_be_infinite():
    net, x = SmallNet(), batch()

    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = net

        def forward(self, x: Tensor) -> Tensor:
            outputs = self.net(x)
            mask = torch.arange(3) > 1
            return outputs.masked_fill(mask, -torch.inf)

    model = Masked()
    target = torch.arange(len(x)) % 2
    loss = SharpnessAwareLoss(
        list(net.parameters()), method_settings("functional_sam"), modules=[model]
    )
    outcome = loss.backward(lambda: ForwardPass(nn.functional.cross_entropy(model(x), target)))
    assert bool(torch.isfinite(torch.as_tensor(outcome.perturbed.loss)))
    assert all(bool(torch.isfinite(w.grad).all()) for w in net.parameters() if w.grad is not None)


def test_the_model_has_to_be_named():
    with pytest.raises(ValueError, match="risk is functional"):
        SharpnessAwareLoss([nn.Parameter(torch.ones(1))], method_settings("functional_sam"))


def test_gradients_accumulate():
    x, parts = batch(), []
    net = SmallNet()
    loss = functional(net, share=0.1)
    for part in (x[:2], x[2:]):
        twin = SmallNet()
        functional(twin, share=0.1).backward(forward_pass(twin, part))
        parts.append(gradients_of(twin.parameters()))
        loss.backward(forward_pass(net, part))
    total = [None if a is None else a + b for a, b in zip(*parts)]
    assert_all_close(gradients_of(net.parameters()), total, rtol=1e-13)
