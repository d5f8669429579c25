"""Runs side by side as curves: validation loss and sharpness per epoch, and by radius."""

from __future__ import annotations

import itertools
import re
from pathlib import Path
from typing import Any, Dict, Iterable, List, NamedTuple, Optional, Sequence, Tuple

from fairseq_sam.reporting.numbers import mean_of, sample_deviation
from fairseq_sam.reporting.print_style import (
    figure_file,
    legend_below,
    line_style,
    tick_values,
    whole_numbers,
)
from fairseq_sam.reporting.runs import Run, group_runs, is_perturbed

_Points = List[Tuple[int, float]]
_MOST_INSIDE = 6
"""A panel has room for the names, and the bands, of so many lines."""


_MOST_STARTS = 4
"""More labels of starts would stand on top of each other."""


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
        By method, called what its runs' names have in common, and by radius, from the smallest (or
        by share of the loss, as a method of its own); a list has a value for each run, such as each
        seed.
    """
    curves = {}
    for members in _methods_of_several_radii(runs):
        losses: Dict[float, List[float]] = {}
        for run in sorted(members, key=lambda run: run.radius or 0):
            losses.setdefault(run.radius or 0, []).append(run.best_valid_loss() or 0)
        name = _common_start([run.name for run in members])
        curves[members[0].name if not name or name in curves else name] = losses
    return curves


def _methods_of_several_radii(runs: Sequence[Run]) -> List[List[Run]]:
    methods: Dict[str, List[Run]] = {}
    for run in runs:
        if run.radius is not None and run.best_valid_loss() is not None:
            methods.setdefault(run.method, []).append(run)
    return [m for m in methods.values() if len({run.radius for run in m}) > 1]


def _common_start(names: Sequence[str]) -> str:
    """Returns what names begin with, without what then sets a radius or a seed off.

    >>> _common_start(["ga_sam/seed1", "ga_sam@0.5/seed1"])
    'ga_sam'
    >>> _common_start(["ga_sam@0.0002", "ga_sam@0.001"])
    'ga_sam'
    """
    columns = itertools.takewhile(lambda column: len(set(column)) == 1, zip(*names))
    start = "".join(letter for letter, *_ in columns)
    return re.sub(r"[@/_=.-]*(?<![A-Za-z0-9])\d[\d.e+-]*$", "", start).rstrip("@/_-=.")


def write_plot(
    runs: Sequence[Run], path: Path, title: Optional[str] = None, group_by: Optional[str] = None
) -> None:
    """Draws the curves of all runs into an image file; its suffix tells the format.

    Panels from the top: validation loss; the same minus the first line's, if there are several; the
    sharpness (perturbed minus clean training loss), if any run has it; the lowest validation loss
    by radius, if a method has several. A run, or group, has one colour and marker in all panels.
    Dotted lines mark where perturbations begin.

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
            for index, (name, curve) in enumerate(curves.items()):
                axis.plot(curve.epochs, curve.means, label=name, **line_style(index))
                if len(groups) <= _MOST_INSIDE:
                    _draw_band(axis, curve, index)
            axis.set_ylabel(label)
            axis.sharex(axes[0])
        _number_epochs(axes[len(panels) - 1], [run for run in runs if run.epochs])
        _mark_starts(axes[: len(panels)], groups)
        if by_radius:
            _draw_radii(axes[-1], groups, by_radius)
        if len(groups) > _MOST_INSIDE:
            legend_below(figure, axes[0])
        else:
            _add_legend(
                axes[0], any(any(curve.deviations) for _, c in panels for curve in c.values())
            )
        if title:
            figure.suptitle(title)


def _number_epochs(axis: Any, runs: Sequence[Run]) -> None:
    epochs = [epoch.epoch for run in runs for epoch in run.epochs] or [1]
    whole_numbers(axis, min(epochs), max(epochs))
    axis.set_xlabel("epoch")


