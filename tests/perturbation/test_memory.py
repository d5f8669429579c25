"""What a step holds besides what a plain step does: the snapshot, and little more."""

from typing import Any, Callable

import pytest
import torch
from torch import nn

from fairseq_sam.perturbation import ForwardPass, SharpnessAwareLoss, foreach, method_settings
from tests.perturbation.small_net import generator

WIDTH = 700


def network(layers: int, width: int) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(*[nn.Linear(width, width, bias=False) for _ in range(layers)])


def peak_bytes(step: Callable[[], Any]) -> int:
    """Returns the peak of what a step allocates above what was allocated before it."""
    with torch.autograd.profiler.profile(profile_memory=True) as profile:
        step()
    level = peak = 0
    records = [event for event in profile.kineto_results.events() if event.name() == "[memory]"]
    for record in sorted(records, key=lambda event: event.start_ns()):
        level += record.nbytes()
        peak = max(peak, level)
    return peak


def copies_beyond_a_plain_step(
    method: str, layers: int = 8, width: int = WIDTH, sentences: int = 2, **parts: Any
) -> float:
    """Peak memory of a first step above that of a plain one, in copies of the model."""
    net, x = network(layers, width), torch.randn(sentences, width, generator=generator(1))
    forward = lambda: ForwardPass(net(x).square().sum(), 2)  # noqa: E731
    forward().loss.backward()  # what is made once in a process
    net.zero_grad(set_to_none=True)
    plain = peak_bytes(lambda: forward().loss.backward())
    net.zero_grad(set_to_none=True)
    settings = method_settings(method, **parts)
    sharpness_aware = SharpnessAwareLoss(list(net.parameters()), settings, modules=[net])
    peak = peak_bytes(lambda: sharpness_aware.backward(forward))
    size = sum(weight.numel() * weight.element_size() for weight in net.parameters())
    assert plain > size  # its gradients
    return (peak - plain) / size


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """A tensor at a time, as with the large tensors of a large model."""
    monkeypatch.setattr(foreach, "CHUNK_ON_CPU", WIDTH * WIDTH)


@pytest.mark.parametrize("method", ["sam", "layer_sam", "multi_step_defense", "ga_sam"])
def test_a_step_holds_the_snapshot(method: str):
    assert 0.9 < copies_beyond_a_plain_step(method) < 1.2


@pytest.mark.parametrize("num_steps", [2, 3])
def test_several_steps_hold_no_more(num_steps: int):
    """Those of the mean risk hold the gradient of the passes before."""
    for method in ("sam", "layer_sam"):
        assert copies_beyond_a_plain_step(method, num_steps=num_steps) < 1.2
    for method in ("multi_step_defense", "ga_sam"):
        assert copies_beyond_a_plain_step(method, num_steps=num_steps) < 2.2


@pytest.mark.parametrize("method", ["sam", "asam", "layer_sam"])
def test_the_pass_that_trains_has_the_snapshot_beside_it_and_no_more(method: str):
    """Where the activations are the peak."""
    assert 0.9 < copies_beyond_a_plain_step(method, width=300, sentences=1200) < 1.2


@pytest.mark.parametrize("norm", ["l2", "linf"])
@pytest.mark.parametrize("scale", ["weight", "gradient-strength"])
def test_several_steps_with_a_scale_for_each_weight_hold_that_too(scale: str, norm: str):
    """(On the way T of one tensor takes five times that tensor more.)"""
    parts = {"scale": scale, "norm": norm, "num_steps": 2}
    assert copies_beyond_a_plain_step("asam", 24, **parts) < 2.3
