"""``per_sentence_sentence_prediction``: the stand-in for fairseq's ``sentence_prediction``."""

from typing import Any, Dict, Union

import torch
import torch.nn.functional as F
from fairseq.criterions.sentence_prediction import SentencePredictionCriterion
from torch import Tensor

from fairseq_sam.criterions.per_sentence import PerSentenceCriterion
from fairseq_sam.criterions.reductions import one_row_per_sentence
from fairseq_sam.criterions.registration import register_per_sentence


@register_per_sentence("sentence_prediction")
class PerSentenceSentencePredictionCriterion(PerSentenceCriterion, SentencePredictionCriterion):
    """Cross entropy (nats) or, with ``--regression-target``, squared error of each example.

    Several regression targets per example are summed, as the stock criterion does. The head
    regularisation of pruned encoders (``--mha-reg-scale-factor``, ``--ffn-reg-scale-factor``) is a
    term of the batch, not of a sentence: each sentence carries an equal share of it, so that the
    losses still sum to the stock loss.
    """

    def unreduced_losses(self, model: Any, net_output: Any, sample: Dict[str, Any]) -> Tensor:
        """Losses ``[batch, targets]``."""
        logits = net_output[0]
        targets = model.get_targets(sample, [logits]).view(-1)
        if self.regression_target:
            predictions = logits.view(-1).float()
            losses = F.mse_loss(predictions, targets.to(predictions.dtype), reduction="none")
        else:
            lprobs = F.log_softmax(logits, dim=-1, dtype=torch.float32)
            losses = F.nll_loss(lprobs, targets, reduction="none")
        # The share is per target; a sentence sums over its targets.
        share = _regularisation(model) / max(losses.numel(), 1)
        return one_row_per_sentence(losses, logits.size(0)) + share


def _regularisation(model: Any) -> Union[float, Tensor]:
    """The stock criterion's regularisation of attention heads and feed-forward units."""
    args = getattr(model, "args", None)
    total: Union[float, Tensor] = 0.0
    if getattr(args, "mha_reg_scale_factor", 0.0) != 0.0:
        total = total + model._get_adaptive_head_loss()
    if getattr(args, "ffn_reg_scale_factor", 0.0) != 0.0:
        total = total + model._get_adaptive_ffn_loss()
    return total
