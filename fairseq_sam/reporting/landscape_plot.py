"""Loss surfaces as a curve or as contours, and m-sharpness over the radius."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Dict, List, Mapping, Sequence

from fairseq_sam.reporting.print_style import COLOUR_MAP, error_bars, figure_file, line_style


def write_landscape_plot(figures: Mapping[str, Any], path: Path) -> None:
    """Draws what ``fairseq-sam landscape --json`` writes.

    Args:
        figures: that content, with ``surface``, ``m_sharpness`` or both.
        path: the image.

    Raises:
        OSError: it cannot be written.
    """
    parts = [part for part in ("surface", "m_sharpness") if figures.get(part)]
    surface = figures.get("surface")
    flat = surface is not None and len(surface["axes"]) == 2
    shape: Dict[str, Any] = {"rows": len(parts), "height": 2.6}
    if flat:  # a square beside, not above, the other panel
        shape = {"rows": 1, "columns": len(parts), "width": 5.0 * len(parts), "height": 3.6}
    with figure_file(path, **shape) as (figure, axes):
        for axis, part in zip(axes, parts):
            if part == "m_sharpness":
                _draw_sharpness(axis, figures)
            elif flat:
                _draw_contours(figure, axis, figures)
            else:
                _draw_curve(axis, figures)
        axes[0].set_title(f"{' – '.join(figures['names'])}, {figures['subset']}")


def _draw_curve(axis: Any, figures: Mapping[str, Any]) -> None:
    surface = figures["surface"]
    (coordinates,) = surface["axes"]
    axis.plot(coordinates, _numbers(surface["losses"]), **line_style(0))
    axis.set_xlabel(surface["labels"][0])
    axis.set_ylabel(f"loss ({figures['unit']})")
    _mark_checkpoints(axis, figures)


def _mark_checkpoints(axis: Any, figures: Mapping[str, Any]) -> None:
    for position, name in enumerate(figures["names"]):
        axis.axvline(position, color="0.5", linewidth=0.8)
        axis.annotate(
            name,
            (position, 1.0),
            xycoords=("data", "axes fraction"),
            xytext=(3, -3),
            textcoords="offset points",
            va="top",
            fontsize=8,
        )


def _draw_contours(figure: Any, axis: Any, figures: Mapping[str, Any]) -> None:
    from matplotlib import colors, patheffects

    surface = figures["surface"]
    across, up = surface["axes"]
    losses = [_numbers(row) for row in surface["losses"]]  # [across, up]
    heights = [list(column) for column in zip(*losses)]  # [up, across], as matplotlib wants it
    levels = contour_levels(losses)
    norm = colors.PowerNorm(0.5, levels[0], levels[-1])
    filled = axis.contourf(across, up, heights, levels, norm=norm, cmap=COLOUR_MAP)
    lines = axis.contour(across, up, heights, levels, colors="black", linewidths=0.4)
    readable = [patheffects.withStroke(linewidth=2, foreground="white")]
    for label in axis.clabel(lines, levels[2:-1:2], fontsize=6, fmt="%.3g"):
        label.set_path_effects(readable)
    figure.colorbar(filled, ax=axis, label=f"loss ({figures['unit']})", format="%.3g")
    for position, name in enumerate(figures["names"]):
        axis.plot(
            position, 0.0, **{**line_style(position), "color": "white"}, mec="black", zorder=5
        )
        axis.annotate(
            name,
            (position, 0.0),
            xytext=(4, 4),
            textcoords="offset points",
            fontsize=8,
            path_effects=readable,
        )
    axis.set_xlabel(surface["labels"][0])
    axis.set_ylabel(surface["labels"][1])
    axis.grid(False)


def contour_levels(losses: Sequence[Sequence[float]], count: int = 12) -> List[float]:
    """Returns levels that get farther apart with the square: a quadratic bowl's rings are even.

    >>> contour_levels([[1.0, 5.0]], count=2)
    [1.0, 2.0, 5.0]
    """
    finite = [loss for row in losses for loss in row if math.isfinite(loss)] or [0.0]
    span = max(finite) - min(finite) or 1e-3 * abs(finite[0]) or 1e-3
    return [min(finite) + span * (step / count) ** 2 for step in range(count + 1)]


def _draw_sharpness(axis: Any, figures: Mapping[str, Any]) -> None:
    for index, measured in enumerate(figures["m_sharpness"]):
        points = measured["radii"]
        axis.errorbar(
            [point["radius"] for point in points],
            [point["mean"] for point in points],
            yerr=error_bars([point["standard_error"] for point in points]),
            capsize=2,
            label=measured["name"],
            **line_style(index),
        )
    axis.set_xlabel("L2 radius ρ")
    axis.ticklabel_format(axis="both", scilimits=(-3, 3))
    axis.set_ylabel(f"{figures['m']}-sharpness\n({figures['unit']})")
    axis.legend()


def _numbers(values: Sequence[Any]) -> List[float]:
    return [math.nan if value is None else float(value) for value in values]
