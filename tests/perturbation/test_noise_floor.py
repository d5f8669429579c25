"""What is rounding noise is told within a layer: not by layers whose gradients are larger."""

from typing import Any, Dict, List

import pytest
import torch
from torch import Tensor, nn

from fairseq_sam.perturbation import ForwardPass, SharpnessAwareLoss, method_settings
from tests.perturbation.small_net import generator, values, watching

WIDTH, GATE = 16, 1e-5


class Block(nn.Module):
    """Attention of one head, and a matrix, behind a residual gate."""

    def __init__(self, gate: float) -> None:
        super().__init__()
        self.gate = gate
        self.norm = nn.LayerNorm(WIDTH)
        self.q_proj, self.k_proj, self.v_proj = (nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.out = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        scores = self.q_proj(y) @ self.k_proj(y).transpose(1, 2) / WIDTH**0.5
        return x + self.gate * self.out(scores.softmax(-1) @ self.v_proj(y))


def network() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = nn.Sequential(Block(1.0), Block(GATE), nn.Linear(WIDTH, 5))
        for name, parameter in net.named_parameters():
            if "proj" in name:  # so that attention is not flat, and noise is strong
                nn.init.normal_(parameter, std=0.4)
    return net


def loss_of(net: nn.Module) -> Tensor:
    x = torch.randn(8, 6, WIDTH, generator=generator(1)).to(net[0].out.weight.dtype)
    target = torch.arange(48) % 5
    return nn.functional.cross_entropy(net(x).flatten(0, 1), target, reduction="sum")


def strengths() -> Dict[str, float]:
    """‖g‖/√n of each tensor, in float64."""
    net = network().double()
    loss_of(net).backward()
    return {name: float(p.grad.square().mean().sqrt()) for name, p in net.named_parameters()}


WITHOUT = ["0.k_proj.bias", "1.k_proj.bias"]
"""The tensors whose gradient is 0 in truth: a softmax does not see them."""


def test_the_second_block_has_gradients_many_times_smaller():
    """Guards the tests themselves."""
    found = strengths()
    greatest = max(found.values())
    assert [name for name, strength in found.items() if strength < 1e-15 * greatest] == WITHOUT
    for name in (name for name in found if name.startswith("1.") and name not in WITHOUT):
        assert found[name] < 10 * GATE * found[f"0{name[1:]}"]


def moved(
    kind: str, modules: bool, frozen: str = "", left_out: str = "", **parts: Any
) -> List[str]:
    """Names of the tensors that are elsewhere in the pass that is trained on."""
    net = network().to(torch.bfloat16 if kind == "weights" else torch.float32)
    names, parameters = zip(*net.named_parameters())
    for name, parameter in zip(names, parameters):
        parameter.requires_grad_(not (frozen and name.endswith(frozen)))
    perturbed = [p for n, p in zip(names, parameters) if not (left_out and n.endswith(left_out))]
    before: List[Tensor] = values(parameters)
    seen: List[List[Tensor]] = []
    settings = method_settings("ga_sam", rho=0.1, **parts)
    sharpness_aware = SharpnessAwareLoss(
        parameters, settings, perturbed, modules=[net] if modules else []
    )
    forward = watching(lambda: ForwardPass(loss_of(net).float(), 48), parameters, seen)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=kind == "autocast"):
        outcome = sharpness_aware.backward(forward)
    assert bool(outcome.finite)
    return [name for name, p, w in zip(names, seen[-1], before) if not torch.equal(p, w)]


@pytest.mark.parametrize("risk", ["perturbed", "mean"])
@pytest.mark.parametrize("kind", ["autocast", "weights"])
@pytest.mark.parametrize("scale", ["gradient-strength", "inverse-gradient"])
def test_what_has_a_gradient_moves_and_what_has_none_does_not(scale: str, kind: str, risk: str):
    with_gradient = [name for name in strengths() if name not in WITHOUT]
    assert moved(kind, modules=True, scale=scale, risk=risk) == with_gradient


@pytest.mark.parametrize("kind", ["autocast", "weights"])
@pytest.mark.parametrize("granularity", ["element", "filter"])
def test_what_has_no_gradient_does_not_move_in_finer_groups_either(granularity: str, kind: str):
    with_gradient = [name for name in strengths() if name not in WITHOUT]
    assert moved(kind, modules=True, granularity=granularity) == with_gradient


@pytest.mark.parametrize("kind", ["float32", "autocast", "weights"])
@pytest.mark.parametrize("how", ["frozen", "left_out"])
def test_a_key_bias_stays_where_its_matrix_does(how: str, kind: str):
    """Training biases alone, or ``--sam-exclude weight``."""
    found = moved(kind, modules=True, **{how: "weight"})
    assert not set(found) & set(WITHOUT)
    assert {"0.q_proj.bias", "0.v_proj.bias", "0.out.bias", "2.bias"} <= set(found)


@pytest.mark.parametrize("kind", ["autocast", "weights"])
def test_without_layers_all_weights_are_one(kind: str):
    """Then the second block passes for noise."""
    first = [name for name in strengths() if name[0] in "02" and name not in WITHOUT]
    assert moved(kind, modules=False) == first
