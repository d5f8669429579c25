"""Runs side by side as curves: validation loss and sharpness per epoch, and by radius."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any, Dict, Iterable, List, NamedTuple, Optional, Sequence, Tuple

from fairseq_sam.reporting.deviation import mean_of, sample_deviation
from fairseq_sam.reporting.print_style import figure_file, legend_below, line_style
from fairseq_sam.reporting.runs import Run, group_runs, is_perturbed

_Points = List[Tuple[int, float]]
_MOST_INSIDE = 6
"""A panel has room for the names, and the bands, of so many lines."""


class Curve(NamedTuple):
    """Means over runs, epoch by epoch, and standard deviations (0 where there is one run)."""

    epochs: List[int]
    means: List[float]
    deviations: List[float]

    def minus(self, other: Curve) -> Curve:
        """Returns the differences of the means, without deviations, where both have the epoch."""
        known = dict(zip(other.epochs, other.means))
        common = [(x, y - known[x]) for x, y, _ in zip(*self) if x in known]
        return Curve([x for x, _ in common], [y for _, y in common], [0.0] * len(common))


def valid_loss_curve(runs: Sequence[Run]) -> Curve:
    """Returns the validation loss (bits) after each epoch."""
    return _mean_curve(
        [(e.epoch, e.valid["loss"]) for e in run.epochs if "loss" in e.valid] for run in runs
    )


def sharpness_curve(runs: Sequence[Run]) -> Curve:
    """Returns the mean sharpness (bits) in each perturbed epoch."""
    return _mean_curve(
        [
            (e.epoch, e.train["sharpness"])
            for e in run.epochs
            if "sharpness" in e.train and is_perturbed(e)
        ]
        for run in runs
    )


def _mean_curve(runs: Iterable[_Points]) -> Curve:
    by_epoch: Dict[int, List[float]] = {}
    for points in runs:
        for epoch, value in points:
            by_epoch.setdefault(epoch, []).append(value)
    epochs = sorted(by_epoch)
    values = [by_epoch[epoch] for epoch in epochs]
    return Curve(epochs, [mean_of(v) for v in values], [sample_deviation(v) for v in values])


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


def write_plot(
    runs: Sequence[Run], path: Path, title: Optional[str] = None, group_by: Optional[str] = None
) -> None:
    """Draws the curves of all runs into an image file; its suffix tells the format.

    Panels from the top: validation loss; the same minus the first line's, if there are several; the
    sharpness (perturbed minus clean training loss), if any run has it; the lowest validation loss
    by radius, if a method has several. A dotted line marks where a run's perturbation begins.

    Args:
        runs: in the order of the lines.
        path: the image.
        title: heading.
        group_by: as for :func:`~fairseq_sam.reporting.runs.group_runs`. Runs of a group share a
            line, their mean; a few lines are in bands of a standard deviation to each side.
    """
    groups = group_runs(runs, group_by)
    panels, by_radius = _panels(groups), radius_curves(runs)
    with figure_file(path, len(panels) + bool(by_radius), width=7) as (figure, axes):
        for axis, (label, curves) in zip(axes, panels):
            for index, (name, members) in enumerate(groups.items()):
                _draw(axis, name, members, curves[name], index)
                if len(groups) <= _MOST_INSIDE:
                    _draw_band(axis, curves[name], index)
            axis.set_ylabel(label)
            axis.xaxis.get_major_locator().set_params(integer=True)
            axis.sharex(axes[0])
        axes[len(panels) - 1].set_xlabel("epoch")
        if by_radius:
            _draw_radii(axes[-1], by_radius, [run for run in runs if run.radius is None])
        if len(groups) > _MOST_INSIDE:
            legend_below(figure, axes[0])
        else:
            axes[0].legend()
        axes[0].set_title(title or "")


def _panels(groups: Dict[str, List[Run]]) -> List[Tuple[str, Dict[str, Curve]]]:
    """Returns the panels' labels and the curves of each group."""
    losses = {name: valid_loss_curve(runs) for name, runs in groups.items()}
    panels = [("validation loss (bits)", losses)]
    if len(groups) > 1:
        first = next(iter(groups))
        differences = {name: curve.minus(losses[first]) for name, curve in losses.items()}
        panels.append((f"validation loss\nminus {first}'s (bits)", differences))
    sharpness = {name: sharpness_curve(runs) for name, runs in groups.items()}
    if any(curve.epochs for curve in sharpness.values()):
        panels.append(("sharpness (bits)", sharpness))
    return panels


def _draw(axis: Any, name: str, runs: Sequence[Run], curve: Curve, index: int) -> None:
    style = line_style(index)
    axis.plot(curve.epochs, curve.means, label=name, **style)
    for start in {run.first_perturbed_epoch() for run in runs}:
        if start is not None:
            axis.axvline(start - 0.5, linestyle=":", linewidth=1, color=style["color"])


def _draw_band(axis: Any, curve: Curve, index: int) -> None:
    if any(curve.deviations):
        low = [mean - deviation for _, mean, deviation in zip(*curve)]
        high = [mean + deviation for _, mean, deviation in zip(*curve)]
        color = line_style(index)["color"]
        axis.fill_between(curve.epochs, low, high, color=color, alpha=0.15, linewidth=0)


def _draw_radii(
    axis: Any, curves: Dict[str, Dict[float, List[float]]], baselines: Sequence[Run]
) -> None:
    for index, (name, losses) in enumerate(curves.items()):
        means = [mean_of(values) for values in losses.values()]
        axis.plot(list(losses), means, label=name, **line_style(index))
    unperturbed = [loss for loss in (run.best_valid_loss() for run in baselines) if loss]
    if unperturbed:
        mean = mean_of(unperturbed)
        axis.axhline(mean, color="0.4", linestyle="--", label="without perturbation")
    axis.set_xscale("log")
    axis.set_xlabel("radius")
    axis.set_ylabel("lowest validation loss (bits)")
    axis.legend(fontsize="small")
