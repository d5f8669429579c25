"""A loss of which one part is perturbed and another is not, against two copies of the network."""

import copy
from typing import Any, List, Tuple

import pytest
import torch
from torch import Tensor, nn

from fairseq_sam.perturbation import ForwardPass, SharpnessAwareLoss, method_settings
from fairseq_sam.perturbation.outputs import OutputsBypassed
from fairseq_sam.perturbation.risk import call_at
from tests.perturbation.small_net import (
    SmallNet,
    assert_all_close,
    assert_all_equal,
    batch,
    gradients_of,
    values,
)

RHO = 0.3


def part_loss(one: Tensor, other: Tensor) -> Tensor:
    """Couples the two outputs, so that neither gradient is that of a part alone."""
    return (one - other.flip(0)).tanh().square().sum() + (one * other).sum()


class OneView(nn.Module):
    """Has the forward signature of keyword inputs that the seam uses."""

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        self.net = SmallNet(dropout=dropout)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


def sharpness_aware_gradient(
    model: OneView, x: Tensor, **settings: Any
) -> Tuple[SharpnessAwareLoss, List[Any]]:
    trained = trained_weights(model)
    loss = SharpnessAwareLoss(trained, method_settings("sam", rho=RHO, **settings))

    def forward() -> ForwardPass:
        first = loss.call_unperturbed(model, x=x)
        return ForwardPass(part_loss(first, model(x=x)))

    loss.backward(forward)
    return loss, gradients_of(trained)


def trained_weights(model: nn.Module) -> List[Tensor]:
    return [weight for weight in model.parameters() if weight.requires_grad]


def perturb_(weights: List[Tensor], gradients: List[Any]) -> None:
    """SAM's step, Foret et al. 2021, Eq. 2."""
    norm = torch.stack([g.square().sum() for g in gradients if g is not None]).sum().sqrt()
    with torch.no_grad():
        for weight, gradient in zip(weights, gradients):
            if gradient is not None:
                weight += RHO * gradient / norm


def two_network_gradient(one: OneView, other: OneView, x: Tensor) -> List[Any]:
    for network in (one, other):
        network.zero_grad(set_to_none=True)
    part_loss(one(x=x), other(x=x)).backward()
    pairs = zip(trained_weights(one), trained_weights(other))
    return [None if p.grad is None else p.grad + q.grad for p, q in pairs]


def expected_gradient(model: OneView, x: Tensor, num_perturbed: int = 100) -> List[Any]:
    """SAM's gradient where only the second view is perturbed, with a network for each view."""
    one, other = copy.deepcopy(model), copy.deepcopy(model)
    part_loss(one(x=x).detach(), other(x=x)).backward()
    chosen = trained_weights(other)[:num_perturbed]
    perturb_(chosen, gradients_of(chosen))
    return two_network_gradient(one, other, x)


def test_gradient_is_that_of_two_networks() -> None:
    model, x = OneView(), batch()
    before = values(list(model.parameters()))
    expected = expected_gradient(model, x)
    _, found = sharpness_aware_gradient(model, x)
    assert_all_close(found, expected)
    assert_all_equal(values(list(model.parameters())), before)


def test_it_differs_from_perturbing_both() -> None:
    model, x = OneView(), batch()
    _, one = sharpness_aware_gradient(model, x)
    for weight in model.parameters():
        weight.grad = None
    trained = trained_weights(model)
    both = SharpnessAwareLoss(trained, method_settings("sam", rho=RHO))
    both.backward(lambda: ForwardPass(part_loss(model(x=x), model(x=x))))
    pairs = zip(one, gradients_of(trained))
    assert any(a is not None and not torch.allclose(a, b, rtol=1e-3) for a, b in pairs)


def test_weights_left_out_of_the_perturbation() -> None:
    model, x = OneView(), batch()
    trained = trained_weights(model)
    loss = SharpnessAwareLoss(trained, method_settings("sam", rho=RHO), perturbed=trained[:2])

    def forward() -> ForwardPass:
        return ForwardPass(part_loss(loss.call_unperturbed(model, x=x), model(x=x)))

    loss.backward(forward)
    assert_all_close(gradients_of(trained), expected_gradient(model, x, num_perturbed=2))


def test_mean_risk_has_the_gradient_of_both_passes() -> None:
    model, x = OneView(), batch()
    expected_clean = two_network_gradient(copy.deepcopy(model), copy.deepcopy(model), x)
    loss, found = sharpness_aware_gradient(model, x, risk="mean")
    assert float(loss.weights.norm) == pytest.approx(RHO)
    other = copy.deepcopy(model)
    perturb_(trained_weights(other), expected_clean)  # the ascent follows the whole gradient here
    last = two_network_gradient(copy.deepcopy(model), other, x)
    pairs = zip(expected_clean, last)
    assert_all_close(found, [None if g is None else (g + h) / 2 for g, h in pairs])


def test_the_functional_risk_is_refused() -> None:
    """Of the view at w the outputs' product would have no gradient, and none be trained on."""
    model, x = OneView(), batch()
    before = values(trained_weights(model))
    loss = SharpnessAwareLoss(
        trained_weights(model), method_settings("functional_sam"), modules=[model]
    )

    def forward() -> ForwardPass:
        first = loss.call_unperturbed(model, x=x)
        return ForwardPass(part_loss(first, model(x=x)))

    with pytest.raises(OutputsBypassed):
        loss.backward(forward)
    assert_all_equal(trained_weights(model), before)


def test_dropout_masks_are_those_of_the_other_passes() -> None:
    model, x = OneView(dropout=0.5), batch()
    trained = trained_weights(model)
    loss = SharpnessAwareLoss(trained, method_settings("sam", rho=RHO))
    seen: List[Tensor] = []

    def forward() -> ForwardPass:
        first = loss.call_unperturbed(model, x=x)
        seen.append(first.detach())
        return ForwardPass(part_loss(first, model(x=x)))

    loss.backward(forward)
    assert len(seen) == 2
    assert torch.equal(*seen)


def test_no_grad_call_leaves_nothing_in_the_autocast_cache() -> None:
    layer = nn.Linear(3, 3)
    x = torch.ones(2, 3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        call_at(layer, [], False, input=x)
        layer(x).float().sum().backward()
    assert layer.weight.grad is not None
