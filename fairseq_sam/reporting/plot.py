"""Runs side by side as curves: validation loss and sharpness per epoch."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Callable, List, Optional, Sequence, Tuple

from fairseq_sam.reporting.print_style import figure_file, line_style
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


def difference_curve(run: Run, baseline: Run) -> _Curve:
    """Returns the epochs that both runs have and the difference of their validation losses."""
    known = dict(zip(*valid_loss_curve(baseline)))
    points = [(x, y - known[x]) for x, y in zip(*valid_loss_curve(run)) if x in known]
    return [x for x, _ in points], [y for _, y in points]


def write_plot(runs: Sequence[Run], path: Path, title: Optional[str] = None) -> None:
    """Draws the curves of all runs into an image file; its suffix tells the format.

    Panels from the top: validation loss; the same minus the first run's, if there are several; the
    sharpness (perturbed minus clean training loss), if any run has it. A dotted line marks where a
    run's perturbation begins.
    """
    panels = _panels(runs)
    with figure_file(path, len(panels), width=7) as (_, axes):
        for axis, (label, curve) in zip(axes, panels):
            for index, run in enumerate(runs):
                _draw(axis, run, curve(run), index)
            axis.set_ylabel(label)
            axis.xaxis.get_major_locator().set_params(integer=True)
            axis.sharex(axes[0])
        axes[-1].set_xlabel("epoch")
        axes[0].legend()
        axes[0].set_title(title or "")


def _panels(runs: Sequence[Run]) -> List[Tuple[str, Callable[[Run], _Curve]]]:
    panels: List[Tuple[str, Callable[[Run], _Curve]]] = [
        ("validation loss\n(bits per target token)", valid_loss_curve)
    ]
    if len(runs) > 1:
        label = f"validation loss\nminus {runs[0].name}'s (bits)"
        panels.append((label, lambda run: difference_curve(run, runs[0])))
    if any(sharpness_curve(run)[0] for run in runs):
        panels.append(("sharpness\n(bits per target token)", sharpness_curve))
    return panels


def _draw(axis: Any, run: Run, curve: _Curve, index: int) -> None:
    style = line_style(index)
    axis.plot(*curve, label=run.name, **style)
    start = run.first_perturbed_epoch()
    if start is not None:
        axis.axvline(start - 0.5, linestyle=":", linewidth=1, color=style["color"])
