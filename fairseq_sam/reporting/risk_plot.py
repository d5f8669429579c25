"""The adversarial risk of checkpoints: a dot a checkpoint, losses and their differences."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Mapping

from fairseq_sam.reporting.print_style import figure_file, line_style

_NORMS = {"l2": "L2", "linf": "L∞"}


def write_risk_plot(figures: Mapping[str, Any], path: Path) -> None:
    """Draws what ``fairseq-sam risk --json`` writes.

    Left the clean loss (hollow) and the adversarial one (filled) of each checkpoint, right their
    difference, whose error does not contain what all checkpoints share: the sentences' lengths.

    Args:
        figures: that content.
        path: the image.

    Raises:
        ImportError: matplotlib is missing.
        OSError: it cannot be written.
    """
    checkpoints = figures["checkpoints"]
    height = 1.0 + 0.3 * len(checkpoints)
    with figure_file(path, 1, 2, width=8, height=height) as (figure, (losses, differences)):
        for row, each in enumerate(checkpoints):
            _draw(losses, row, each, "clean", hollow=True)
            _draw(losses, row, each, "adversarial")
            _draw(differences, row, each, "difference")
        unit = figures["unit"]
        losses.set_xlabel(f"loss ({unit})\n○ at the weights   ● at its largest nearby")
        differences.set_xlabel(f"difference ({unit})\nbars: standard errors over sentences")
        for axis in (losses, differences):
            axis.set_yticks(range(len(checkpoints)), [each["name"] for each in checkpoints])
            axis.set_ylim(len(checkpoints) - 0.5, -0.5)
        differences.tick_params(labelleft=False)
        differences.set_xlim(left=min(0.0, differences.get_xlim()[0]))
        within = f"within {figures['rho']:g} ({_NORMS[figures['norm']]})"
        figure.suptitle(f"adversarial risk {within}, {figures['subset']}", fontsize="medium")


def _draw(
    axis: Any, row: int, checkpoint: Mapping[str, Any], name: str, hollow: bool = False
) -> None:
    found, style = checkpoint[name], line_style(row)
    if hollow:
        style["markerfacecolor"] = "white"
    axis.errorbar(
        [found["mean"]],
        [row],
        xerr=[found["standard_error"] or 0.0],
        capsize=2,
        markersize=6,
        **{**style, "linestyle": "none"},
    )
