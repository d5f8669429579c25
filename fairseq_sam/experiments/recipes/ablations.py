"""GA-SAM's ablations (its Tables 2 and 3): variants of ga_sam that differ from it in one part."""

from __future__ import annotations

from typing import ClassVar, Dict, Mapping, Sequence

from fairseq_sam.experiments.experiment import Experiment
from fairseq_sam.experiments.recipe import Recipe

SOURCE = "Zhang et al., GA-SAM, EMNLP 2022, Tables 2 and 3: mean ± standard deviation of 4 runs"

PARTS = {
    "ga_sam_single": "--sam-risk perturbed",
    "ga_sam_element": "--sam-granularity element",
    "ga_sam_model": "--sam-granularity model",
    "ga_sam_weight_over_gradient": "--sam-scale weight-over-gradient",
    "ga_sam_inverse_gradient": "--sam-scale inverse-gradient",
    "ga_sam_weight_strength": "--sam-scale weight-strength",
    "ga_sam_weight": "--sam-scale weight",
    "ga_sam_k2": "--sam-steps 2",
    "ga_sam_k3": "--sam-steps 3",
    "ga_sam_k4": "--sam-steps 4",
    "ga_sam_k5": "--sam-steps 5",
    "ga_sam_l2": "--sam-norm l2",
}


def methods(own: str, l2: Sequence[str] = (), **radii: str) -> Dict[str, str]:
    """Returns the flags of the variants.

    Args:
        own: the radius of ga_sam, for those that are not among ``radii``.
        l2: those whose norm is L2.
        **radii: of the others.
    """
    found = {}
    for name, part in PARTS.items():
        flags = "--optimizer ga_sam --base-optimizer {base} --sam-rho " + radii.get(name, own)
        found[name] = f"{flags} --sam-norm linf {part}"
        found[name] += " --sam-norm l2" if name in l2 else ""
    return found


def alias(linf: str, l2: str) -> Dict[str, str]:
    """Returns what ``--methods ablations`` stands for, with these radii of ga_sam."""
    names = ["baseline", "sam", "ga_sam", "multi_step_defense"]  # the last is T = 1
    names += [name for name in PARTS if name != "ga_sam_l2"]
    names += [f"ga_sam@{radius}" for radius in linf.split()]
    names += [f"ga_sam_l2@{radius}" for radius in l2.split()]
    return {"ablations": ",".join(names)}


class WithAblations(Recipe):
    """A table with the variants: they have another one in the paper, and a plot.

    Attributes:
        own: the metric, and the radius of ga_sam, for the plot.
    """

    own: ClassVar[Mapping[str, str]]
    default = "baseline,sam,asam,layer_sam,multi_step_defense,ga_sam"

    def table(self, x: Experiment) -> str:
        return self.name + ("_ablation" if _among(x.options.methods) else "")

    def report_text(self, x: Experiment) -> str:
        plot = PLOT.format(**self.own) if _among(x.options.methods) else ""
        return super().report_text(x) + plot


PLOT = """
{{python}} {{root}}/scripts/ablation_plot.py --runs {{runs}} --metric {metric} \\
    --radius {radius} --paper {{table}} --out {{out}}/ablations.png
"""


def _among(names: Sequence[str]) -> bool:
    return any(name.startswith(("ga_sam_", "ga_sam@")) for name in names)
