"""The criterions that stand in for fairseq's, with the loss of every sentence.

``per_sentence_`` before ``cross_entropy``, ``label_smoothed_cross_entropy``, ``masked_lm`` and
``sentence_prediction``. Importing this module registers them.
"""

from typing import Any, Dict, Union

import torch
import torch.nn.functional as F
from fairseq import modules
from fairseq.criterions.cross_entropy import CrossEntropyCriterion
from fairseq.criterions.label_smoothed_cross_entropy import (
    LabelSmoothedCrossEntropyCriterion,
    label_smoothed_nll_loss,
)
from fairseq.criterions.masked_lm import MaskedLmLoss
from fairseq.criterions.sentence_prediction import SentencePredictionCriterion
from torch import Tensor

from fairseq_sam.criterions.per_sentence import PerSentenceCriterion
from fairseq_sam.criterions.reductions import (
    at_least_float32,
    one_row_per_sentence,
    place_tokens,
)
from fairseq_sam.criterions.registration import register_per_sentence


@register_per_sentence("cross_entropy")
class PerSentenceCrossEntropyCriterion(PerSentenceCriterion, CrossEntropyCriterion):
    """Cross entropy of the target tokens, summed per sentence (nats); padding counts zero.

    For translation and language modelling alike: any model whose log-probabilities are batch-first,
    which the stock criterion presupposes too. In language modelling a sentence is one row of the
    batch. An adaptive softmax works as far as it does with the stock criterion (fairseq trains it
    with ``adaptive_loss``, which has no stand-in).
    """


@register_per_sentence("label_smoothed_cross_entropy")
class PerSentenceLabelSmoothedCrossEntropyCriterion(
    PerSentenceCriterion, LabelSmoothedCrossEntropyCriterion
):
    """Label-smoothed cross entropy of the target tokens, summed per sentence (nats).

    ``--label-smoothing``, ``--ignore-prefix-size``, ``--report-accuracy`` and ``--sentence-avg``
    act as in the stock criterion; tokens of an ignored prefix count zero, like padding. For
    batch-first models, which the stock criterion presupposes too. An adaptive softmax works as far
    as it does with the stock criterion.
    """

    def unreduced_losses(self, model: Any, net_output: Any, sample: Dict[str, Any]) -> Tensor:
        """Token losses ``[batch, tokens]`` in nats, zero at padding."""
        lprobs, target = self.get_lprobs_and_target(model, net_output, sample)
        token_losses, _ = label_smoothed_nll_loss(
            at_least_float32(lprobs),  # it adds up over the vocabulary
            target,
            self.eps,
            ignore_index=self.padding_idx,
            reduce=False,
        )
        return one_row_per_sentence(token_losses, sample["target"].size(0))


@register_per_sentence("masked_lm")
class PerSentenceMaskedLmLoss(PerSentenceCriterion, MaskedLmLoss):
    """Cross entropy of the masked tokens, summed per row of the batch (nats).

    A row without masked tokens has loss zero. The model projects only the masked tokens, or all of
    them on TPU and when nothing is masked; both are handled.
    """

    def unreduced_losses(self, model: Any, net_output: Any, sample: Dict[str, Any]) -> Tensor:
        """Token losses ``[batch, tokens]`` in nats, zero where nothing is masked."""
        logits = net_output[0]
        targets = model.get_targets(sample, [logits])
        masked = targets.ne(self.padding_idx)
        all_projected = logits.numel() == targets.numel() * logits.size(-1)
        token_losses = modules.cross_entropy(
            logits.view(-1, logits.size(-1)),
            targets.view(-1) if all_projected else targets[masked],
            reduction="none",
            ignore_index=self.padding_idx,
        )
        if all_projected:
            return one_row_per_sentence(token_losses, targets.size(0))
        return place_tokens(token_losses, masked)


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
