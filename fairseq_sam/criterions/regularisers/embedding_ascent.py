"""Ascent in the embeddings: a perturbation that starts at random and climbs a loss."""

from typing import Callable, Optional

import torch
from torch import Tensor

from fairseq_sam.criterions.reductions import at_least_float32
from fairseq_sam.criterions.regularisers.embeddings import NotPerturbable, Perturbation

Step = Callable[[Tensor, Tensor], Tensor]
"""From a perturbation ``[batch, tokens, dim]`` and a gradient to the next perturbation."""


class Moving:
    """A perturbation of the embeddings that starts at random and climbs a loss.

    Args:
        start: makes the first perturbation.
        step: from perturbation and gradient to the next perturbation.
    """

    def __init__(self, start: Perturbation, step: Step) -> None:
        self._start = start
        self._step = step
        self._value: Optional[Tensor] = None

    def __call__(self, embeddings: Tensor, mask: Tensor) -> Tensor:
        """The perturbation where it is now; at first, made by ``start``."""
        if self._value is None:
            with torch.no_grad():
                value = at_least_float32(self._start(embeddings.detach(), mask)) * mask
            self._value = value.requires_grad_()
        return self._value

    def ascend(self, loss: Tensor) -> None:
        """Moves one step up; the loss's graph can be used again.

        A loss that does not depend on it, as where LayerDrop leaves out the whole decoder, has the
        gradient 0.

        Raises:
            NotPerturbable: the model recomputes activations in the backward pass.
        """
        assert self._value is not None
        try:
            (gradient,) = torch.autograd.grad(
                loss, self._value, retain_graph=True, allow_unused=True
            )
        except RuntimeError as error:
            if "checkpointing" not in str(error).lower():
                raise
            raise NotPerturbable(
                "an ascent in the embeddings does not go with --checkpoint-activations"
            ) from error
        if gradient is None:
            gradient = torch.zeros_like(self._value)
        self._value = self._step(self._value.detach(), gradient).requires_grad_()


def _per_sentence(values: Tensor) -> Tensor:
    return values.clamp(min=torch.finfo(values.dtype).tiny)[:, None, None]


def l2_step(size: float, radius: float) -> Step:
    """Steps of length ``size`` within a ball of ``radius``, for each sentence by itself."""

    def step(value: Tensor, gradient: Tensor) -> Tensor:
        length = torch.linalg.vector_norm(gradient.flatten(1), dim=1)
        value = value + size * gradient / _per_sentence(length)
        length = torch.linalg.vector_norm(value.flatten(1), dim=1)
        return value * (radius / _per_sentence(length)).clamp(max=1.0)

    return step


def linf_step(size: float, radius: float) -> Step:
    """Steps whose largest entry is ``size`` within a cube; the gradient keeps its direction."""

    def step(value: Tensor, gradient: Tensor) -> Tensor:
        largest = gradient.abs().flatten(1).amax(1)
        return (value + size * gradient / _per_sentence(largest)).clamp(-radius, radius)

    return step
