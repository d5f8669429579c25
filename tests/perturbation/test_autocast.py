"""Under autocast the perturbed pass must see the perturbed weights."""

from typing import Any, List

import pytest
import torch
from torch import Tensor

from fairseq_sam.perturbation import ForwardPass, SharpnessAwareLoss, method_settings
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
    risk: str, num_steps: int, cache: bool, backward_inside: bool, rho: float = 0.3
) -> List[Any]:
    net, x = SmallNet().float(), batch().float()
    parameters = list(net.parameters())
    before = values(parameters)
    settings = method_settings("sam", rho=rho, risk=risk, num_steps=num_steps)
    sharpness_aware = SharpnessAwareLoss(parameters, settings)
    with torch.autocast("cpu", dtype=torch.bfloat16, cache_enabled=cache):
        for _ in range(2):
            net.zero_grad(set_to_none=True)
            outcome = sharpness_aware(forward_pass(net, x))
            if backward_inside:
                outcome.loss.backward()
        plain = net(x).detach()  # of the weights put back
    if not backward_inside:
        outcome.loss.backward()
    else:
        with torch.autocast("cpu", dtype=torch.bfloat16, cache_enabled=False):
            assert torch.equal(plain, net(x))
    assert_all_equal(values(parameters), before)
    return [*gradients_of(parameters), outcome.clean.loss, outcome.perturbed.loss, outcome.norm]


@every_risk
@pytest.mark.parametrize("num_steps", [1, 2])
@pytest.mark.parametrize("backward_inside", [True, False])
def test_cached_casts_of_the_weights_are_not_used(backward_inside: bool, num_steps: int, risk: str):
    cached, fresh = (
        gradient_under_autocast(risk, num_steps, cache, backward_inside) for cache in (True, False)
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
        sharpness_aware(forward).loss.backward()
    assert seen == [(torch.bfloat16, torch.float32)] * 3
    assert all(p.grad is None or p.grad.dtype == torch.float32 for p in net.parameters())


def test_backward_of_inner_passes_runs_outside_autocast():
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
        sharpness_aware(lambda: ForwardPass(Watch.apply(w).square().sum()))
    assert enabled == [False, False]
