"""What one sharpness-aware method is: a choice of five independent parts.

The parts are scale, granularity, norm, risk and weighting of sentences (GA-SAM §2; δ-SAM §3).
A method is data, not code: :class:`PerturbationSettings` names the parts, :data:`METHODS` names
the published combinations. Everything else in this package reads these settings.
"""

import math
from dataclasses import dataclass, replace
from typing import Any, Dict, Optional

from fairseq_sam.perturbation.ascent import GRANULARITIES, SCALES

NORMS = ("l2", "linf")
RISKS = ("perturbed", "mean", "functional")
WEIGHTINGS = ("uniform", "published", "draft")
LOSS_REDUCTIONS = ("mean", "sum")


@dataclass(frozen=True)
class PerturbationSettings:
    """The parts of a method.

    Attributes:
        rho: radius of the constraint set S = {a : ‖T⁻¹a‖_p ≤ rho} (ρ in SAM, ε in GA-SAM);
            0 switches the perturbation off. With a share it is the greatest radius, and may be inf.
        share: σ; the radius is the one at which the loss of the mini-batch rises by this share of
            itself to first order (:mod:`~fairseq_sam.perturbation.ascent`); 0 switches off too.
            None: the radius is rho.
        norm: p of the constraint, ``l2`` or ``linf``.
        scale: name of T in :data:`~fairseq_sam.perturbation.ascent.SCALES`.
        granularity: what a group of T is: ``element``, ``filter``, ``layer`` (one named tensor)
            or ``model``. None exactly for the scale ``none``, which has no groups.
        risk: ``perturbed`` minimises L(w + a_K) (single-step: SAM and kin); ``mean`` minimises
            the mean of L(w + a_k), k = 0..K (multi-step: GA-SAM Eq. 14); ``functional`` follows
            J(w + a_K)ᵀ u (:mod:`~fairseq_sam.perturbation.outputs`).
        num_steps: K, the number of ascent steps.
        loss_reduction: whether the scales see the gradient of the ``mean`` loss (summed loss over
            sample size) or of the ``sum`` as fairseq's criterions return it. It matters only to
            the scales that divide by the gradient (GA-SAM §3.2: their T is homogeneous in it).
        weighting: how sentences count in the ascent direction: ``uniform``, or by δ-SAM's
            ``published`` or ``draft`` weights.
        eta: η of the published weights, in nats: the least first difference (δ-SAM Eq. 5).
        beta: β of the draft weights: how far they lie from uniform ones (draft, Eq. 6).
        probe_radius: length h of the random displacement at which the published weights are
            measured; the differences are scaled back to rho. None is long
            enough for the floating-point format, rho itself the paper to the letter.
        per_instance: one perturbation a sentence (δ-SAM Eq. 2), which δ-SAM approximates: exact,
            and about as many times slower as the batch has sentences.

    Raises:
        ValueError: naming the setting, its value and what is allowed.
    """

    rho: float = 0.05
    share: Optional[float] = None
    norm: str = "l2"
    scale: str = "none"
    granularity: Optional[str] = None
    risk: str = "perturbed"
    num_steps: int = 1
    loss_reduction: str = "mean"
    weighting: str = "uniform"
    eta: float = 1e-4
    beta: float = 10.0
    probe_radius: Optional[float] = None
    per_instance: bool = False

    def __post_init__(self) -> None:
        if self.share is not None and not 0 <= self.share <= 1:
            raise ValueError(f"share is {self.share}: it must be a number from 0 to 1")
        if not (self.rho >= 0 and (math.isfinite(self.rho) or self.share is not None)):
            raise ValueError(f"rho is {self.rho}: it must be a finite number, 0 or more")
        if not isinstance(self.num_steps, int) or self.num_steps < 1:
            raise ValueError(f"num_steps is {self.num_steps}: it must be a whole number, 1 or more")
        if not self.eta > 0:
            raise ValueError(f"eta is {self.eta}: it must be more than 0")
        if not (math.isfinite(self.beta) and self.beta >= 0):
            raise ValueError(f"beta is {self.beta}: it must be a finite number, 0 or more")
        if self.probe_radius is not None and not (0 < self.probe_radius < math.inf):
            raise ValueError(
                f"probe_radius is {self.probe_radius}: it must be a finite number above 0"
            )
        _check_choice("norm", self.norm, NORMS)
        _check_choice("weighting", self.weighting, WEIGHTINGS)
        _check_choice("scale", self.scale, SCALES)
        _check_choice("risk", self.risk, RISKS)
        _check_choice("loss_reduction", self.loss_reduction, LOSS_REDUCTIONS)
        if self.scale == "none":
            if self.granularity is not None:
                raise ValueError(
                    f"granularity is {self.granularity}: the scale none is 1 for every weight and "
                    "has no groups, so no granularity can be given with it"
                )
        else:
            _check_choice("granularity", self.granularity, GRANULARITIES)

    @property
    def needs_sentences(self) -> bool:
        """Whether the loss of each sentence is needed."""
        return self.weighting != "uniform"

    @property
    def is_off(self) -> bool:
        """Whether nothing is perturbed."""
        return self.rho == 0 or self.share == 0


