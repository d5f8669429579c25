"""A small float64 network with every kind of parameter that a real model has."""

import copy
from typing import Callable, List, Optional, Sequence, Tuple

import torch
from torch import Tensor, nn

from fairseq_sam.perturbation import ForwardPass
from fairseq_sam.perturbation.ascent import GRANULARITIES, MEMORYLESS

METHODS = ["sam", "asam", "layer_sam", "multi_step_defense", "ga_sam"]
"""The methods that need no more than the loss of the batch."""

MIXTURES: List[Tuple[str, Optional[str]]] = [("none", None)] + [
    (name, granularity)
    for name, scale in MEMORYLESS.items()
    if name != "none"
    for granularity in ([scale.granularity] if scale.granularity else GRANULARITIES)
]
"""Every scale that needs no memory, with every granularity that it goes with."""


class SmallNet(nn.Module):
    """Convolution, matrices, layer norm, biases; a frozen, an unused and a gradientless weight."""

    def __init__(self, seed: int = 0, dropout: float = 0.0, batch_norm: bool = False) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.conv = nn.Conv1d(2, 3, 2)
            self.hidden = nn.Linear(3, 4)
            self.norm = nn.BatchNorm1d(4) if batch_norm else nn.LayerNorm(4)
            self.out = nn.Linear(4, 3)
            self.temperature = nn.Parameter(torch.tensor(1.3))
            self.unused = nn.Parameter(torch.randn(2, 2))
            self.gradientless = nn.Parameter(torch.randn(3, 2))
            self.frozen = nn.Parameter(torch.randn(4), requires_grad=False)
        self.dropout = nn.Dropout(dropout)
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        x = self.dropout(torch.tanh(self.conv(x)).mean(dim=2))
        x = self.dropout(torch.tanh(self.norm(self.hidden(x)) + self.frozen))
        return self.out(x) * self.temperature + 0.0 * self.gradientless.sum()


def batch(seed: int = 1, size: int = 6) -> Tensor:
    return torch.randn(size, 2, 5, dtype=torch.float64, generator=generator(seed))


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def summed_loss(net: nn.Module, x: Tensor) -> Tensor:
    target = torch.arange(len(x), device=x.device) % 3
    return nn.functional.cross_entropy(net(x), target, reduction="sum")


def forward_pass(net: nn.Module, x: Tensor) -> Callable[[], ForwardPass]:
    return lambda: ForwardPass(summed_loss(net, x), len(x))


def watching(
    forward: Callable[[], ForwardPass], tensors: Sequence[Tensor], seen: List[List[Tensor]]
) -> Callable[[], ForwardPass]:
    """Returns a forward pass that notes the tensors' values first: one entry a pass."""

    def noting() -> ForwardPass:
        seen.append(values(tensors))
        return forward()

    return noting


def gradient_at(net: nn.Module, x: Tensor) -> Callable[[Sequence[Tensor]], List[Optional[Tensor]]]:
    """Returns the function from weights to gradients of the summed loss, on a copy of the net."""
    net = copy.deepcopy(net)
    parameters = list(net.parameters())

    def gradients(weights: Sequence[Tensor]) -> List[Optional[Tensor]]:
        with torch.no_grad():
            for parameter, weight in zip(parameters, weights):
                parameter.copy_(weight)
        for parameter in parameters:
            parameter.grad = None
        summed_loss(net, x).backward()
        return [None if p.grad is None else p.grad.clone() for p in parameters]

    return gradients


def values(tensors: Sequence[Tensor]) -> List[Tensor]:
    return [tensor.detach().clone() for tensor in tensors]


def gradients_of(tensors: Sequence[Tensor]) -> List[Optional[Tensor]]:
    return [None if tensor.grad is None else tensor.grad.clone() for tensor in tensors]


def assert_all_equal(ours: Sequence[Optional[Tensor]], theirs: Sequence[Optional[Tensor]]) -> None:
    """Asserts bit for bit equality, None included."""
    assert len(ours) == len(theirs)
    for one, other in zip(ours, theirs):
        if one is None or other is None:
            assert one is other
        else:
            assert torch.equal(one, other)


def assert_all_close(
    ours: Sequence[Optional[Tensor]], theirs: Sequence[Optional[Tensor]], rtol: float = 1e-10
) -> None:
    """Asserts closeness relative to each tensor's largest entry, None included."""
    assert len(ours) == len(theirs)
    for one, other in zip(ours, theirs):
        if one is None or other is None:
            assert one is other
        else:
            size = max(float(other.abs().max()), 1e-3)
            torch.testing.assert_close(one.to(other.dtype), other, rtol=0, atol=rtol * size)
