"""A criterion's call, kept so that it can be made again: whole, or sentence by sentence."""

from typing import Any, Callable, Dict, List, NamedTuple, Tuple

import torch
from torch import Tensor, nn

from fairseq_sam.perturbation import ForwardPass
from fairseq_sam.samples import split_sentences

CriterionOutput = Tuple[Tensor, Any, Dict[str, Any]]


class CriterionCall(NamedTuple):
    """A call ``criterion(model, sample)`` that can be made again."""

    criterion: Any
    forward: Callable[..., CriterionOutput]
    args: Tuple[Any, ...]
    kwargs: Dict[str, Any]

    @property
    def model(self) -> nn.Module:
        """The model that the criterion was called with."""
        model: nn.Module = self.args[0] if self.args else self.kwargs["model"]
        return model

    def sentences(self) -> List["CriterionCall"]:
        """Returns one call for each sentence of the mini-batch."""
        sample = self.args[1] if len(self.args) > 1 else self.kwargs["sample"]
        padding_idx = getattr(self.criterion, "padding_idx", None)
        if padding_idx is None:
            padding_idx = self.criterion.task.source_dictionary.pad()
        others = {
            key: value for key, value in self.kwargs.items() if key not in ("model", "sample")
        }
        return [
            CriterionCall(self.criterion, self.forward, (self.model, part, *self.args[2:]), others)
            for part in split_sentences(sample, padding_idx)
        ]

    def replay(self) -> ForwardPass:
        """Makes the call."""
        return ForwardPass(*self.forward(*self.args, **self.kwargs))

    def replay_sentences(self) -> ForwardPass:
        """Makes the call, asking for the loss of each sentence."""
        losses, sample_size, logging_output = self.criterion.per_sentence_losses(
            *self.args, dtype=torch.float64, **self.kwargs
        )
        return ForwardPass(losses.sum(), sample_size, logging_output, losses)

    def probe_sentences(self) -> Tensor:
        """Returns the loss of each sentence; in float64, for differences of them are wanted."""
        losses: Tensor = self.criterion.losses_only(*self.args, dtype=torch.float64, **self.kwargs)
        return losses
