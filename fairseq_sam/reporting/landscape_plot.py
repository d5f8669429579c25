"""Loss surfaces as a curve or as contours, and m-sharpness over the radius."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, List, Mapping, Sequence

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
    with figure_file(path, len(parts), height=4.2 if flat else 2.8) as (figure, axes):
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
    from matplotlib import patheffects

    surface = figures["surface"]
    across, up = surface["axes"]
    losses = [_numbers(row) for row in surface["losses"]]  # [across, up]
    heights = [list(column) for column in zip(*losses)]  # [up, across], as matplotlib wants it
    filled = axis.contourf(across, up, heights, levels=15, cmap=COLOUR_MAP)
    lines = axis.contour(across, up, heights, levels=filled.levels, colors="black", linewidths=0.4)
    readable = [patheffects.withStroke(linewidth=2, foreground="white")]
    for label in axis.clabel(lines, lines.levels[::2], fontsize=6):
        label.set_path_effects(readable)
    figure.colorbar(filled, ax=axis, label=f"loss ({figures['unit']})")
    for position, name in enumerate(figures["names"]):
        axis.plot(position, 0.0, **{**line_style(position), "color": "white"}, mec="black")
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