def _check_choice(name: str, value: Any, allowed: Any) -> None:
    if value not in allowed:
        raise ValueError(f"{name} is {value}: it must be one of {', '.join(allowed)}")


METHODS: Dict[str, PerturbationSettings] = {
    # Foret et al. 2021: ρ = 0.05 under L2 is their default for every task.
    "sam": PerturbationSettings(rho=0.05),
    # Kwon et al. 2021: T = |w|, ρ = 0.5 under L2 is their default.
    "asam": PerturbationSettings(rho=0.5, scale="weight", granularity="element"),
    # Liu et al. 2021; the radius is the one of GA-SAM App. C for a mean loss (IMDB).
    "layer_sam": PerturbationSettings(rho=1e-5, scale="weight-over-gradient", granularity="layer"),
    # Zhang et al. 2021; the radius is the one of GA-SAM App. C for the Transformer.
    "multi_step_defense": PerturbationSettings(rho=5e-4, norm="linf", risk="mean"),
    # Zhou et al. 2022: ρ and η of BART on CNN/DM; β as for most GLUE tasks of the draft.
    "delta_sam": PerturbationSettings(rho=0.01, weighting="published"),
    # Singh et al. 2025.
    "functional_sam": PerturbationSettings(rho=0.05, risk="functional"),
    "per_instance_sam": PerturbationSettings(rho=0.01, per_instance=True),
    # GA-SAM Eqs. 13-14; with a mean loss 2e-4 moves a weight of a Transformer as far as the
    # paper's 0.8 does with its summed losses of 4k tokens.
    "ga_sam": PerturbationSettings(
        rho=2e-4, norm="linf", scale="gradient-strength", granularity="layer", risk="mean"
    ),
}
"""The published methods. Each entry fixes defaults only: any part can be replaced."""


def method_settings(method: str, **overrides: Any) -> PerturbationSettings:
    """Returns the settings of a named method with some of its parts replaced.

    Args:
        method: a key of :data:`METHODS`.
        **overrides: fields of :class:`PerturbationSettings`; None keeps the method's own value. A
            share without rho has no greatest radius.

    Raises:
        ValueError: for an unknown method or an impossible combination.

    >>> method_settings("ga_sam", scale="none").granularity is None
    True
    >>> method_settings("sam", share=0.05).rho
    inf
    """
    _check_choice("method", method, METHODS)
    given = {name: value for name, value in overrides.items() if value is not None}
    preset = METHODS[method]
    if "share" in given:
        given.setdefault("rho", math.inf)
    scale = given.get("scale", preset.scale)
    if "granularity" not in given:
        # A scale of its own brings or drops the need for groups.
        given["granularity"] = None if scale == "none" else (preset.granularity or "layer")
    return replace(preset, **given)
