"""cuDNN's LSTMs draw dropout masks from a state of their own; emulated, as it takes a GPU.

torch seeds that state from its generator when it is first used, and anew after the generator's
state was set, not before every pass.
"""

from typing import Any, List

import pytest
import torch
from torch import Tensor, nn

from fairseq_sam.perturbation import ForwardPass, SharpnessAwareLoss, method_settings
from tests.perturbation.small_net import SmallNet, batch, summed_loss


class CudnnState:
    """What there is one of for each device."""

    def __init__(self) -> None:
        self.generator = torch.Generator()
        self.is_stale = True
        self.masks: List[Tensor] = []

    def draw(self, shape: Any) -> Tensor:
        if self.is_stale:
            self.generator.manual_seed(int(torch.randint(2**31, ())))
            self.is_stale = False
        self.masks.append(torch.rand(shape, generator=self.generator) < 0.5)
        return self.masks[-1]


class CudnnDropout(nn.Module):
    def __init__(self, state: CudnnState) -> None:
        super().__init__()
        self.draw = state.draw

    def forward(self, x: Tensor) -> Tensor:
        return x * self.draw(x.shape[-1])


@pytest.mark.parametrize("num_steps", [1, 2])
@pytest.mark.parametrize("risk", ["perturbed", "mean"])
def test_all_passes_have_the_same_masks_from_the_second_batch_on(
    monkeypatch: pytest.MonkeyPatch, risk: str, num_steps: int
):
    state, set_rng_state = CudnnState(), torch.set_rng_state

    def setting(new: Tensor) -> None:
        set_rng_state(new)
        state.is_stale = True

    monkeypatch.setattr(torch, "set_rng_state", setting)
    net, x = SmallNet(), batch()
    net.dropout = CudnnDropout(state)
    settings = method_settings("sam", rho=0.1, risk=risk, num_steps=num_steps)
    sharpness_aware = SharpnessAwareLoss(list(net.parameters()), settings, modules=[net])
    for _ in range(3):
        state.masks.clear()
        sharpness_aware.backward(lambda: ForwardPass(summed_loss(net, x), len(x)))
        calls = 2  # in a forward pass
        assert len(state.masks) == calls * (num_steps + 1)
        for i, mask in enumerate(state.masks):
            assert torch.equal(mask, state.masks[i % calls])
