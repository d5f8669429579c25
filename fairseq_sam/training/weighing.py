"""A stand-in for a per-sentence criterion, in the passes that weigh sentences (δ-SAM)."""

from collections import defaultdict
from typing import Any, Dict, Tuple

import torch
from torch import Tensor

from fairseq_sam.perturbation import Pass
from fairseq_sam.training.parameters import unwrap


class WeighingCriterion:
    """Behaves like ``criterion`` towards a task, and gives a loss whose sentences are weighed.

    Args:
        criterion: a per-sentence criterion, in a data-parallel wrapper or not.
        this: the pass under way.
    """

    def __init__(self, criterion: Any, this: Pass) -> None:
        self._criterion: Any = unwrap(criterion)
        self._this = this

    def __call__(self, model: Any, sample: Dict[str, Any]) -> Tuple[Tensor, Any, Dict[str, Any]]:
        """Returns loss, sample size and logging output; the losses alone where these are wanted.

        In float64, for differences of the losses are looked at.
        """
        if self._this.probes:
            losses = self._criterion.losses_only(model, sample, dtype=torch.float64)
            return self._this.weigh(losses), 1, defaultdict(float)
        losses, sample_size, logging_output = self._criterion.per_sentence_losses(
            model, sample, dtype=torch.float64
        )
        return self._this.weigh(losses), sample_size, logging_output

    def __getattr__(self, name: str) -> Any:
        return getattr(self._criterion, name)
