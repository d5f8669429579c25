"""Runs side by side as curves: validation loss and sharpness per epoch, and by radius."""

from __future__ import annotations

import itertools
import statistics
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional, Sequence, Tuple

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


def radius_curves(runs: Sequence[Run]) -> Dict[str, Dict[float, List[float]]]:
    """Returns the lowest validation losses (bits) of the methods that have runs of several radii.

    Returns:
        By method, called what its runs' names have in common, and by radius, from the smallest; a
        list has a value for each run, such as each seed.
    """
    methods: Dict[str, List[Run]] = {}
    for run in runs:
        if run.radius is not None and run.best_valid_loss() is not None:
            methods.setdefault(run.method, []).append(run)
    curves = {}
    for members in methods.values():
        losses: Dict[float, List[float]] = {}
        for run in sorted(members, key=lambda run: run.radius or 0):
            losses.setdefault(run.radius or 0, []).append(run.best_valid_loss() or 0)
        if len(losses) > 1:
            curves[_common_start([run.name for run in members]) or members[0].name] = losses
    return curves


def _common_start(names: Sequence[str]) -> str:
    """Returns what names begin with, without what then sets a radius or a seed off.

    >>> _common_start(["ga_sam/seed1", "ga_sam@0.5/seed1"])
    'ga_sam'
    """
    columns = itertools.takewhile(lambda column: len(set(column)) == 1, zip(*names))
    return "".join(letter for letter, *_ in columns).rstrip("@/_-=.")


def write_plot(runs: Sequence[Run], path: Path, title: Optional[str] = None) -> None:
    """Draws the curves of all runs into an image file; its suffix tells the format.

    Panels from the top: validation loss; the same minus the first run's, if there are several; the
    sharpness (perturbed minus clean training loss), if any run has it; the lowest validation loss
    by radius, if a method has several. A dotted line marks where a run's perturbation begins.
    """
    panels, by_radius = _panels(runs), radius_curves(runs)
    with figure_file(path, len(panels) + bool(by_radius), width=7) as (_, axes):
        for axis, (label, curve) in zip(axes, panels):
            for index, run in enumerate(runs):
                _draw(axis, run, curve(run), index)
            axis.set_ylabel(label)
            axis.xaxis.get_major_locator().set_params(integer=True)
            axis.sharex(axes[0])
        axes[len(panels) - 1].set_xlabel("epoch")
        if by_radius:
            _draw_radii(axes[-1], by_radius, [run for run in runs if run.radius is None])
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


def _draw_radii(
    axis: Any, curves: Dict[str, Dict[float, List[float]]], baselines: Sequence[Run]
) -> None:
    for index, (name, losses) in enumerate(curves.items()):
        means = [statistics.fmean(values) for values in losses.values()]
        axis.plot(list(losses), means, label=name, **line_style(index))
    unperturbed = [loss for loss in (run.best_valid_loss() for run in baselines) if loss]
    if unperturbed:
        mean = statistics.fmean(unperturbed)
        axis.axhline(mean, color="0.4", linestyle="--", label="without perturbation")
    axis.set_xscale("log")
    axis.set_xlabel("radius")
    axis.set_ylabel("lowest validation loss\n(bits per target token)")
    axis.legend(fontsize="small")
