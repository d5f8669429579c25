"""Loss surfaces as a curve or as contours, and m-sharpness over the radius."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Dict, List, Mapping, Sequence

from fairseq_sam.reporting.print_style import (
    COLOUR_MAP,
    error_bars,
    figure_file,
    line_style,
    side_by_side,
    tick_values,
)


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
    # In black: a colour is a checkpoint's.
    axis.plot(coordinates, _numbers(surface["losses"]), color="black", marker=".")
    axis.set_xlabel(surface["labels"][0])
    axis.set_ylabel(f"loss ({figures['unit']})")
    _mark_checkpoints(axis, figures)


def _mark_checkpoints(axis: Any, figures: Mapping[str, Any]) -> None:
    for position, name in enumerate(figures["names"]):
        color = line_style(position)["color"]
        axis.axvline(position, color=color, linewidth=0.8)
        axis.annotate(
            name,
            (position, 1.0),
            xycoords=("data", "axes fraction"),
            xytext=(3, -3),
            textcoords="offset points",
            va="top",
            color=color,
            fontsize=8,
        )


def _draw_contours(figure: Any, axis: Any, figures: Mapping[str, Any]) -> None:
    from matplotlib import colors, patheffects

    surface = figures["surface"]
    across, up = surface["axes"]
    losses = [_numbers(row) for row in surface["losses"]]  # [across, up]
    heights = [list(column) for column in zip(*losses)]  # [up, across], as matplotlib wants it
    levels = contour_levels(losses, top=_highest_near(across, up, losses, figures["names"]))
    norm = colors.BoundaryNorm(levels, 256)
    filled = axis.contourf(across, up, heights, levels, norm=norm, cmap=COLOUR_MAP)
    lines = axis.contour(across, up, heights, levels, colors="black", linewidths=0.4)
    readable = [patheffects.withStroke(linewidth=2, foreground="white")]
    for label in axis.clabel(lines, levels[2::2], fontsize=6, fmt="%.3g"):
        label.set_path_effects(readable)
        label.set_visible(not _is_near_name(label, figures["names"], across, up))
    figure.colorbar(filled, ax=axis, label=f"loss ({figures['unit']})", format="%.3g")
    for position, name in enumerate(figures["names"]):
        axis.plot(position, 0.0, **line_style(position), markersize=7, mec="white", zorder=5)
        axis.annotate(
            name,
            (position, 0.0),
            xytext=(4, 4),
            textcoords="offset points",
            fontsize=8,
            bbox={"boxstyle": "round,pad=0.1", "facecolor": "white", "edgecolor": "none"},
            zorder=6,  # above the numbers of contours
        )
    axis.set_xlabel(surface["labels"][0])
    axis.set_ylabel(surface["labels"][1])
    axis.grid(False)


def _is_near_name(
    label: Any, names: Sequence[str], across: Sequence[float], up: Sequence[float]
) -> bool:
    """Tells whether a contour's number stands where a checkpoint's name will."""
    x, y = label.get_position()
    width, height = max(across) - min(across), max(up) - min(up)
    return any(
        -0.05 * width < x - position < 0.15 * width and abs(y) < 0.1 * height
        for position in range(len(names))
    )


def _highest_near(
    across: Sequence[float],
    up: Sequence[float],
    losses: Sequence[Sequence[float]],
    names: Sequence[str],
) -> float:
    """Returns the highest loss in the neighbourhood of the checkpoints.

    The neighbourhood reaches half as far as the plane. Most of the colours are for it: else a steep
    corner would take them, and the checkpoints would lie in one dark blue.
    """
    last = len(names) - 1
    reach, height = min(-min(across), max(across) - last) / 2, max(map(abs, up)) / 2
    near = [
        loss
        for x, row in zip(across, losses)
        for y, loss in zip(up, row)
        if -reach <= x <= last + reach and abs(y) <= height and math.isfinite(loss)
    ]
    return max(near, default=math.inf)


def contour_levels(
    losses: Sequence[Sequence[float]], count: int = 12, top: float = math.inf
) -> List[float]:
    """Returns levels that get farther apart with the square: a quadratic bowl's rings are even.

    Args:
        losses: on the plane; what is not finite does not count.
        count: of levels above the lowest loss.
        top: two thirds of the levels go up to here; the others do for whatever is higher.

    >>> contour_levels([[1.0, 5.0]], count=2)
    [1.0, 2.0, 5.0]
    >>> contour_levels([[1.0, 5.0, 105.0]], count=3, top=5.0)
    [1.0, 2.0, 5.0, 105.0]
    """
    finite = [loss for row in losses for loss in row if math.isfinite(loss)] or [0.0]
    low, high = min(finite), max(finite)
    if low < top < high:
        inside = round(count * 2 / 3)
        outside = count - inside
        near = [low + (top - low) * (step / inside) ** 2 for step in range(inside)]
        return [*near, *(top + (high - top) * (k / outside) ** 2 for k in range(outside + 1))]
    span = high - low or 1e-3 * abs(low) or 1e-3
    return [low + span * (step / count) ** 2 for step in range(count + 1)]


def _draw_sharpness(axis: Any, figures: Mapping[str, Any]) -> None:
    for index, measured in enumerate(figures["m_sharpness"]):
        points, count = measured["radii"], len(figures["m_sharpness"])
        axis.errorbar(
            side_by_side([point["radius"] for point in points], index, count),
            [point["mean"] for point in points],
            yerr=error_bars([point["standard_error"] for point in points]),
            capsize=2,
            label=measured["name"],
            **line_style(index),
        )
    tick_values(axis, [point["radius"] for point in figures["m_sharpness"][0]["radii"]])
    axis.set_xlabel("L2 radius ρ\nbars: standard errors over mini-batches (points moved apart)")
    axis.ticklabel_format(axis="y", scilimits=(-3, 3))
    axis.set_ylabel(f"{figures['m']}-sharpness\n({figures['unit']})")
    axis.legend()


def _numbers(values: Sequence[Any]) -> List[float]:
    return [math.nan if value is None else float(value) for value in values]
