"""The validated metric against the radius."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Dict, List

from fairseq_sam.search.files import replaced
from fairseq_sam.search.strategy import BASELINE
from fairseq_sam.search.summary import Row, Summary

# Okabe and Ito's palette, which colour-blind people can tell apart.
_BLUE, _ORANGE, _GREEN, _GREY = "#0072B2", "#D55E00", "#009E73", "#666666"


def write_plot(summary: Summary, path: Path) -> None:
    """Draws the search into an image file; its suffix tells the format.

    Runs that were given up have no value: they are crosses at the edge of the worse side. So that
    the dip can be seen, radii that do great harm are triangles at that edge.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    axis = figure.subplots()
    limit, maximise = worst_shown(summary), summary.command.maximise
    tried = [row for row in summary.rows if row.rho != BASELINE]
    finished = [row for row in tried if row.mean is not None]
    beyond = [row for row in finished if row.cost(maximise) > limit]
    _draw_values(axis, [row for row in finished if row not in beyond])
    _draw_at_edge(axis, beyond, maximise, marker="v" if maximise else "^", label="off the scale")
    given_up = [row for row in tried if row.mean is None]
    _draw_at_edge(axis, given_up, maximise, marker="x", label="given up")
    if summary.baseline is not None and summary.baseline.mean is not None:
        axis.axhline(summary.baseline.mean, color=_GREY, linestyle="--", label="baseline (0)")
    best = summary.best
    if best is not None and best.mean is not None:
        style: Dict[str, Any] = {"marker": "*", "markersize": 15, "color": _GREEN, "zorder": 3}
        axis.plot(best.rho, best.mean, label=f"best: {best.rho:g}", linestyle="none", **style)
    _label(axis, summary, tried)
    with replaced(path) as temporary:
        figure.savefig(temporary, dpi=150)


def _label(axis: Any, summary: Summary, tried: List[Row]) -> None:
    axis.set_xscale("log")
    if tried:
        axis.set_xlim(tried[0].rho / 2, tried[-1].rho * 2)
    axis.margins(y=0.15)
    axis.set_xlabel("radius (--sam-rho)")
    axis.set_ylabel(f"{summary.command.metric} on {summary.command.subset}")
    axis.grid(alpha=0.3)
    axis.legend()


def worst_shown(summary: Summary) -> float:
    """Returns the cost up to which values are drawn to scale.

    It is above the baseline's by twice the gain of the best radius, or by 2 % if that is more.
    """
    maximise, best = summary.command.maximise, summary.best
    if best is None or summary.baseline is None or summary.baseline.mean is None:
        return math.inf
    baseline = summary.baseline.cost(maximise)
    return baseline + max(2 * abs(baseline - best.cost(maximise)), 0.02 * abs(baseline))


def _draw_values(axis: Any, rows: List[Row]) -> None:
    if rows:
        radii, means = [row.rho for row in rows], [row.mean for row in rows]
        errors = [row.deviation or 0.0 for row in rows]
        style = {"marker": "o", "color": _BLUE, "capsize": 2}
        axis.errorbar(radii, means, yerr=errors, label="finished", **style)


def _draw_at_edge(axis: Any, rows: List[Row], maximise: bool, marker: str, label: str) -> None:
    if rows:
        axis.plot(
            [row.rho for row in rows],
            [0.03 if maximise else 0.97] * len(rows),
            **{"marker": marker, "color": _ORANGE, "linestyle": "none", "label": label},
            transform=axis.get_xaxis_transform(),
        )
