"""``per_sentence_masked_lm``: the stand-in for fairseq's ``masked_lm``."""

from typing import Any, Dict

from fairseq import modules
from fairseq.criterions.masked_lm import MaskedLmLoss
from torch import Tensor

from fairseq_sam.criterions.per_sentence import PerSentenceCriterion
from fairseq_sam.criterions.reductions import one_row_per_sentence, place_tokens
from fairseq_sam.criterions.registration import register_per_sentence


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
