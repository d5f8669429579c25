"""The figure of the analytic trials: GA-SAM's Figures 1 and 2 side by side."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Sequence

from fairseq_sam.reporting.print_style import COLOURS, figure_file

if TYPE_CHECKING:
    from fairseq_sam.analysis.shift import Curves, LinearFit

BLUE, ORANGE, *_, BLACK = COLOURS


def write_shift_plot(
    curves: Curves, shares: Sequence[float], lengths: Sequence[float], fit: LinearFit, path: Path
) -> None:
    """Draws the losses along α (left) and ‖δ‖₂ against η (right); the suffix tells the format.

    Raises:
        ImportError: matplotlib is not there.
        OSError: the file cannot be written.
        ValueError: matplotlib does not know the format.
    """
    with figure_file(path, 1, 2, width=9, height=3.2) as (_, (left, right)):
        _draw_losses(left, curves)
        _draw_lengths(right, shares, lengths, fit)
        for axis in (left, right):
            axis.legend()


def _draw_losses(axis: Any, curves: Curves) -> None:
    style = {"markersize": 4, "markevery": max(1, len(curves.alphas) // 12)}
    axis.plot(curves.alphas, curves.train, "--s", color=BLUE, label="training loss", **style)
    axis.plot(curves.alphas, curves.test, "-o", color=BLACK, label="test loss", **style)
    axis.plot(
        curves.alphas, curves.shifted, ":^", color=ORANGE, label="shifted training loss", **style
    )
    axis.set_xlabel("α in w = αθ + (1 − α)θ*\n(1: training minimum, 0: test minimum)")
    axis.set_ylabel("loss (nats per example)")


def _draw_lengths(
    axis: Any, shares: Sequence[float], lengths: Sequence[float], fit: LinearFit
) -> None:
    percent = [100 * share for share in shares]
    axis.plot(percent, lengths, "o", color=BLUE, markersize=3, label="trials")
    line = [fit.intercept + fit.slope * share for share in shares]
    axis.plot(percent, line, "--", color=ORANGE, label=f"fitted line, R² = {fit.r_squared:.3f}")
    axis.set_xlabel("share η of test data (%)")
    axis.set_ylabel("‖δ‖₂ (units of the weights)")
