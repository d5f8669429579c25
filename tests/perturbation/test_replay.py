"""All passes of a step see the same random numbers, and statistics move once."""

import contextlib
import copy
import os
import random
import threading
import time
from typing import Any, Dict, List, Tuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fairseq_sam.perturbation import ForwardPass, SharpnessAwareLoss, method_settings
from fairseq_sam.perturbation.replay import copy_batch, numpy_lock
from tests.perturbation.small_net import (
    SmallNet,
    assert_all_close,
    assert_all_equal,
    batch,
    forward_pass,
    gradients_of,
    summed_loss,
    values,
)

every_risk = pytest.mark.parametrize("risk", ["perturbed", "mean"])
every_step = pytest.mark.parametrize("num_steps", [1, 2, 3])


class RecordingDropout(nn.Module):
    """Dropout that keeps the masks it drew, from all three generators."""

    def __init__(self) -> None:
        super().__init__()
        self.masks: List[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        mask = torch.rand(x.shape[-1]) < 0.5
        mask &= torch.from_numpy(np.random.rand(x.shape[-1]) < 0.8)
        if random.random() < 0.5:
            mask = ~mask
        self.masks.append(mask)
        return x * mask


def seed_everything(seed: int = 3) -> None:
    torch.manual_seed(seed)
    np.random.seed(seed)
    random.seed(seed)


def draw_from_everything() -> Tuple[List[float], List[float], float]:
    return torch.rand(4).tolist(), np.random.rand(4).tolist(), random.random()


@pytest.fixture(autouse=True)
def _keep_generators() -> Any:
    states = np.random.get_state(), random.getstate()
    with torch.random.fork_rng():
        yield
    np.random.set_state(states[0])
    random.setstate(states[1])


@every_risk
@every_step
def test_every_pass_of_a_step_draws_the_same_masks(num_steps: int, risk: str):
    net, x = SmallNet(), batch()
    net.dropout = RecordingDropout()
    settings = method_settings("sam", rho=0.1, num_steps=num_steps, risk=risk)
    sharpness_aware = SharpnessAwareLoss(list(net.parameters()), settings)
    seed_everything()
    for _ in range(2):
        sharpness_aware.backward(forward_pass(net, x))
    masks = net.dropout.masks
    calls = 2  # in a forward pass
    assert len(masks) == 2 * (num_steps + 1) * calls
    steps = [masks[: len(masks) // 2], masks[len(masks) // 2 :]]
    for step in steps:
        for i, mask in enumerate(step):
            assert torch.equal(mask, step[i % calls])
    first, second = (torch.cat(step[:calls]) for step in steps)
    assert not torch.equal(first, second)  # the next step has its own


@every_risk
@every_step
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_the_generators_end_where_a_plain_pass_leaves_them(dtype: Any, num_steps: int, risk: str):
    net, x = SmallNet(dropout=0.3).to(dtype), batch().to(dtype)
    settings = method_settings("sam", rho=0.1, num_steps=num_steps, risk=risk)

    def forward() -> ForwardPass:
        np.random.rand(3)
        random.random()
        return forward_pass(net, x)()

    seed_everything()
    plain = forward().loss.item()
    expected = draw_from_everything()
    seed_everything()
    outcome = SharpnessAwareLoss(list(net.parameters()), settings).backward(forward)
    assert draw_from_everything() == expected
    assert outcome.clean.loss.item() == plain


@every_risk
@pytest.mark.parametrize("raises", [False, True])
def test_passes_that_draw_more_than_the_first_are_not_seen_afterwards(raises: bool, risk: str):
    """As sampling with rejection may, at other weights."""
    net, x = SmallNet(dropout=0.3), batch()
    settings = method_settings("sam", rho=0.1, num_steps=2, risk=risk)
    sharpness_aware = SharpnessAwareLoss(list(net.parameters()), settings)
    calls: List[Any] = []

    def forward() -> ForwardPass:
        output = forward_pass(net, x)()
        calls.append([draw_from_everything() for _ in range(len(calls) + 1)])
        if raises and len(calls) == 3:
            raise MemoryError("stop here")
        return output

    seed_everything()
    forward()
    expected = draw_from_everything()
    calls.clear()
    seed_everything()
    with pytest.raises(MemoryError) if raises else contextlib.nullcontext():
        sharpness_aware.backward(forward)
    assert draw_from_everything() == expected
    assert calls == [calls[2][:1], calls[2][:2], calls[2]]


@every_risk
@every_step
def test_generators_that_no_pass_draws_from_are_not_set(
    num_steps: int, risk: str, monkeypatch: pytest.MonkeyPatch
):
    """Data loaders draw from numpy's and Python's in threads of their own."""
    net, x = SmallNet(dropout=0.3), batch()
    settings = method_settings("sam", rho=0.1, num_steps=num_steps, risk=risk)
    sharpness_aware = SharpnessAwareLoss(list(net.parameters()), settings)
    for module, name in ((np.random, "set_state"), (np.random, "seed"), (random, "setstate")):
        monkeypatch.setattr(module, name, lambda *_, name=name: pytest.fail(f"{name} was called"))
    for _ in range(2):
        sharpness_aware.backward(forward_pass(net, x))
    delta_sam = SharpnessAwareLoss(list(net.parameters()), method_settings("delta_sam", risk=risk))
    delta_sam.backward(forward_pass(net, x), per_sentence=with_losses(net, x))


def with_losses(net: nn.Module, x: Tensor) -> Any:
    def forward() -> ForwardPass:
        losses = nn.functional.cross_entropy(net(x), torch.arange(len(x)) % 3, reduction="none")
        return ForwardPass(losses.sum(), len(x), None, losses)

    return forward


@every_risk
@pytest.mark.parametrize("draws", [False, True])
def test_a_thread_that_draws_under_the_lock_sees_its_own_numbers(draws: bool, risk: str):
    """As fairseq's datasets do: seed, draw, and put numpy's state back."""
    net, x = SmallNet(), batch()
    settings = method_settings("sam", rho=0.1, num_steps=2, risk=risk)
    sharpness_aware = SharpnessAwareLoss(list(net.parameters()), settings)
    items: List[List[float]] = []

    def load() -> None:
        for number in range(150):
            with numpy_lock():
                state = np.random.get_state()
                np.random.seed(number)
                item = np.random.rand(2).tolist()
                time.sleep(0.0005)  # lets the other thread run
                items.append(item + np.random.rand(2).tolist())
                np.random.set_state(state)
            time.sleep(0.0002)

    seen: List[float] = []

    def forward() -> ForwardPass:
        if draws:
            with numpy_lock():
                seen.append(np.random.rand())
        return forward_pass(net, x)()

    thread = threading.Thread(target=load)
    np.random.seed(3)
    thread.start()
    steps = 0
    while thread.is_alive():
        sharpness_aware.backward(forward)
        steps += 1
    assert items == [np.random.RandomState(number).rand(4).tolist() for number in range(150)]
    assert steps > 1
    expected = np.random.RandomState(3).rand(steps + 1).tolist()
    assert seen == ([number for number in expected[:steps] for _ in range(3)] if draws else [])
    assert np.random.rand() == expected[steps if draws else 0]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_the_lock_of_a_forked_child_is_free():
    """Forked while a thread holds the lock, the child has no such thread to set it free."""
    held, done = threading.Event(), threading.Event()

    def hold() -> None:
        with numpy_lock():
            held.set()
            done.wait(60)

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait(60)
    child = os.fork()
    if child == 0:
        os._exit(0 if numpy_lock().acquire(blocking=False) else 1)
    status = os.waitpid(child, 0)[1]
    taken = numpy_lock().acquire(blocking=False)
    done.set()
    thread.join()
    assert status == 0
    assert not taken  # in the parent it is another thread's as ever


@every_risk
@every_step
def test_a_forward_that_changes_its_batch_leaves_the_callers_alone(num_steps: int, risk: str):
    net, x = SmallNet(), batch()
    inputs = {"x": x, "lengths": torch.tensor([5, 5]), "prefix": 1}
    sample: Dict[str, Any] = {"net_input": inputs, "rows": [[1], (2, [3])], "id": 7}
    expected = copy.deepcopy(sample)
    seen: List[Any] = []

    def forward() -> ForwardPass:
        mine = copy_batch(sample)
        lengths = mine["net_input"]["lengths"].tolist()
        seen.append((mine["net_input"].pop("prefix"), mine.pop("id"), str(mine["rows"]), lengths))
        mine["rows"][1][1].append(4)
        mine["rows"].append(5)
        mine["net_input"]["lengths"] += 1
        mine["target"] = None
        return forward_pass(net, mine["net_input"]["x"])()

    settings = method_settings("sam", rho=0.1, num_steps=num_steps, risk=risk)
    SharpnessAwareLoss(list(net.parameters()), settings).backward(forward)
    assert seen == [(1, 7, "[[1], (2, [3])]", [5, 5])] * (num_steps + 1)
    assert sample.keys() == expected.keys()
    assert sample["net_input"].keys() == expected["net_input"].keys()
    assert (sample["rows"], sample["id"]) == (expected["rows"], 7)
    assert sample["net_input"]["lengths"].tolist() == [5, 5]


@every_risk
@every_step
def test_running_statistics_move_exactly_once(num_steps: int, risk: str):
    net, x = SmallNet(batch_norm=True), batch()
    plain = copy.deepcopy(net)
    settings = method_settings("sam", rho=0.5, num_steps=num_steps, risk=risk)
    sharpness_aware = SharpnessAwareLoss(list(net.parameters()), settings, modules=[net])
    for update in range(1, 4):
        sharpness_aware.backward(forward_pass(net, x))
        summed_loss(plain, x)
        assert int(net.norm.num_batches_tracked) == update
        assert_all_equal(list(net.buffers()), list(plain.buffers()))


def test_running_statistics_of_layers_in_evaluation_mode_stay():
    net, x = SmallNet(batch_norm=True), batch()
    net.norm.eval()
    before = values(list(net.buffers()))
    settings = method_settings("ga_sam", rho=0.1)
    sharpness_aware = SharpnessAwareLoss(list(net.parameters()), settings, modules=[net])
    sharpness_aware.backward(forward_pass(net, x))
    assert_all_equal(list(net.buffers()), before)


def test_layers_without_running_statistics_will_do():
    net, x = SmallNet(), batch()
    net.norm = nn.BatchNorm1d(4, track_running_stats=False).double()
    settings = method_settings("ga_sam", rho=0.1)
    sharpness_aware = SharpnessAwareLoss(list(net.parameters()), settings, modules=[net])
    sharpness_aware.backward(forward_pass(net, x))
    assert net.out.weight.grad is not None


@pytest.mark.parametrize("at_pass", [1, 2])
def test_running_statistics_do_not_move_twice_when_a_later_pass_raises(at_pass: int):
    """Out of memory in the second pass: the training loop goes on with the next batch."""
    net, x = SmallNet(batch_norm=True), batch()
    plain = copy.deepcopy(net)
    settings = method_settings("sam", rho=0.5, num_steps=2)
    sharpness_aware = SharpnessAwareLoss(list(net.parameters()), settings, modules=[net])
    calls: List[int] = []

    def forward() -> ForwardPass:
        calls.append(1)
        output = forward_pass(net, x)()
        if len(calls) > at_pass:
            raise MemoryError("stop here")
        return output

    before = values(list(net.buffers()))
    with pytest.raises(MemoryError, match="stop here"):
        sharpness_aware.backward(forward)
    summed_loss(plain, x)
    assert any(
        all(torch.equal(ours, theirs) for ours, theirs in zip(net.buffers(), allowed))
        for allowed in (before, list(plain.buffers()))
    )


@every_risk
@every_step
@pytest.mark.parametrize("reentrant", [True, False])
def test_activation_checkpointing_changes_no_number(reentrant: bool, num_steps: int, risk: str):
    from torch.utils.checkpoint import checkpoint

    class Checkpointed(SmallNet):
        def forward(self, x: Tensor) -> Tensor:
            # A reentrant checkpoint needs an input that requires a gradient.
            return checkpoint(super().forward, x.requires_grad_(), use_reentrant=reentrant)

    settings = method_settings("ga_sam", rho=0.05, num_steps=num_steps, risk=risk)
    found = []
    for kind in (SmallNet, Checkpointed):
        net = kind(dropout=0.3)
        parameters = list(net.parameters())
        before = values(parameters)
        sharpness_aware = SharpnessAwareLoss(parameters, settings)
        seed_everything()
        for _ in range(2):
            outcome = sharpness_aware.backward(forward_pass(net, batch()))
            assert_all_equal(values(parameters), before)
        found.append([*gradients_of(parameters), outcome.norm, outcome.perturbed.loss])
    # Reentrant checkpoints accumulate in another order, which rounds differently.
    assert_all_close(found[0], found[1], rtol=1e-14)
