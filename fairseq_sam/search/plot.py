"""The validated metric against the radius."""

from __future__ import annotations

from pathlib import Path
from typing import Any, List

from fairseq_sam.search.files import replaced
from fairseq_sam.search.strategy import BASELINE
from fairseq_sam.search.summary import Row, Summary

# Okabe and Ito's palette, which colour-blind people can tell apart.
_BLUE, _ORANGE, _GREEN, _GREY = "#0072B2", "#D55E00", "#009E73", "#666666"


def write_plot(summary: Summary, path: Path) -> None:
    """Draws the search into an image file; its suffix tells the format.

    Runs that were given up have no value: they are crosses at the edge of the worse side.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axis = pyplot.subplots(figsize=(7, 4), layout="constrained")
    tried = [row for row in summary.rows if row.rho != BASELINE]
    axis.set_xscale("log")
    _draw_finished(axis, [row for row in tried if row.mean is not None])
    _draw_given_up(axis, [row for row in tried if row.mean is None], summary.command.maximise)
    if summary.baseline is not None and summary.baseline.mean is not None:
        axis.axhline(summary.baseline.mean, color=_GREY, linestyle="--", label="baseline (0)")
    if summary.best is not None:
        axis.plot(
            *(summary.best.rho, summary.best.mean),
            **{"marker": "*", "markersize": 14, "color": _GREEN, "linestyle": "none"},
            label=f"best: {summary.best.rho:g}",
        )
    axis.set_xlabel("radius (--sam-rho)")
    axis.set_ylabel(f"{summary.command.metric} on {summary.command.subset}")
    axis.grid(alpha=0.3)
    axis.legend()
    with replaced(path) as temporary:
        figure.savefig(temporary, dpi=150)
    pyplot.close(figure)


def _draw_finished(axis: Any, rows: List[Row]) -> None:
    axis.errorbar(
        [row.rho for row in rows],
        [row.mean for row in rows],
        yerr=[row.deviation or 0.0 for row in rows],
        **{"marker": "o", "color": _BLUE, "capsize": 2, "label": "finished"},
    )


def _draw_given_up(axis: Any, rows: List[Row], maximise: bool) -> None:
    if rows:
        axis.plot(
            [row.rho for row in rows],
            [0.03 if maximise else 0.97] * len(rows),
            **{"marker": "x", "color": _ORANGE, "linestyle": "none", "label": "given up"},
            transform=axis.get_xaxis_transform(),
        )
