"""Groups of weights: what shares one value of the scale T (GA-SAM §2.1, SPEC §1).

========  ==============================================================================
element   every weight is a group
filter    a slice along the first dimension: a convolution's filter, a row of a linear layer, a
          word's embedding. Tensors of fewer than two dimensions (biases, layer norms) have no
          filters; their weights are groups of one (Kwon et al. 2021, §3)
layer     a named parameter tensor
model     all weights together
========  ==============================================================================

Quantities per group are kept in *blocks*: one flat tensor for ``filter``, ``layer`` and ``model``,
so that the arithmetic on them is a handful of operations however many tensors the model has, and
one tensor a parameter for ``element``, computed when it is looked at so as not to hold another
copy of the model.
"""

from typing import Any, Iterable, List, Optional, Sequence

import torch
from torch import Tensor

from fairseq_sam.perturbation import foreach

GRANULARITIES = ("element", "filter", "layer", "model")

Blocks = Sequence[Tensor]


class _Absolutes(Sequence[Tensor]):
    """|t| of each tensor, computed anew whenever it is asked for."""

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        self._tensors = tensors

    def __len__(self) -> int:
        return len(self._tensors)

    def __getitem__(self, index: Any) -> Any:
        return at_least_float32(self._tensors[index]).abs()


class Groups:
    """The partition of some tensors into groups.

    Args:
        tensors: the weights (or anything of their shapes).
        granularity: one of :data:`GRANULARITIES`.
    """

    def __init__(self, tensors: Sequence[Tensor], granularity: str) -> None:
        self.granularity = granularity
        self.shapes = [tensor.shape for tensor in tensors]
        self.num_weights = sum(tensor.numel() for tensor in tensors)
        self._sizes: Optional[Blocks] = None

    def norms(self, tensors: Sequence[Tensor]) -> Blocks:
        """Returns the L2 norm of each group, in float32 at least."""
        if self.granularity == "element":
            return _Absolutes(tensors)
        if self.granularity == "filter":
            return [torch.cat([_row_norms(tensor).flatten() for tensor in tensors])]
        norms = foreach.norms(tensors)
        if self.granularity == "model":
            norms = torch.linalg.vector_norm(norms).reshape(1)
        return [norms]

    def sizes(self, like: Blocks) -> Blocks:
        """Returns n_i, the number of weights of each group, as tensors that fit ``like``.

        Made once and kept: filling a tensor from Python numbers waits for the GPU.
        """
        if self._sizes is None:
            self._sizes = self._make_sizes(like)
        return self._sizes

    def _make_sizes(self, like: Blocks) -> Blocks:
        if self.granularity == "element":
            return [block.new_ones(()) for block in like]
        if self.granularity == "model":
            return [like[0].new_tensor([float(self.num_weights)])]
        if self.granularity == "layer":
            return [like[0].new_tensor([float(shape.numel()) for shape in self.shapes])]
        rows = [_num_rows(shape) for shape in self.shapes]
        sizes = [[shape.numel() / n] * n for shape, n in zip(self.shapes, rows) if n]
        return [like[0].new_tensor([size for each in sizes for size in each])]

    def spread(self, blocks: Blocks) -> List[Tensor]:
        """Returns one tensor a parameter, each broadcasting over its parameter's shape."""
        if self.granularity == "element":
            return list(blocks)
        if self.granularity == "model":
            return [blocks[0].reshape(())] * len(self.shapes)
        if self.granularity == "layer":
            return list(blocks[0].unbind())
        rows = blocks[0].split([_num_rows(shape) for shape in self.shapes])
        return [
            values.reshape(shape if len(shape) < 2 else (-1,) + (1,) * (len(shape) - 1))
            for values, shape in zip(rows, self.shapes)
        ]


def at_least_float32(tensor: Tensor) -> Tensor:
    """Returns the tensor in float32, or in float64 where it is that already."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def total_norm(blocks: Iterable[Tensor]) -> Tensor:
    """Returns the L2 norm over all entries of all blocks, a scalar; holds one block at a time."""
    norms = torch.stack([torch.linalg.vector_norm(block) for block in blocks])
    total: Tensor = torch.linalg.vector_norm(norms)
    return total


def _num_rows(shape: torch.Size) -> int:
    return shape.numel() if len(shape) < 2 else shape[0]


def _row_norms(tensor: Tensor) -> Tensor:
    tensor = at_least_float32(tensor)
    if tensor.dim() < 2:
        return tensor.abs()
    norms: Tensor = torch.linalg.vector_norm(tensor.flatten(1), dim=1)
    return norms
