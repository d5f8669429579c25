"""The Hessian of a data set's mean loss as a matrix-vector product (Pearlmutter 1994).

    H v = ∇ (v · ∇L(w)),    L(w) = Σ_b loss_b(w) / Σ_b sample_size_b

Each product goes forward and twice backward through all mini-batches, one at a time; no n × n
matrix exists. Its memory is that of four copies of the weights and of one mini-batch's graph.

Imports nothing of fairseq.
"""

import contextlib
from typing import Any, ContextManager, List, Sequence

import numpy as np
import torch
from torch import Tensor

from fairseq_sam.analysis.dataset_loss import DatasetLoss


class Hessian:
    """∇²L(w) of a data set's mean loss, in nats per unit; ``hessian(v)`` is H v.

    Args:
        dataset: the loss and its weights. Its model must not checkpoint activations.

    Attributes:
        size: n, the number of weights.
        dtype: numpy's type of the vectors: that of the weights.
    """

    def __init__(self, dataset: DatasetLoss) -> None:
        self.dataset = dataset
        self.size = num_weights(dataset.weights)
        self.dtype = vector_type(dataset.weights)

    def __call__(self, vector: np.ndarray) -> np.ndarray:
        """Returns H v; weights and ``p.grad`` stay as they are.

        Args:
            vector: v, shape [n], the weights one after the other as in ``dataset.weights``.

        Raises:
            FloatingPointError: the product is not finite.
        """
        weights = self.dataset.weights
        direction = unflatten(vector, weights)
        total = [torch.zeros_like(weight) for weight in weights]
        size = 0.0
        with twice_differentiable():
            for loss, sample_size in self.dataset.losses():
                _add_product_(total, loss, weights, direction)
                size += sample_size
        product = flatten(total, self.dtype) / np.asarray(size, self.dtype)
        if not np.isfinite(product).all():
            raise FloatingPointError("a product with the Hessian is not finite")
        return product


def _add_product_(
    total: Sequence[Tensor], loss: Tensor, weights: Sequence[Tensor], direction: Sequence[Tensor]
) -> None:
    """Adds ∇(v · ∇loss) to ``total``; a weight that takes no part adds nothing."""
    if not loss.requires_grad:
        return
    gradients = torch.autograd.grad(loss, weights, create_graph=True, allow_unused=True)
    slope = sum((g * v).sum() for g, v in zip(gradients, direction) if g is not None)
    if not isinstance(slope, Tensor) or not slope.requires_grad:  # linear in the weights
        return
    products = torch.autograd.grad(slope, weights, allow_unused=True)
    for so_far, product in zip(total, products):
        if product is not None:
            so_far += product


def num_weights(weights: Sequence[Tensor]) -> int:
    """Returns n."""
    return sum(weight.numel() for weight in weights)


def vector_type(weights: Sequence[Tensor]) -> np.dtype:
    """Returns float64 if any weight has it, else float32."""
    double = any(weight.dtype == torch.float64 for weight in weights)
    return np.dtype(np.float64 if double else np.float32)


def flatten(tensors: Sequence[Tensor], dtype: np.dtype) -> np.ndarray:
    """Returns the entries of all tensors in one vector on the CPU, shape [n]."""
    vector = np.empty(num_weights(tensors), dtype)
    position = 0
    for tensor in tensors:
        end = position + tensor.numel()
        vector[position:end] = tensor.detach().cpu().numpy().ravel()
        position = end
    return vector


def unflatten(vector: np.ndarray, like: Sequence[Tensor]) -> List[Tensor]:
    """Returns a vector's entries as tensors of the shapes, types and devices of ``like``."""
    parts = torch.from_numpy(np.ascontiguousarray(vector)).split([t.numel() for t in like])
    return [part.view_as(tensor).to(tensor) for part, tensor in zip(parts, like)]


def twice_differentiable() -> ContextManager[Any]:
    """Context without torch's fused attention kernels, which have no second derivative."""
    try:
        from torch.nn.attention import SDPBackend, sdpa_kernel
    except ImportError:  # torch < 2.3
        chooser = getattr(torch.backends.cuda, "sdp_kernel", None)  # torch >= 2.0
        if chooser is None:
            return contextlib.nullcontext()
        older: ContextManager[Any] = chooser(
            enable_flash=False, enable_math=True, enable_mem_efficient=False
        )
        return older
    context: ContextManager[Any] = sdpa_kernel(SDPBackend.MATH)
    return context
