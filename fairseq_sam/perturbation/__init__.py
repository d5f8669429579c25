"""Sharpness-aware minimisation as mathematics on tensors; imports nothing of fairseq.

The five independent parts of the family (papers/SPEC §1) each have a module; a method is a choice
of them (:mod:`~fairseq_sam.perturbation.settings`).
"""

from fairseq_sam.perturbation.risk import ForwardPass, Outcome, SharpnessAwareLoss
from fairseq_sam.perturbation.settings import METHODS, PerturbationSettings, method_settings
from fairseq_sam.perturbation.weights import PerturbedWeights

__all__ = [
    "METHODS",
    "ForwardPass",
    "Outcome",
    "PerturbationSettings",
    "PerturbedWeights",
    "SharpnessAwareLoss",
    "method_settings",
]
