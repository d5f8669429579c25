#!/usr/bin/env python3
r"""Draws GA-SAM's hyper-parameters against the score, from the runs of scripts/ablation.sh.

Three panels: ascent steps K, and the radius under L∞ and under L2. What is drawn is the difference
to the baseline's mean, so that models of different quality compare: means over seeds, and their
standard deviations as bars, the paper's too. The scale is linear up to ±2 and logarithmic beyond.
Radii that are shares of the loss (ga_sam@5%) have no place on an axis of radii, and are left out.

Example:
    ablation_plot.py --runs ablation/textcnn/runs/*/seed* --metric Accuracy --radius 1e-4 \
        --paper textcnn_imdb_ablation --out textcnn.png
"""

from __future__ import annotations

import argparse
import re
import statistics
import sys
from pathlib import Path
from typing import Any, Dict, Iterable, List, NamedTuple, Tuple

from fairseq_sam.experiments.recipes import published
from fairseq_sam.reporting.numbers import sample_deviation
from fairseq_sam.reporting.print_style import figure_file, line_style, tick_values
from fairseq_sam.reporting.scores import read_scores

Point = Tuple[float, float, float]
LINEAR = 2
"""The scale is linear up to here."""
PANELS = (
    ("ascent steps K", r"ga_sam_k(\d)$", "linear"),
    ("radius under L∞", r"ga_sam@([^%]+)$", "log"),
    ("radius under L2", r"ga_sam_l2@([^%]+)$", "log"),
)


class Spread(NamedTuple):
    """A mean over seeds, and the standard deviation."""

    mean: float
    deviation: float


def measured(runs: Iterable[Path], metric: str) -> Dict[str, Spread]:
    """Returns the mean score of each method over its seeds."""
    found: Dict[str, List[float]] = {}
    for run in runs:
        scores = read_scores(run)
        if metric in scores:
            found.setdefault(run.absolute().parent.name, []).append(scores[metric].value)
    return {
        name: Spread(statistics.fmean(values), sample_deviation(values))
        for name, values in found.items()
    }


def points(scores: Dict[str, Spread], pattern: str) -> List[Point]:
    """Returns value, mean and standard deviation of the methods whose names a pattern fits."""
    chosen = []
    for name, spread in scores.items():
        match = re.match(pattern, name)
        if match:
            chosen.append((float(match.group(1)), *spread))
    return sorted(chosen)


def in_paper(paper: str, metric: str) -> Dict[str, Spread]:
    """Returns a paper's means and standard deviations."""
    found = {}
    for name, text in published()[paper].metrics[metric].items():
        mean, _, deviation = text.partition(" ± ")
        found[name] = Spread(float(mean), float(deviation or 0))
    return found


def with_default(scores: Dict[str, Spread], radius: str) -> Dict[str, Spread]:
    """GA-SAM itself is K = 1 and one of the radii."""
    if "ga_sam" not in scores:
        return scores
    return {**scores, "ga_sam_k1": scores["ga_sam"], f"ga_sam@{radius}": scores["ga_sam"]}


def tick_differences(axis: Any) -> None:
    """Numbers 1, 2 and 5 times powers of ten on both sides of 0; a narrow range evenly."""
    low, high = axis.get_ylim()
    if max(-low, high) <= LINEAR:
        axis.set_yscale("linear")
        return
    sizes = [size * 10**power for power in range(4) for size in (1, 2, 5)]
    places = [0, *sizes, *(-size for size in sizes)]
    axis.set_yticks(sorted(place for place in places if low <= place <= high))
    axis.yaxis.set_major_formatter("{x:g}")


def draw(
    axis: Any, sources: Dict[str, Dict[str, Spread]], title: str, pattern: str, scale: str
) -> None:
    """Draws one panel: a line for each source that has a baseline."""
    ticks = set()
    for index, (label, scores) in enumerate(sources.items()):
        found = points(scores, pattern)
        if found and "baseline" in scores:
            baseline = scores["baseline"].mean
            x, y, error = zip(*found)
            differences = [value - baseline for value in y]
            axis.errorbar(x, differences, yerr=error, label=label, capsize=2, **line_style(index))
            ticks.update(x)
    axis.axhline(0.0, color="black", linewidth=0.8)
    axis.set_xscale(scale)
    axis.set_yscale("symlog", linthresh=LINEAR)
    axis.margins(y=0.15)
    axis.autoscale_view()
    tick_differences(axis)
    tick_values(axis, ticks)
    axis.set_xlabel(title)


def main() -> int:
    """Reads and draws."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--runs", type=Path, required=True, nargs="+", metavar="RUN", help="folders METHOD/seedN"
    )
    parser.add_argument("--metric", required=True, help="as the report calls it")
    parser.add_argument("--radius", required=True, help="ga_sam's own")
    parser.add_argument("--paper", choices=sorted(published()), help="draw its figures too")
    parser.add_argument("--out", type=Path, required=True, help="image to write")
    args = parser.parse_args()
    sources = {"measured": with_default(measured(args.runs, args.metric), args.radius)}
    if args.paper:
        sources["paper"] = with_default(in_paper(args.paper, args.metric), args.radius)
    with figure_file(args.out, rows=len(PANELS)) as (_, axes):
        for axis, panel in zip(axes, PANELS):
            draw(axis, sources, *panel)
            axis.set_ylabel(f"{args.metric}\nminus the baseline's")
        if axes[0].containers:
            axes[0].legend(title="mean ± standard deviation over seeds", title_fontsize="small")
    return 0


if __name__ == "__main__":
    sys.exit(main())
