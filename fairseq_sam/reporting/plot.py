"""Runs side by side as curves: validation loss and sharpness per epoch."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, List, Optional, Sequence, Tuple

from fairseq_sam.reporting.runs import Run, is_perturbed

_Curve = Tuple[List[int], List[float]]


def valid_loss_curve(run: Run) -> _Curve:
    """Returns the epochs and the validation loss (bits) after each."""
    points = [(e.epoch, e.valid["loss"]) for e in run.epochs if "loss" in e.valid]
    return [x for x, _ in points], [y for _, y in points]


def sharpness_curve(run: Run) -> _Curve:
    """Returns the perturbed epochs and the mean sharpness (bits) in each."""
    points = [
        (e.epoch, e.train["sharpness"])
        for e in run.epochs
        if "sharpness" in e.train and is_perturbed(e)
    ]
    return [x for x, _ in points], [y for _, y in points]


def write_plot(runs: Sequence[Run], path: Path, title: Optional[str] = None) -> None:
    """Draws the curves of all runs into an image file; its suffix tells the format.

    The lower panel, the sharpness (perturbed minus clean training loss), is there if any run has
    it; a dotted line marks where a run's perturbation begins.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    with_sharpness = any(sharpness_curve(run)[0] for run in runs)
    figure, axes = pyplot.subplots(
        2 if with_sharpness else 1,
        1,
        sharex=True,
        squeeze=False,
        figsize=(7, 6 if with_sharpness else 4),
        layout="constrained",
    )
    colors = pyplot.rcParams["axes.prop_cycle"].by_key()["color"]
    for index, run in enumerate(runs):
        _draw_run(run, axes[:, 0], colors[index % len(colors)])
    axes[0, 0].set_ylabel("validation loss (bits per target token)")
    if with_sharpness:
        axes[1, 0].set_ylabel("sharpness (bits per target token)")
    for axis in axes[:, 0]:
        axis.grid(alpha=0.3)
    axes[-1, 0].set_xlabel("epoch")
    axes[-1, 0].xaxis.get_major_locator().set_params(integer=True)
    axes[0, 0].legend()
    axes[0, 0].set_title(title or "")
    _save(figure, path)
    pyplot.close(figure)


def _draw_run(run: Run, axes: Any, color: str) -> None:
    axes[0].plot(*valid_loss_curve(run), marker="o", markersize=3, color=color, label=run.name)
    start = run.first_perturbed_epoch()
    if start is not None:
        axes[0].axvline(start - 0.5, linestyle=":", color=color)
        axes[-1].plot(*sharpness_curve(run), marker="o", markersize=3, color=color)


def _save(figure: Any, path: Path) -> None:
    """Saves so that ``path`` is never a half-written image."""
    temporary = path.with_name(f".{path.stem}.{os.getpid()}.incomplete{path.suffix}")
    try:
        figure.savefig(temporary, dpi=150)
        os.replace(temporary, path)
    finally:
        if temporary.exists():
            temporary.unlink()
