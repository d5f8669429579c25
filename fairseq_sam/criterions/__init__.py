"""Criterions that know the loss of every sentence.

Importing this package registers ``per_sentence_cross_entropy``,
``per_sentence_label_smoothed_cross_entropy``, ``per_sentence_sentence_prediction`` and
``per_sentence_masked_lm``. Each is the fairseq criterion without the prefix (same forward pass,
flags, losses, logs), plus :meth:`PerSentenceCriterion.per_sentence_losses`. ``mirror_bert`` has it
too. ``regularisers`` puts FreeLB, R-Drop, R3F and SMART on top of the first three. ``contrastive``,
``reductions`` and ``float64`` are pure torch.
"""

from fairseq_sam.criterions import (  # noqa: F401  (importing registers)
    mirror_bert,
    regularisers,
    stand_ins,
)
from fairseq_sam.criterions.per_sentence import PerSentenceCriterion, PerSentenceLosses
from fairseq_sam.criterions.registration import per_sentence_name_of, register_per_sentence

__all__ = [
    "PerSentenceCriterion",
    "PerSentenceLosses",
    "per_sentence_name_of",
    "register_per_sentence",
]
