"""What one sharpness-aware method is: a choice of independent parts.

The parts are scale, granularity, norm, direction, risk and weighting of sentences (GA-SAM §2; δ-SAM
§3), and whether the radius is a number or a share of the loss.
docs/how_it_works.md has their equations, docs/methods.md a card for each method.
A method is data, not code: :class:`PerturbationSettings` names the parts, :data:`METHODS` names
the published combinations. Everything else in this package reads these settings.
"""

import math
from dataclasses import dataclass, replace
from typing import Any, Dict, Optional

from fairseq_sam.perturbation.ascent import DIRECTIONS, GRANULARITIES, SCALES

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
            or ``model``. None exactly for the scale ``none``, which has no groups; some scales go
            with one only.
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
        probe_radius: length h of the random displacement at which the weights are measured; the
            differences are scaled back to rho. None is long enough for the floating-point format,
            rho itself the paper to the letter.
        direction: what the ascent follows (:mod:`~fairseq_sam.perturbation.ascent`).
        smoothing: θ of the directions that remember; None is the direction's own.
        friendly: σ of the friendly direction.
        ascent_fraction: q, the part of a batch's sentences that the ascent sees (Brock et al. 2021,
            §4); the pass that is trained on sees all.
        ascent_share: part of the mini-batches of an update that have an ascent of their own; those
            after them take the perturbation of the last of these.
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
    direction: str = "gradient"
    smoothing: Optional[float] = None
    friendly: float = 1.0
    ascent_fraction: float = 1.0
    ascent_share: float = 1.0
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
        if self.smoothing is not None and not 0 < self.smoothing <= 1:
            raise ValueError(f"smoothing is {self.smoothing}: it must be above 0, and 1 at most")
        if not (math.isfinite(self.friendly) and self.friendly >= 0):
            raise ValueError(f"friendly is {self.friendly}: it must be a finite number, 0 or more")
        for name in ("ascent_fraction", "ascent_share"):
            if not 0 < getattr(self, name) <= 1:
                raise ValueError(
                    f"{name} is {getattr(self, name)}: it must be above 0, and 1 at most"
                )
        _check_choice("direction", self.direction, DIRECTIONS)
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
            only = SCALES[self.scale].granularity
            if only is not None and self.granularity != only:
                raise ValueError(
                    f"granularity is {self.granularity}: it must be {only} with the scale "
                    f"{self.scale}"
                )
            if self.needs_second_moments and self.loss_reduction != "mean":
                raise ValueError(
                    f"loss_reduction is {self.loss_reduction}: it must be mean with the scale "
                    f"{self.scale}, for the base optimizer remembers gradients of the mean loss"
                )
        self._check_combination()

    def _check_combination(self) -> None:
        """Refuses parts that make no sense together."""
        if self.risk == "mean" or self.per_instance:
            other = "the mean risk" if self.risk == "mean" else "a perturbation a sentence"
            for name in ("ascent_fraction", "ascent_share"):
                if getattr(self, name) < 1:
                    raise ValueError(
                        f"{name} is {getattr(self, name)}: it must be 1 with {other}, which trains "
                        "on what the ascent sees"
                    )
        if self.per_instance and self.needs_sentences:
            raise ValueError(
                f"weighting is {self.weighting}: it must be uniform with a perturbation a "
                "sentence, which leaves nothing to weigh"
            )
        if self.risk == "functional" and self.ascent_share < 1:
            raise ValueError(
                f"ascent_share is {self.ascent_share}: it must be 1 with the functional risk, for "
                "which each mini-batch has a pass at w"
            )
        if self.direction == "gradient":
            return
        if self.per_instance:
            raise ValueError(
                f"direction is {self.direction}: perturbed sentence by sentence it can only be "
                "gradient"
            )
        if self.needs_pass:
            return
        for name, value, allowed in (
            ("risk", self.risk, "perturbed"),
            ("weighting", self.weighting, "uniform"),
            ("num_steps", self.num_steps, 1),
            ("share", self.share, None),
            ("ascent_fraction", self.ascent_fraction, 1),
            ("ascent_share", self.ascent_share, 1),
            ("loss_reduction", self.loss_reduction, "mean"),
        ):
            if value != allowed:
                only = f"it must be {allowed}" if allowed is not None else "it must be a number"
                raise ValueError(
                    f"{name} is {value}: {only} with the direction {self.direction}, which has no "
                    "pass at w"
                )

    def describe_radius(self) -> str:
        """Returns the radius as one writes it: a number, or a share such as 5%."""
        return f"{self.rho:g}" if self.share is None else f"{self.share * 100:g}%"

    @property
    def needs_pass(self) -> bool:
        """Whether a pass at w comes before the one that is trained on."""
        return DIRECTIONS[self.direction].needs_pass

    @property
    def needs_second_moments(self) -> bool:
        """Whether T follows from what the base optimizer remembers of the squared gradients."""
        return SCALES[self.scale].uses_second_moments

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
    # GA-SAM Eqs. 13-14; a share, since no radius suits both training from scratch and fine-tuning
    # (docs/methods.md).
    "ga_sam": PerturbationSettings(
        rho=math.inf,
        share=0.02,
        norm="linf",
        scale="gradient-strength",
        granularity="layer",
        risk="mean",
    ),
    # Zhou et al. 2022: ρ and η of BART on CNN/DM; β as for three of the eight GLUE
    # tasks of the draft with BERT.
    "delta_sam": PerturbationSettings(rho=0.01, weighting="published"),
    "per_instance_sam": PerturbationSettings(rho=0.01, per_instance=True),
    # Singh et al. 2025, with SAM's radius.
    "functional_sam": PerturbationSettings(rho=0.05, risk="functional"),
    # Becker et al. 2025: ten times the radius of SAM.
    "momentum_sam": PerturbationSettings(rho=0.5, direction="momentum"),
    # Li & Giannakis 2023; Li et al. 2024: with SAM's radius.
    "vasso": PerturbationSettings(rho=0.05, direction="smoothed"),
    "friendly_sam": PerturbationSettings(rho=0.05, direction="friendly"),
}
"""The published methods. Each entry fixes defaults only: any part can be replaced."""


def method_settings(method: str, **overrides: Any) -> PerturbationSettings:
    """Returns the settings of a named method with some of its parts replaced.

    Args:
        method: a key of :data:`METHODS`.
        **overrides: fields of :class:`PerturbationSettings`; None keeps the method's own value. A
            share without rho has no greatest radius, and rho without a share is the radius.

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
    elif "rho" in given:
        given["share"] = None
    scale = given.get("scale", preset.scale)
    if "granularity" not in given:
        # A scale of its own brings or drops the need for groups.
        only = SCALES[scale].granularity if scale in SCALES else None
        usual = only or preset.granularity or "layer"
        given["granularity"] = None if scale == "none" else usual
    return replace(preset, **given)
