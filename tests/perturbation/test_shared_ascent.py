"""One ascent for several mini-batches of an update (``ascent_share``)."""

from typing import Any, List

import pytest
import torch
from torch import Tensor

from fairseq_sam.perturbation import SharpnessAwareLoss, method_settings
from tests.perturbation.small_net import (
    SmallNet,
    assert_all_close,
    assert_all_equal,
    batch,
    forward_pass,
    gradient_at,
    gradients_of,
    values,
    watching,
)


def update(
    loss: SharpnessAwareLoss, net: SmallNet, batches: List[Tensor], seen: List[List[Tensor]]
) -> List[Any]:
    for weight in net.parameters():
        weight.grad = None
    return [
        loss.backward(
            watching(forward_pass(net, x), list(net.parameters()), seen), update_size=len(batches)
        )
        for x in batches
    ]


@pytest.mark.parametrize("method", ["sam", "asam", "vasso"])
@pytest.mark.parametrize(("share", "ascents"), [(0.25, 1), (0.3, 2), (0.5, 2), (0.75, 3)])
def test_the_others_take_the_last_perturbation(method: str, share: float, ascents: int):
    net, batches = SmallNet(), [batch(seed) for seed in range(4)]
    loss = SharpnessAwareLoss(list(net.parameters()), method_settings(method, ascent_share=share))
    before = values(net.parameters())
    for _ in range(2):  # updates
        seen: List[List[Tensor]] = []
        outcomes = update(loss, net, batches, seen)
        assert len(seen) == 2 * ascents + (4 - ascents)
        trained_at = [*seen[1 : 2 * ascents : 2], *seen[2 * ascents :]]
        for there in trained_at[ascents:]:
            assert_all_equal(there, trained_at[ascents - 1])
        parts = [gradient_at(net, x)(at) for x, at in zip(batches, trained_at)]
        total = [None if g[0] is None else sum(g) for g in zip(*parts)]
        assert_all_close(gradients_of(net.parameters()), total, rtol=1e-12)
        assert_all_equal(values(net.parameters()), before)
        assert [outcome.clean is None for outcome in outcomes] == [False] * ascents + [True] * (
            4 - ascents
        )
        assert len({float(outcome.norm) for outcome in outcomes[ascents - 1 :]}) == 1
        assert loss.weights._remembered is None  # no copy is held between updates


def test_an_update_that_ends_early_does_not_hand_on_its_perturbation():
    """As the last of an epoch does: the next one begins where there are no gradients."""
    net, batches = SmallNet(), [batch(seed) for seed in range(4)]
    loss = SharpnessAwareLoss(list(net.parameters()), method_settings("sam", ascent_share=0.25))
    seen: List[List[Tensor]] = []
    for weight in net.parameters():
        weight.grad = None
    for x in batches[:2]:
        loss.backward(watching(forward_pass(net, x), list(net.parameters()), seen), update_size=4)
    assert len(seen) == 3
    assert update(loss, net, batches, seen)[0].clean is not None
    assert len(seen) == 3 + 5


def test_a_void_ascent_leaves_all_of_them_unperturbed():
    net, x = SmallNet(), batch()
    loss = SharpnessAwareLoss(list(net.parameters()), method_settings("sam", ascent_share=0.5))
    before = values(net.parameters())
    seen: List[List[Tensor]] = []
    broken = x.clone()
    broken[0, 0, 0] = torch.nan
    outcomes = update(loss, net, [broken, x], seen)
    assert [bool(outcome.finite) for outcome in outcomes] == [False, False]
    assert_all_equal(seen[-1], before)


@pytest.mark.parametrize(
    "parts", [{"risk": "mean"}, {"risk": "functional"}, {"per_instance": True}]
)
def test_what_needs_a_pass_at_w_is_refused(parts: Any):
    with pytest.raises(ValueError, match="ascent_share is"):
        method_settings("sam", ascent_share=0.5, **parts)


def test_a_mini_batch_that_failed_may_be_tried_again():
    net, batches = SmallNet(), [batch(seed) for seed in range(2)]
    loss = SharpnessAwareLoss(list(net.parameters()), method_settings("sam", ascent_share=0.5))
    expected = update(loss, net, batches, [])[1]
    whole = gradients_of(net.parameters())

    def fails() -> Any:
        raise MemoryError

    for weight in net.parameters():
        weight.grad = None
    loss.backward(forward_pass(net, batches[0]), update_size=2)
    with pytest.raises(MemoryError):
        loss.backward(fails, update_size=2)
    again = loss.backward(forward_pass(net, batches[1]), update_size=2)
    assert float(again.norm) == float(expected.norm)
    assert_all_equal(gradients_of(net.parameters()), whole)
    assert loss.weights._remembered is None


def test_gradients_that_are_zero_and_not_none_are_told():
    net, x = SmallNet(), batch()
    loss = SharpnessAwareLoss(list(net.parameters()), method_settings("sam", ascent_share=0.5))
    for _ in range(2):
        loss.backward(forward_pass(net, x), update_size=2)
    for weight in net.parameters():
        if weight.grad is not None:
            weight.grad.zero_()
    with pytest.raises(ValueError, match=r"update_size is 2: .* mini-batch 3 .*set_to_none=True"):
        loss.backward(forward_pass(net, x), update_size=2)
