"""Quality against cost: what each method changes in a metric, by its training time."""

from __future__ import annotations

from pathlib import Path
from typing import Optional, Sequence

from fairseq_sam.reporting.comparison import differences, relative_times
from fairseq_sam.reporting.print_style import figure_file, line_style
from fairseq_sam.reporting.runs import Run


def write_cost_plot(
    runs: Sequence[Run],
    group_by: str,
    against: str,
    metric: str,
    path: Path,
    title: Optional[str] = None,
) -> None:
    """Draws the mean difference from a method, with its 95 % interval, by relative training time.

    Args:
        runs: as for :func:`~fairseq_sam.reporting.comparison.differences`.
        group_by: as there.
        against: as there; its time is 1.
        metric: as there.
        path: the image.
        title: heading.
    """
    found = differences(runs, group_by, against, metric)
    times = relative_times(runs, group_by, against)
    with figure_file(path, 1, width=7, height=4.5) as (figure, (axis,)):
        axis.axhline(0, color="0.4", linestyle="--", linewidth=1)
        axis.plot(1, 0, marker="*", color="black", markersize=9, linestyle="none", label=against)
        for index, name in enumerate(name for name in found if name in times):
            difference = found[name]
            reach = 0.0 if difference.high is None else difference.high - difference.mean
            style = {**line_style(index), "linestyle": "none", "label": name}
            axis.errorbar(times[name], difference.mean, yerr=reach, capsize=2, **style)
        axis.set_xlabel(f"training time ({against} = 1)")
        axis.set_ylabel(f"{metric} minus {against}'s\n(mean and 95 % interval)")
        axis.legend(fontsize="small", loc="center left", bbox_to_anchor=(1.0, 0.5))
        if title:
            figure.suptitle(title)
