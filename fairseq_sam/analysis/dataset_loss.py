"""The mean loss over a data set as a function of the weights, with its gradient.

What the analyses look at: L(w) = Σ_b loss_b(w) / Σ_b sample_size_b, in nats per unit of fairseq's
normalisation (a token, or a sentence in classification), without dropout.

Imports nothing of fairseq: a criterion returns (loss, sample_size, logging_output).
"""

import contextlib
import random
from typing import Any, Dict, Iterator, List, Optional, Sequence, Tuple

import numpy as np
import torch
from torch import Tensor, nn

from fairseq_sam.perturbation.foreach import put_gradients, take_gradients
from fairseq_sam.perturbation.replay import RandomState


class DatasetLoss:
    """L(w) of a model on fixed mini-batches.

    Args:
        model: a fairseq model; evaluated without dropout whatever mode it is in.
        criterion: called as ``criterion(model, sample)``; its loss is a sum over the mini-batch.
        samples: the mini-batches, all of which count.

    Attributes:
        names: of the weights.
        weights: everything trained, the criterion's own last.
    """

    def __init__(
        self, model: nn.Module, criterion: nn.Module, samples: Sequence[Dict[str, Any]]
    ) -> None:
        self.model = model
        self.criterion = criterion
        self.samples = samples
        named = [
            (name, weight)
            for module in (model, criterion)
            for name, weight in module.named_parameters()
            if weight.requires_grad
        ]
        self.names: List[str] = [name for name, _ in named]
        self.weights: List[Tensor] = [weight for _, weight in named]

    @contextlib.contextmanager
    def evaluating(self) -> Iterator[None]:
        """Context without dropout."""
        with evaluation_mode(self.model, self.criterion):
            yield

    def __call__(self) -> float:
        """Returns L(w), in nats per unit."""
        total, size = torch.zeros(()), 0.0
        with self.evaluating(), torch.no_grad():
            for sample in self.samples:
                loss, sample_size, _ = self.criterion(self.model, sample)
                total = total + loss.detach().double().cpu()
                size += float(sample_size)
        return float(total) / size

    def losses(self) -> Iterator[Tuple[Tensor, float]]:
        """Yields each mini-batch's summed loss, with its graph, and its sample size."""
        with self.evaluating(), torch.enable_grad():
            for sample in self.samples:
                loss, sample_size, _ = self.criterion(self.model, sample)
                yield loss, float(sample_size)

    def gradient(self) -> Tuple[float, List[Optional[Tensor]]]:
        """Returns L(w) and ∇L(w); ``p.grad`` is afterwards what it was.

        Returns:
            The loss, and one gradient a weight, None for a weight that takes no part.
        """
        earlier = take_gradients(self.weights)
        try:
            total, size = 0.0, 0.0
            for loss, sample_size in self.losses():
                loss.backward()
                total += float(loss.detach().double())
                size += sample_size
            gradients = take_gradients(self.weights)
        finally:
            put_gradients(self.weights, earlier)
        return total / size, [None if g is None else g / size for g in gradients]


@contextlib.contextmanager
def evaluation_mode(*modules: nn.Module) -> Iterator[None]:
    """Context without dropout; every layer is afterwards in the mode it was in.

    Recurrent layers are kept off cuDNN, whose backward pass wants training mode. What a module
    draws all the same, such as the masks of wav2vec 2.0, is the same in all of its forward passes;
    the random states are afterwards what they were.
    """
    before = [(layer, layer.training) for module in modules for layer in module.modules()]
    recurrent = any(isinstance(layer, nn.RNNBase) for layer, _ in before)
    off_cudnn = torch.backends.cudnn.flags(enabled=False) if recurrent else contextlib.nullcontext()
    hooks = [module.register_forward_pre_hook(_draw_anew) for module in modules]
    random_state = RandomState(weight for module in modules for weight in module.parameters())
    try:
        for module in modules:
            module.eval()
        _draw_anew()
        with off_cudnn:
            yield
    finally:
        random_state.restore()
        for hook in hooks:
            hook.remove()
        for layer, training in before:
            layer.training = training


def _draw_anew(*_: Any) -> None:
    torch.manual_seed(1)
    random.seed(1)
    np.random.seed(1)
