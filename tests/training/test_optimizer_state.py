"""Momentum and second moments of the base optimizer, read through what fairseq wraps around it."""

from types import SimpleNamespace
from typing import Any, List

import pytest
import torch
from fairseq.optim.adafactor import Adafactor
from fairseq.optim.adam import Adam
from fairseq.optim.adamax import Adamax
from fairseq.optim.nag import NAG
from torch import Tensor, nn

from fairseq_sam.training.optimizer_state import (
    has_momentum,
    has_second_moments,
    momentum_of,
    second_moments_of,
)

WITH = {
    "adam": lambda p: Adam(p, lr=0.1, betas=(0.9, 0.98)),
    "adamax": lambda p: Adamax(p, lr=0.1),
    "nag": lambda p: NAG(p, lr=0.1, momentum=0.9),
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
    "adafactor": lambda p: Adafactor(p, lr=0.1, beta1=0.9, relative_step=False),
}
WITHOUT = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1),
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=0.1),
    "adadelta": lambda p: torch.optim.Adadelta(p),
    "adafactor": lambda p: Adafactor(p),
}


def base_of(inner: Any) -> Any:
    return SimpleNamespace(optimizer=inner, sharpness_aware=True)


def weights() -> List[nn.Parameter]:
    return [
        nn.Parameter(torch.ones(2, 3)),
        nn.Parameter(torch.ones(4)),
        nn.Parameter(torch.ones(1)),
    ]


def take_steps(inner: Any, trained: List[Any]) -> None:
    """Three updates with a gradient that points one way; the last weight never has one."""
    for _ in range(3):
        for number, weight in enumerate(trained[:2], 1):
            weight.grad = torch.full_like(weight, float(number))
        inner.step()


@pytest.mark.parametrize("name", sorted(WITH))
def test_it_points_where_the_gradients_did(name: str):
    trained = weights()
    inner = WITH[name](trained)
    base = base_of(inner)
    assert has_momentum(base)
    assert momentum_of(base, trained) == [None] * 3
    take_steps(inner, trained)
    found = momentum_of(base, trained)
    assert found[2] is None
    assert [m.shape for m in found[:2]] == [w.shape for w in trained[:2]]
    assert all(bool((m > 0).all()) for m in found[:2])


@pytest.mark.parametrize("name", sorted(WITHOUT))
def test_some_have_none(name: str):
    assert not has_momentum(base_of(WITHOUT[name](weights())))


def test_adams_is_its_own_tensor():
    trained = weights()
    inner = WITH["adam"](trained)
    take_steps(inner, trained)
    found = momentum_of(base_of(inner), trained)
    assert found[0] is inner.state[trained[0]]["exp_avg"]


@pytest.mark.parametrize("flat", [True, False])
def test_half_precision_copies_stand_for_the_models_weights(flat: bool):
    halves: List[Any] = [nn.Parameter(w.detach().half()) for w in weights()]
    halves[1].requires_grad_(False)
    moving = [w for w in halves if w.requires_grad]
    copies: Any
    if flat:
        parameter = nn.Parameter(torch.cat([w.detach().float().flatten() for w in moving]))
        parameter.grad = torch.arange(7.0) + 1
        copies, owned = {0: parameter}, [parameter]
    else:
        owned = [nn.Parameter(w.detach().float()) for w in halves]
        owned[0].grad, owned[2].grad = (torch.arange(6.0) + 1).view(2, 3), torch.tensor([7.0])
        copies = owned
    inner = WITH["adam"](owned)
    inner.step()
    optimizer = SimpleNamespace(
        fp32_optimizer=base_of(inner), fp16_params=halves, fp32_params=copies, has_flat_params=flat
    )
    found = momentum_of(optimizer, halves)
    expected: List[Tensor] = [(torch.arange(6.0) + 1).view(2, 3) * 0.1, torch.tensor([0.7])]
    assert found[1] is None
    torch.testing.assert_close([found[0], found[2]], expected)


