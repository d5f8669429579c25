"""``per_sentence_cross_entropy``: the stand-in for fairseq's ``cross_entropy``."""

from fairseq.criterions.cross_entropy import CrossEntropyCriterion

from fairseq_sam.criterions.per_sentence import PerSentenceCriterion
from fairseq_sam.criterions.registration import register_per_sentence


@register_per_sentence("cross_entropy")
class PerSentenceCrossEntropyCriterion(PerSentenceCriterion, CrossEntropyCriterion):
    """Cross entropy of the target tokens, summed per sentence (nats); padding counts zero.

    For translation and language modelling alike: any model whose log-probabilities are batch-first,
    which the stock criterion presupposes too. In language modelling a sentence is one row of the
    batch. An adaptive softmax works as far as it does with the stock criterion (fairseq trains it
    with ``adaptive_loss``, which has no stand-in).
    """
