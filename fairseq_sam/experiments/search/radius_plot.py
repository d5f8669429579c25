"""The validated metric against the radius."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Dict, List

from fairseq_sam.experiments.search.strategy import BASELINE
from fairseq_sam.experiments.search.summary import Row, Summary
from fairseq_sam.reporting.print_style import COLOURS, error_bars, figure_file

_BLUE, _ORANGE, _GREEN, *_ = COLOURS


def write_plot(summary: Summary, path: Path) -> None:
    """Draws the search into an image file; its suffix tells the format.

    Runs that were stopped early or diverged have no value: they are crosses at the edge of the
    worse side. So that the dip can be seen, radii that do great harm are triangles at that edge.

    Raises:
        ImportError: matplotlib is missing.
        OSError: the file cannot be written.
    """
    with figure_file(path, 1, height=3.0) as (_, (axis,)):
        _draw(axis, summary)


def _draw(axis: Any, summary: Summary) -> None:
    limit, maximise = worst_shown(summary), summary.command.maximise
    tried = [row for row in summary.rows if row.rho != BASELINE]
    finished = [row for row in tried if row.mean is not None]
    beyond = [row for row in finished if row.cost(maximise) > limit]
    _draw_values(axis, [row for row in finished if row not in beyond])
    _draw_at_edge(axis, beyond, maximise, marker="v" if maximise else "^", label="off the scale")
    unfinished = [row for row in tried if row.mean is None]
    _draw_at_edge(axis, unfinished, maximise, marker="x", label="stopped early or diverged")
    if summary.baseline is not None and summary.baseline.mean is not None:
        axis.axhline(summary.baseline.mean, color="0.4", linestyle="--", label="baseline (0)")
    best = summary.best
    if best is not None and best.mean is not None:
        style: Dict[str, Any] = {"marker": "*", "markersize": 15, "color": _GREEN, "zorder": 3}
        axis.plot(
            best.rho,
            best.mean,
            label=f"best: {summary.command.radius(best.rho)}",
            linestyle="none",
            **style,
        )
    _label(axis, summary, tried)


def _label(axis: Any, summary: Summary, tried: List[Row]) -> None:
    axis.set_xscale("log")
    if tried:
        axis.set_xlim(tried[0].rho / 2, tried[-1].rho * 2)
    axis.margins(y=0.15)
    of_loss = ", share of the loss" if summary.command.shares else ""
    axis.set_xlabel(f"radius (--sam-rho{of_loss})")
    unit = "\n(bits per unit)" if summary.command.metric in ("loss", "nll_loss") else ""
    axis.set_ylabel(f"{summary.command.metric} on {summary.command.subset}{unit}")
    axis.legend(fontsize="small")


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
        errors = error_bars([row.deviation for row in rows])
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
