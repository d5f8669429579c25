"""Losses of which everything is known, as data sets of a model."""

from typing import Any, Callable, Dict, List, Tuple

import torch
from torch import Tensor, nn

from fairseq_sam.analysis.dataset_loss import DatasetLoss


class Weights(nn.Module):
    """A model that is nothing but its weights: a matrix, a vector, and one that takes no part."""

    def __init__(self, dtype: torch.dtype = torch.float64) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        for name, shape in (("matrix", (4, 3)), ("vector", (5,)), ("unused", (2,))):
            value = torch.randn(shape, generator=generator, dtype=torch.float64)
            self.register_parameter(name, nn.Parameter(value.to(dtype)))


class Formula(nn.Module):
    """A criterion: the loss of a mini-batch is its size times a formula of the weights."""

    def __init__(self, formula: Callable[[Tensor, Dict[str, Any]], Tensor]) -> None:
        super().__init__()
        self.formula = formula

    def forward(self, model: Weights, sample: Dict[str, Any]) -> Tuple[Tensor, int, Dict]:
        weights = torch.cat([model.matrix.flatten(), model.vector])
        return sample["size"] * self.formula(weights, sample), sample["size"], {}


def closed_form(
    formula: Callable[[Tensor, Dict[str, Any]], Tensor],
    dtype: torch.dtype = torch.float64,
    samples: Any = ({"size": 2}, {"size": 3}),
) -> DatasetLoss:
    return DatasetLoss(Weights(dtype), Formula(formula), samples)


def flat(tensors: Any) -> Tensor:
    """Returns the weights that take part as one vector."""
    return torch.cat([tensor.detach().flatten() for tensor in list(tensors)[:2]])


def copies(tensors: Any) -> List[Tensor]:
    return [tensor.detach().clone() for tensor in tensors]


def identical(tensors: Any, others: Any) -> bool:
    return all(torch.equal(one, other) for one, other in zip(tensors, others))


SLOPE = torch.tensor([0.5, -1.0, 2.0, 0.1] * 4 + [0.0], dtype=torch.float64)
"""Of 17 weights; the last has none."""

CURVATURE = torch.linspace(0.1, 3.0, 17, dtype=torch.float64)


def linear(w: Tensor, sample: Any) -> Tensor:
    return (SLOPE.to(w) * w).sum()


def bowl(w: Tensor, sample: Any) -> Tensor:
    return 0.5 * (w * w).sum()


def valley(w: Tensor, sample: Any) -> Tensor:
    return 0.5 * (CURVATURE.to(w) * w * w).sum()