def _add_legend(axis: Any, has_bands: bool) -> None:
    from matplotlib.patches import Patch

    handles, names = axis.get_legend_handles_labels()
    if has_bands:
        handles.append(Patch(color="0.4", alpha=0.3, linewidth=0))
        names.append("± standard deviation over runs")
    axis.legend(handles, names, fontsize="small")


def _mark_starts(axes: Sequence[Any], groups: Dict[str, List[Run]]) -> None:
    """Draws a dotted line where a perturbation begins, and says so above the first panel.

    It has its run's colour, or is black where several begin.
    """
    by_start: Dict[int, List[int]] = {}
    for index, runs in enumerate(groups.values()):
        for start in {run.first_perturbed_epoch() for run in runs}:
            if start is not None:
                by_start.setdefault(start, []).append(index)
    for number, (start, indices) in enumerate(sorted(by_start.items())):
        color = line_style(indices[0])["color"] if len(indices) == 1 else "black"
        for axis in axes:
            axis.axvline(start - 0.5, linestyle=":", linewidth=1, color=color)
        if number < _MOST_STARTS:
            axes[0].annotate(
                f"perturbed from epoch {start}",
                (start - 0.5, 1.0),
                xycoords=("data", "axes fraction"),
                xytext=(0, 2 + 9 * number),  # each above the one before: they may be close
                textcoords="offset points",
                color=color,
                fontsize="small",
            )


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


def _draw_band(axis: Any, curve: Curve, index: int) -> None:
    """Draws a standard deviation to each side; as a bar where there is but one epoch."""
    color = line_style(index)["color"]
    if any(curve.deviations) and len(curve.epochs) == 1:
        axis.errorbar(*curve, color=color, capsize=2)
    elif any(curve.deviations):
        low = [mean - deviation for _, mean, deviation in zip(*curve)]
        high = [mean + deviation for _, mean, deviation in zip(*curve)]
        axis.fill_between(curve.epochs, low, high, color=color, alpha=0.15, linewidth=0)


def _draw_radii(
    axis: Any, groups: Dict[str, List[Run]], curves: Dict[str, Dict[float, List[float]]]
) -> None:
    """Draws a grey line a method, and on it the runs, each in its colour and with its marker."""
    for index, (name, losses) in enumerate(curves.items()):
        means = [mean_of(values) for values in losses.values()]
        style = {"linestyle": line_style(index)["linestyle"], "color": "0.5", "zorder": 1}
        axis.plot(list(losses), means, label=f"{name}, mean by radius", **style)
    shown = {
        id(run)
        for method in _methods_of_several_radii([run for runs in groups.values() for run in runs])
        for run in method
    }
    for index, runs in enumerate(groups.values()):
        points: Dict[float, List[float]] = {}
        for run in (run for run in runs if id(run) in shown):
            points.setdefault(run.radius or 0, []).append(run.best_valid_loss() or 0)
        style = {**line_style(index), "linestyle": "none", "zorder": 2}
        for radius, values in points.items():
            axis.plot(radius, mean_of(values), **style)
    _draw_unperturbed(axis, groups)
    axis.set_xscale("log")
    axis.margins(x=0.08)
    axis.autoscale_view()
    tick_values(axis, [radius for losses in curves.values() for radius in losses])
    axis.set_xlabel("radius, or share of the loss")
    axis.set_ylabel("lowest validation loss (bits)")
    axis.legend(fontsize="small")


def _draw_unperturbed(axis: Any, groups: Dict[str, List[Run]]) -> None:
    """Draws the mean of each group's runs without perturbation, in the group's colour."""
    for index, (name, runs) in enumerate(groups.items()):
        found = [run.best_valid_loss() for run in runs if run.radius is None]
        known = [loss for loss in found if loss is not None]
        if known:
            style = {"color": line_style(index)["color"], "linestyle": "--", "zorder": 0}
            axis.axhline(mean_of(known), label=f"{name}, without perturbation", **style)
