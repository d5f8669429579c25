"""``per_sentence_label_smoothed_cross_entropy``: stands in for ``label_smoothed_cross_entropy``."""

from typing import Any, Dict

from fairseq.criterions.label_smoothed_cross_entropy import (
    LabelSmoothedCrossEntropyCriterion,
    label_smoothed_nll_loss,
)
from torch import Tensor

from fairseq_sam.criterions.per_sentence import PerSentenceCriterion
from fairseq_sam.criterions.reductions import at_least_float32, one_row_per_sentence
from fairseq_sam.criterions.registration import register_per_sentence


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
