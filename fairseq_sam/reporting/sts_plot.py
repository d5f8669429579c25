"""Textual similarity of checkpoints: a column a set, a marker a checkpoint."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Mapping

from fairseq_sam.reporting.print_style import figure_file, line_style


def write_sts_plot(figures: Mapping[str, Any], path: Path) -> None:
    """Draws what ``fairseq-sam sts --json`` writes: each set's correlation over all its pairs.

    Args:
        figures: that content.
        path: the image.

    Raises:
        ImportError: matplotlib is missing.
        OSError: it cannot be written.
    """
    checkpoints = figures["checkpoints"]
    columns = list(checkpoints[0]["sets"])
    ends_with_average = len(columns) > 1
    width = 2.5 + 0.7 * (len(columns) + ends_with_average)
    with figure_file(path, 1, 1, width=width, height=3.2) as (figure, (axis,)):
        for row, each in enumerate(checkpoints):
            values = [each["sets"][name]["all"] for name in columns]
            if ends_with_average:
                values.append(each["average"])
            # Side by side, for those of two checkpoints are often as good as the same.
            shift = 0.1 * (row - (len(checkpoints) - 1) / 2)
            places = [column + shift for column in range(len(values))]
            heights = [math.nan if value is None else value for value in values]
            style = {**line_style(row), "linestyle": "none"}
            axis.plot(places, heights, markersize=6, label=each["name"], **style)
        labels = [*columns, "average"] if ends_with_average else columns
        axis.set_xticks(range(len(labels)), labels, rotation=30, ha="right")
        axis.set_xlim(-0.5, len(labels) - 0.5)
        axis.set_ylabel("Spearman's ρ (per cent)")
        axis.legend()
        figure.suptitle("semantic textual similarity", fontsize="medium")
