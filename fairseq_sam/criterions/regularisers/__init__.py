"""Baselines, as criterions: FreeLB, R-Drop, R3F and SMART regularise inputs or masks.

Importing this package registers ``free_lb_…``, ``r_drop_…``, ``r3f_…`` and ``smart_…`` for
``cross_entropy``, ``label_smoothed_cross_entropy`` and ``sentence_prediction``. They are
per-sentence criterions, so that every sharpness-aware optimizer, δ-SAM too, works on top of them.
"""

from fairseq_sam.criterions.regularisers.registered_pairs import REGISTERED

__all__ = ["REGISTERED"]
