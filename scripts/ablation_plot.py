#!/usr/bin/env python3
r"""Draws GA-SAM's hyper-parameters against the score, from the runs of scripts/ablation.sh.

Three panels: ascent steps K, and the radius under L∞ and under L2. What is drawn is the difference
to the baseline's mean, so that models of different quality compare: means over seeds, and their
standard deviations as bars. The scale is linear up to ±2 and logarithmic beyond.

Example:
    ablation_plot.py --runs ablation/textcnn/runs --metric Accuracy --paper textcnn_imdb_ablation \
        --out textcnn.png
"""

from __future__ import annotations

import argparse
import re
import statistics
import sys
from pathlib import Path
from typing import Any, Dict, List, Tuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from fairseq_sam.reporting.deviation import sample_deviation
from fairseq_sam.reporting.print_style import figure_file, line_style
from fairseq_sam.reporting.published import PUBLISHED
from fairseq_sam.reporting.scores import read_scores

Point = Tuple[float, float, float]
PANELS = (
    ("ascent steps K", r"ga_sam_k(\d)$", "linear"),
    ("radius under L∞", r"ga_sam@(.+)$", "log"),
    ("radius under L2", r"ga_sam_l2@(.+)$", "log"),
)


def measured(runs: Path, metric: str) -> Dict[str, List[float]]:
    """Returns the scores of each method, one a seed."""
    found: Dict[str, List[float]] = {}
    for directory in sorted(runs.glob("*/seed*")):
        scores = read_scores(directory)
        if metric in scores:
            found.setdefault(directory.parent.name, []).append(scores[metric].value)
    return found


def points(scores: Dict[str, List[float]], pattern: str) -> List[Point]:
    """Returns value, mean and standard deviation of the methods whose names a pattern fits."""
    chosen = []
    for name, values in scores.items():
        match = re.match(pattern, name)
        if match:
            deviation = sample_deviation(values)
            chosen.append((float(match.group(1)), statistics.fmean(values), deviation))
    return sorted(chosen)


def published(paper: str, metric: str) -> Dict[str, List[float]]:
    """Returns a paper's means as scores."""
    values = PUBLISHED[paper].metrics[metric]
    return {name: [float(text.split(" ± ")[0])] for name, text in values.items()}


def with_default(scores: Dict[str, List[float]], radius: str) -> Dict[str, List[float]]:
    """GA-SAM itself is K = 1 and one of the radii."""
    named = {"ga_sam_k1": scores.get("ga_sam", []), f"ga_sam@{radius}": scores.get("ga_sam", [])}
    return {**scores, **{name: values for name, values in named.items() if values}}


def short(number: float) -> str:
    """Writes 8e-05 as 8e-5, 0.05 as it is: ticks are close together."""
    if number >= 1e-3:
        return f"{number:g}"
    return f"{number:.1e}".replace(".0e", "e").replace("e-0", "e-")


def draw(
    axis: Any, sources: Dict[str, Dict[str, List[float]]], title: str, pattern: str, scale: str
) -> None:
    """Draws one panel: a line for each source that has a baseline."""
    ticks = set()
    for index, (label, scores) in enumerate(sources.items()):
        found = points(scores, pattern)
        if found and scores.get("baseline"):
            baseline = statistics.fmean(scores["baseline"])
            x, y, error = zip(*found)
            differences = [value - baseline for value in y]
            axis.errorbar(x, differences, yerr=error, label=label, capsize=2, **line_style(index))
            ticks.update(x)
    axis.axhline(0.0, color="black", linewidth=0.8)
    axis.set_xscale(scale)
    axis.set_yscale("symlog", linthresh=2)
    axis.set_xticks(sorted(ticks), map(short, sorted(ticks)))
    axis.yaxis.set_major_formatter("{x:g}")
    axis.minorticks_off()
    axis.margins(y=0.15)
    axis.set_xlabel(title)


def main() -> int:
    """Reads and draws."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=Path, required=True, help="folder of METHOD/seedN")
    parser.add_argument("--metric", required=True, help="as the report calls it")
    parser.add_argument("--radius", required=True, help="ga_sam's own")
    parser.add_argument("--paper", choices=sorted(PUBLISHED), help="draw its figures too")
    parser.add_argument("--out", type=Path, required=True, help="image to write")
    args = parser.parse_args()
    sources = {"measured": with_default(measured(args.runs, args.metric), args.radius)}
    if args.paper:
        sources["paper"] = with_default(published(args.paper, args.metric), args.radius)
    with figure_file(args.out, rows=len(PANELS)) as (_, axes):
        for axis, panel in zip(axes, PANELS):
            draw(axis, sources, *panel)
            axis.set_ylabel(f"{args.metric}\nminus the baseline's")
        axes[0].legend()
    return 0


if __name__ == "__main__":
    sys.exit(main())
