"""Sharpness-aware minimisation as mathematics on tensors; imports nothing of fairseq.

A method is a choice of independent parts (:mod:`~fairseq_sam.perturbation.settings`). Where it is
computed: directions, T, its groups, the step and the projection in ``ascent``; the weights' way to
w + a and back in ``weights``; what a pass may change in ``replay``; the passes of a step in
``step``; what a user calls in ``risk``. Only for some methods: δ-SAM's weights in
``sentence_weights``, the functional risk in ``outputs``.
"""

from fairseq_sam.perturbation.ascent import SecondMoment
from fairseq_sam.perturbation.risk import SharpnessAwareLoss
from fairseq_sam.perturbation.settings import METHODS, PerturbationSettings, method_settings
from fairseq_sam.perturbation.step import ForwardPass, Outcome, Pass
from fairseq_sam.perturbation.weights import PerturbedWeights

__all__ = [
    "METHODS",
    "ForwardPass",
    "Outcome",
    "Pass",
    "PerturbationSettings",
    "PerturbedWeights",
    "SecondMoment",
    "SharpnessAwareLoss",
    "method_settings",
]
