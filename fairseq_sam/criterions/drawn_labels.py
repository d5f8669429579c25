"""The likelihood of labels that the model draws itself: what the Fisher information is made of.

    F = Σ E[∇log p(y) ∇log p(y)ᵀ],  y drawn from the model's p, not taken from the data

Labels are drawn one by one given the data's context (teacher forcing, the masked text), each
independently of the others. A sentence's gradient is the sum over its labels; as each has mean 0,
the expected outer product of that sum is the sum of those of the labels.
"""

import contextlib
from typing import Any, Dict, Tuple

import torch
from torch import Tensor

from fairseq_sam.criterions.float64 import preserve_float64
from fairseq_sam.criterions.per_sentence import PerSentenceCriterion
from fairseq_sam.criterions.recording import ModelAnswered, RecordedModel

DRAWN = "drawn_labels"


class DrawnLabels:
    """Draws labels and evaluates their likelihood, for what a criterion trains.

    Works where a label is one of a vocabulary or of some classes: translation, language models,
    masked ones (the masked tokens), sentence prediction. Label smoothing and weights of the
    criterion play no role: the likelihood is the model's.

    Args:
        criterion: tells how the model is called.

    Raises:
        ValueError: its labels are not classes.
    """

    def __init__(self, criterion: PerSentenceCriterion) -> None:
        if getattr(criterion, "regression_target", False):
            raise ValueError("labels of a regression are not drawn from classes")
        self.criterion = criterion
        self.classifies = hasattr(criterion, "classification_head_name")

    def draw(self, model: Any, sample: Dict[str, Any], generator: torch.Generator) -> Tensor:
        """Returns labels shaped like ``sample["target"]``, 0 where there is none to predict.

        Args:
            model: in evaluation mode.
            sample: fairseq's mini-batch.
            generator: of the draws, on the CPU so that they do not depend on the device.
        """
        with torch.no_grad():
            lprobs, predicted = self._predictions(model, sample)
        probabilities = lprobs.double().exp().cpu()
        drawn = torch.multinomial(probabilities, 1, generator=generator).squeeze(1)
        labels = torch.zeros_like(sample["target"], dtype=torch.long)
        labels[predicted] = drawn.to(labels)
        return labels

    def losses_only(self, model: Any, sample: Dict[str, Any]) -> Tensor:
        """Returns −log p of the labels under ``sample[DRAWN]``, summed, a scalar in nats."""
        lprobs, predicted = self._predictions(model, sample)
        chosen = sample[DRAWN][predicted].unsqueeze(1)
        loss: Tensor = -lprobs.gather(1, chosen).sum()
        return loss

    def _predictions(self, model: Any, sample: Dict[str, Any]) -> Tuple[Tensor, Tensor]:
        """Returns log-probabilities [labels, classes] and where in the target they belong."""
        recorded = RecordedModel(model, stop=True)
        with preserve_float64(model):
            with contextlib.suppress(ModelAnswered):
                self.criterion.forward(recorded, sample)
            output, target = recorded.net_output, sample["target"]
            if self.classifies:
                lprobs = torch.log_softmax(output[0], dim=-1, dtype=torch.float32)
                predicted = torch.ones_like(target, dtype=torch.bool)
            else:
                lprobs = model.get_normalized_probs(output, log_probs=True)
                predicted = target.ne(self.criterion.padding_idx)
        lprobs = lprobs.reshape(-1, lprobs.size(-1))
        if len(lprobs) != int(predicted.sum()):  # else the model has projected these alone
            lprobs = lprobs[predicted.flatten()]
        return lprobs, predicted
