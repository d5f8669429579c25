"""How strong the gradient is, tensor by tensor and layer by layer, and what the scales make of it.

Training sees the gradients of mini-batches, so the norm of a tensor here is the root mean square
over mini-batches of ‖∇_i L_b‖₂, L_b the mean loss of mini-batch b (GA-SAM Figs. 4 and 5). The other
norm is ‖∇_i L‖₂ of the whole data set's mean loss, in which the noise of mini-batches cancels.

Imports nothing of fairseq.
"""

import math
from typing import Dict, Iterator, List, NamedTuple, Optional, Sequence

import torch
from torch import Tensor

from fairseq_sam.analysis.dataset_loss import DatasetLoss
from fairseq_sam.perturbation.ascent import (
    MEMORYLESS,
    Layers,
    noise_of_tensors,
    scale_of_groups,
)
from fairseq_sam.perturbation.foreach import put_gradients, take_gradients
from fairseq_sam.perturbation.risk import layers_of
from fairseq_sam.training.parameters import layer_of


class TensorNorms(NamedTuple):
    """One named tensor that has a gradient.

    Attributes:
        name: of the parameter.
        size: n_i.
        weight_norm: ‖w_i‖₂.
        batch_norm: root mean square of ‖∇_i L_b‖₂, in nats per unit and weight.
        mean_norm: ‖∇_i L‖₂.
        scales: name of a scale to T_i as training would have it: 0 below the floor.
        unfloored: the same without the floor of rounding noise.
        is_noise: whether the gradient lies below that floor.
    """

    name: str
    size: int
    weight_norm: float
    batch_norm: float
    mean_norm: float
    scales: Dict[str, float]
    unfloored: Dict[str, float]
    is_noise: bool


class LayerNorms(NamedTuple):
    """One layer: all its tensors together, as in :class:`TensorNorms`."""

    name: str
    size: int
    batch_norm: float
    mean_norm: float

    @property
    def strength(self) -> float:
        """‖g‖/√n, the root mean square of the gradient's entries."""
        return self.batch_norm / math.sqrt(self.size)


class GradientNorms:
    """Adds up gradients over the mini-batches of a data set.

    Args:
        dataset: the loss.
    """

    def __init__(self, dataset: DatasetLoss) -> None:
        self.dataset = dataset
        self._squares = [0.0] * len(dataset.weights)
        self._total: List[Optional[Tensor]] = [None] * len(dataset.weights)
        self._size = 0.0
        self._batches = 0

    def measure(self) -> Iterator[None]:
        """Goes over the mini-batches, pausing after each; ``p.grad`` is in between what it was.

        Raises:
            FloatingPointError: a gradient is not finite.
        """
        weights = self.dataset.weights
        for loss, sample_size in self.dataset.losses():
            earlier = take_gradients(weights)
            try:
                loss.backward()
                gradients = take_gradients(weights)
            finally:
                put_gradients(weights, earlier)
            self._add(gradients, sample_size)
            yield

    def _add(self, gradients: Sequence[Optional[Tensor]], sample_size: float) -> None:
        for index, gradient in enumerate(gradients):
            if gradient is None:
                continue
            norm = float(torch.linalg.vector_norm(gradient.double())) / sample_size
            if not math.isfinite(norm):
                raise FloatingPointError(
                    f"the gradient of {self.dataset.names[index]} is not finite"
                )
            self._squares[index] += norm**2
            total = self._total[index]
            self._total[index] = gradient if total is None else total.add_(gradient)
        self._size += sample_size
        self._batches += 1

    def tensors(self) -> List[TensorNorms]:
        """Returns what was measured, one entry for each tensor that takes part in the loss."""
        parts = zip(self.dataset.names, self.dataset.weights, self._squares, self._total)
        rows = [
            (name, weight, math.sqrt(square / self._batches), total)
            for name, weight, square, total in parts
            if total is not None
        ]
        if not rows:
            return []
        sizes = _double([weight.numel() for _, weight, _, _ in rows])
        weight_norms = _double([_norm(weight) for _, weight, _, _ in rows])
        batch_norms = _double([norm for _, _, norm, _ in rows])
        num_weights = int(sizes.sum())
        noise = self._noise([weight for _, weight, _, _ in rows], batch_norms, sizes)
        floored, unfloored = (
            {
                key: scale_of_groups(scale, weight_norms, batch_norms, sizes, num_weights, floor)
                for key, scale in MEMORYLESS.items()
            }
            for floor in (noise, torch.zeros_like(noise))
        )
        is_noise = batch_norms <= noise * sizes.sqrt()
        return [
            TensorNorms(
                name,
                weight.numel(),
                float(weight_norms[i]),
                norm,
                _norm(total) / self._size,
                {key: float(values[i]) for key, values in floored.items()},
                {key: float(values[i]) for key, values in unfloored.items()},
                bool(is_noise[i]),
            )
            for i, (name, weight, norm, total) in enumerate(rows)
        ]

    def _noise(self, weights: Sequence[Tensor], norms: Tensor, sizes: Tensor) -> Tensor:
        coarsest = max((w.dtype for w in weights), key=lambda dtype: torch.finfo(dtype).eps)
        numbers, with_matrix = layers_of(weights, (self.dataset.model, self.dataset.criterion))
        assert numbers is not None  # there are modules
        layers = Layers.of(weights, numbers, with_matrix, norms.device)
        return noise_of_tensors(norms, sizes, coarsest, layers)


def by_layer(tensors: Sequence[TensorNorms]) -> List[LayerNorms]:
    """Returns the layers in the order of their first tensors."""
    layers: Dict[str, List[TensorNorms]] = {}
    for tensor in tensors:
        layers.setdefault(layer_of(tensor.name), []).append(tensor)
    return [
        LayerNorms(
            name,
            sum(tensor.size for tensor in members),
            math.sqrt(sum(tensor.batch_norm**2 for tensor in members)),
            math.sqrt(sum(tensor.mean_norm**2 for tensor in members)),
        )
        for name, members in layers.items()
    ]


def _norm(tensor: Tensor) -> float:
    return float(torch.linalg.vector_norm(tensor.detach().double()))


def _double(values: Sequence[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)