def test_a_scaled_state_is_brought_to_its_own_size():
    """fairseq's Adam with ``--fp16-adam-stats`` keeps a factor beside each."""
    trained = weights()[:1]
    inner = WITH["adam"](trained)
    inner.state[trained[0]] = {"exp_avg": torch.ones(2, 3).half(), "exp_avg_scale": 0.5}
    (found,) = momentum_of(base_of(inner), trained)
    torch.testing.assert_close(found, torch.full((2, 3), 0.5))


def test_the_parts_of_a_composite():
    first, second = weights()[:1], weights()[:1]
    members = {"a": base_of(WITH["adam"](first)), "b": base_of(WITH["nag"](second))}
    composite = base_of(SimpleNamespace(optimizers=members))
    for each, trained in zip(members.values(), (first, second)):
        trained[0].grad = torch.ones(2, 3)
        each.optimizer.step()
    assert has_momentum(composite)
    assert all(bool((m > 0).all()) for m in momentum_of(composite, first + second))


@pytest.mark.parametrize("name", ["adam", "adafactor"])
def test_second_moments_are_those_of_the_gradients(name: str):
    """After three updates with one gradient v̂ of the fourth is its square, whatever the decay."""
    trained = weights()
    inner = WITH[name](trained)
    base = base_of(inner)
    assert has_second_moments(base)
    assert second_moments_of(base, trained) == [None] * 3
    take_steps(inner, trained)
    found = second_moments_of(base, trained)
    assert found[2] is None
    for number, (moment, weight) in enumerate(zip(found[:2], trained), 1):
        assert moment is not None
        g = torch.full_like(weight, float(number))
        torch.testing.assert_close(moment.denominator(g), g)


@pytest.mark.parametrize("name", ["adam", "adafactor"])
def test_they_are_those_that_the_next_update_divides_by(name: str):
    """Of a row that never came too; with Adafactor, whose means are of whole rows, about so."""
    trained = [nn.Parameter(torch.ones(3, 4))]
    inner = WITH[name](trained)
    for _ in range(3):
        trained[0].grad = torch.rand(3, 4) + 0.5
        trained[0].grad[2] = 0.0
        inner.step()
    (before,) = second_moments_of(base_of(inner), trained)
    trained[0].grad = g = torch.full((3, 4), 0.3)
    assert before is not None
    ours = before.denominator(g)
    inner.step()
    (after,) = second_moments_of(base_of(inner), trained)
    assert after is not None
    theirs = after._replace(decay=1.0, correction=before.correction).denominator(g)
    if name == "adafactor":
        assert float((ours[2] / theirs[2]).log().abs().max()) < 0.5
    else:
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("name", ["adamax", "nag", "sgd"])
def test_some_have_no_second_moments(name: str):
    assert not has_second_moments(base_of(WITH[name](weights())))


def test_second_moments_of_a_flat_copy_in_half_precision():
    halves: List[Any] = [nn.Parameter(w.detach().half()) for w in weights()]
    flat = nn.Parameter(torch.cat([w.detach().float().flatten() for w in halves]))
    flat.grad = torch.arange(11.0) + 1
    inner = WITH["adam"]([flat])
    inner.step()
    optimizer = SimpleNamespace(
        fp32_optimizer=base_of(inner),
        fp16_params=halves,
        fp32_params={0: flat},
        has_flat_params=True,
    )
    expected = [g.view_as(h) for g, h in zip((torch.arange(11.0) + 1).split([6, 4, 1]), halves)]
    found = second_moments_of(optimizer, halves)
    roots = [m.denominator(g) for m, g in zip(found, expected) if m is not None]
    torch.testing.assert_close(roots, expected)


def test_scaled_second_moments_are_brought_to_their_own_size():
    """Of fused kernels the group counts the steps."""
    trained = weights()[:1]
    inner = WITH["adam"](trained)
    inner.state[trained[0]] = {"exp_avg_sq": torch.ones(2, 3).half(), "exp_avg_sq_scale": 0.5}
    inner.param_groups[0]["step"] = 1
    (found,) = second_moments_of(base_of(inner), trained)
    assert found is not None
    v = 0.98 * 0.5 + 0.02 * 4
    root = (v / (1 - 0.98**2)) ** 0.5
    torch.testing.assert_close(found.denominator(torch.full((2, 3), 2.0)), torch.full((2, 3), root))
