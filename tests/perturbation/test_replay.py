"""All passes of a step see the same random numbers, and statistics move once."""

import copy
import random
from typing import Any, List, Tuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fairseq_sam.perturbation import ForwardPass, SharpnessAwareLoss, method_settings
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
        sharpness_aware(forward_pass(net, x)).loss.backward()
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
    outcome = SharpnessAwareLoss(list(net.parameters()), settings)(forward)
    assert draw_from_everything() == expected
    assert outcome.clean.loss.item() == plain


@every_risk
@every_step
def test_running_statistics_move_exactly_once(num_steps: int, risk: str):
    net, x = SmallNet(batch_norm=True), batch()
    plain = copy.deepcopy(net)
    settings = method_settings("sam", rho=0.5, num_steps=num_steps, risk=risk)
    sharpness_aware = SharpnessAwareLoss(list(net.parameters()), settings, model=net)
    for update in range(1, 4):
        sharpness_aware(forward_pass(net, x)).loss.backward()
        summed_loss(plain, x)
        assert int(net.norm.num_batches_tracked) == update
        assert_all_equal(list(net.buffers()), list(plain.buffers()))


def test_running_statistics_of_layers_in_evaluation_mode_stay():
    net, x = SmallNet(batch_norm=True), batch()
    net.norm.eval()
    before = values(list(net.buffers()))
    settings = method_settings("ga_sam", rho=0.1)
    sharpness_aware = SharpnessAwareLoss(list(net.parameters()), settings, model=net)
    sharpness_aware(forward_pass(net, x)).loss.backward()
    assert_all_equal(list(net.buffers()), before)


def test_layers_without_running_statistics_will_do():
    net, x = SmallNet(), batch()
    net.norm = nn.BatchNorm1d(4, track_running_stats=False).double()
    settings = method_settings("ga_sam", rho=0.1)
    sharpness_aware = SharpnessAwareLoss(list(net.parameters()), settings, model=net)
    sharpness_aware(forward_pass(net, x)).loss.backward()
    assert net.out.weight.grad is not None


@pytest.mark.parametrize("at_pass", [1, 2])
def test_running_statistics_do_not_move_twice_when_a_later_pass_raises(at_pass: int):
    """Out of memory in the second pass: the training loop goes on with the next batch."""
    net, x = SmallNet(batch_norm=True), batch()
    plain = copy.deepcopy(net)
    settings = method_settings("sam", rho=0.5, num_steps=2)
    sharpness_aware = SharpnessAwareLoss(list(net.parameters()), settings, model=net)
    calls: List[int] = []

    def forward() -> ForwardPass:
        calls.append(1)
        output = forward_pass(net, x)()
        if len(calls) > at_pass:
            raise MemoryError("stop here")
        return output

    before = values(list(net.buffers()))
    with pytest.raises(MemoryError, match="stop here"):
        sharpness_aware(forward)
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
            outcome = sharpness_aware(forward_pass(net, batch()))
            outcome.loss.backward()
            assert_all_equal(values(parameters), before)
        found.append([*gradients_of(parameters), outcome.norm, outcome.perturbed.loss])
    # Reentrant checkpoints accumulate in another order, which rounds differently.
    assert_all_close(found[0], found[1], rtol=1e-14)
