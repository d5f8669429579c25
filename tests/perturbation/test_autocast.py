"""Under autocast the perturbed pass must see the perturbed weights."""

import contextlib
from typing import Any, ContextManager, List

import pytest
import torch
from torch import Tensor

from fairseq_sam.perturbation import ForwardPass, Pass, SharpnessAwareLoss, method_settings
from tests.perturbation.small_net import (
    SmallNet,
    assert_all_equal,
    batch,
    forward_pass,
    gradients_of,
    values,
)

every_risk = pytest.mark.parametrize("risk", ["perturbed", "mean"])


def gradient_under_autocast(
    risk: str, num_steps: int, cache: bool, around_step: bool, rho: float = 0.3
) -> List[Any]:
    """With autocast around the whole step, or within its forward passes alone."""
    net, x = SmallNet().float(), batch().float()
    parameters = list(net.parameters())
    before = values(parameters)
    settings = method_settings("sam", rho=rho, risk=risk, num_steps=num_steps)
    sharpness_aware = SharpnessAwareLoss(parameters, settings)

    def autocast(wanted: bool = True) -> ContextManager[Any]:
        enabled = {"enabled": wanted, "cache_enabled": cache}
        return torch.autocast("cpu", dtype=torch.bfloat16, **enabled)

    def forward() -> ForwardPass:
        with contextlib.nullcontext() if around_step else autocast():
            return forward_pass(net, x)()

    with autocast(around_step):
        for _ in range(2):
            net.zero_grad(set_to_none=True)
            outcome = sharpness_aware.backward(forward)
        plain = net(x).detach()  # of the weights put back
    if around_step:
        with torch.autocast("cpu", dtype=torch.bfloat16, cache_enabled=False):
            assert torch.equal(plain, net(x))
    assert_all_equal(values(parameters), before)
    return [*gradients_of(parameters), outcome.clean.loss, outcome.perturbed.loss, outcome.norm]


@every_risk
@pytest.mark.parametrize("num_steps", [1, 2])
@pytest.mark.parametrize("around_step", [True, False])
def test_cached_casts_of_the_weights_are_not_used(around_step: bool, num_steps: int, risk: str):
    cached, fresh = (
        gradient_under_autocast(risk, num_steps, cache, around_step) for cache in (True, False)
    )
    # The loss alone depends on the weights; the gradients show that they differ at all.
    assert_all_equal(cached, fresh)
    assert float(cached[-2]) > float(cached[-3])


@every_risk
def test_autocast_is_as_it_was_inside_the_forward_pass(risk: str):
    net, x = SmallNet().float(), batch().float()
    seen: List[Any] = []

    def forward() -> ForwardPass:
        seen.append((net.hidden(torch.zeros(1, 3)).dtype, net.hidden.weight.dtype))
        return forward_pass(net, x)()

    settings = method_settings("sam", rho=0.1, risk=risk, num_steps=2)
    sharpness_aware = SharpnessAwareLoss(list(net.parameters()), settings)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        sharpness_aware.backward(forward)
    assert seen == [(torch.bfloat16, torch.float32)] * 3
    assert all(p.grad is None or p.grad.dtype == torch.float32 for p in net.parameters())


def test_backward_runs_outside_autocast():
    """torch recommends against backward under autocast; the training loop's runs outside."""
    enabled: List[bool] = []

    class Watch(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return x.clone()

        @staticmethod
        def backward(ctx: Any, gradient: Tensor) -> Tensor:
            enabled.append((torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.bfloat16)
            return gradient

    w = torch.nn.Parameter(torch.ones(2))
    sharpness_aware = SharpnessAwareLoss([w], method_settings("sam", num_steps=2))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        sharpness_aware.backward(lambda: ForwardPass(Watch.apply(w).square().sum()))
    assert enabled == [False] * 3


def test_a_call_at_w_leaves_no_casts_to_the_pass():
    """Nor does it find those of the pass."""
    net, x = SmallNet().float(), batch().float()

    def evaluate(cache: bool) -> List[Tensor]:
        seen: List[Tensor] = []

        def step(this: Pass) -> ForwardPass:
            seen.append(net(x).detach())
            seen.append(this.at_w(lambda: net(x).detach()))
            losses = net(x).square().sum(dim=1)
            seen.append(losses.detach())
            loss = this.weigh(losses) if this.weighs else losses.sum()
            this.backward(loss)
            return ForwardPass(loss, len(x))

        settings = method_settings("delta_sam", probe_radius=1.0)
        sharpness_aware = SharpnessAwareLoss(list(net.parameters()), settings)
        with torch.random.fork_rng(), torch.autocast("cpu", torch.bfloat16, cache_enabled=cache):
            torch.manual_seed(0)
            sharpness_aware.run(step, lambda loss: loss.backward())
        return seen

    found = [evaluate(cache) for cache in (True, False)]
    assert len(found[1]) == 12
    assert not torch.equal(found[1][0], found[1][1])
    assert_all_equal(found[0], found[1])
