"""What a search has found, as figures, as a Markdown table and as JSON."""

from __future__ import annotations

import math
import statistics
from dataclasses import asdict, dataclass
from typing import Any, Dict, List, Mapping, Optional, Sequence, Union

from fairseq_sam.experiments.search.strategy import BASELINE, best_radius
from fairseq_sam.experiments.search.training_command import TrainingCommand
from fairseq_sam.experiments.search.trials import FINISHED, Result, Trial


@dataclass(frozen=True)
class Row:
    """What is known of one radius.

    Attributes:
        rho: the radius, 0 for the baseline.
        values: the metric of each seed that finished.
        results: how each seed ended.
    """

    rho: float
    values: Sequence[float]
    results: Sequence[Result]

    @property
    def mean(self) -> Optional[float]:
        """The mean over seeds; None unless all of them finished."""
        complete = len(self.values) == len(self.results) > 0
        return statistics.fmean(self.values) if complete else None

    @property
    def deviation(self) -> Optional[float]:
        """The sample standard deviation over seeds; None without a mean or with one seed."""
        several = self.mean is not None and len(self.values) > 1
        return statistics.stdev(self.values) if several else None

    def cost(self, maximise: bool) -> float:
        """The mean with the sign that makes less better; infinite if there is none."""
        if self.mean is None:
            return math.inf
        return -self.mean if maximise else self.mean


@dataclass(frozen=True)
class Summary:
    """What is known of all radii.

    Attributes:
        command: what was trained.
        rows: by radius, the baseline first.
        remark: what the strategy has to say, "" if nothing.
    """

    command: TrainingCommand
    rows: Sequence[Row]
    remark: str

    @property
    def best(self) -> Optional[Row]:
        """The row of the best radius above 0."""
        rho = best_radius({row.rho: row.cost(self.command.maximise) for row in self.rows})
        return next((row for row in self.rows if row.rho == rho), None)

    @property
    def baseline(self) -> Optional[Row]:
        """The row of the run without perturbation."""
        return next((row for row in self.rows if row.rho == BASELINE), None)

    @property
    def verdict(self) -> str:
        """What to do, in a line."""
        best, maximise = self.best, self.command.maximise
        if best is None:
            return "no radius finished; nothing is better than --sam-rho 0 here"
        radius = self.command.radius(best.rho)
        text = f"best: --sam-rho {radius} ({self.command.metric} {best.mean:.5g}"
        if self.baseline is None or self.baseline.mean is None:
            return f"{text})"
        text += f", without perturbation {self.baseline.mean:.5g})"
        if best.cost(maximise) >= self.baseline.cost(maximise):
            text += "; that is no better than --sam-rho 0"
        return text


def rows_of(results: Mapping[Trial, Result]) -> List[Row]:
    """Groups results by radius."""
    rows = []
    for rho in sorted({trial.rho for trial in results}):
        members = [result for trial, result in results.items() if trial.rho == rho]
        values = [r.value for r in members if r.status == FINISHED and r.value is not None]
        rows.append(Row(rho, values, members))
    return rows


def markdown(summary: Summary) -> str:
    """Formats a table, and the verdict below it."""
    metric = summary.command.metric
    lines = [
        f"| --sam-rho | {metric} ({summary.command.subset}) | minus baseline | updates | ended |",
        "| ---: | ---: | ---: | ---: | --- |",
    ]
    lines += [_line(row, summary) for row in summary.rows]
    notes = [summary.verdict, *([summary.remark] if summary.remark else [])]
    return "\n".join([*lines, "", *(f"- {note}" for note in notes)]) + "\n"


def _line(row: Row, summary: Summary) -> str:
    value = difference = "–"
    if row.mean is not None:
        value = f"{row.mean:.5g}"
        if row.deviation is not None:
            value += f" ± {row.deviation:.2g}"
        if row.rho != BASELINE and summary.baseline and summary.baseline.mean is not None:
            difference = f"{row.mean - summary.baseline.mean:+.3g}"
    if row is summary.best:
        value = f"**{value}**"
    updates = max(result.updates for result in row.results)
    ended = "; ".join(_ending(result) for result in row.results)
    ended = FINISHED if row.mean is not None else ended
    name = summary.command.radius(row.rho) + (" (baseline)" if row.rho == BASELINE else "")
    return f"| {name} | {value} | {difference} | {updates} | {ended.replace('|', '/')} |"


def _ending(result: Result) -> str:
    return result.status + (f": {result.reason}" if result.reason else "")


def _radius(rho: float, summary: Summary) -> Union[float, str]:
    """Returns a number, or a share as text: what ``--sam-rho`` takes."""
    return summary.command.radius(rho) if summary.command.shares else rho


def as_json(summary: Summary) -> Dict[str, Any]:
    """Returns everything as JSON types."""
    best, baseline = summary.best, summary.baseline
    return {
        "metric": summary.command.metric,
        "subset": summary.command.subset,
        "maximise": summary.command.maximise,
        "rho": _radius(best.rho, summary) if best else None,
        "value": best.mean if best else None,
        "baseline": baseline.mean if baseline else None,
        "remark": summary.remark,
        "command": ["fairseq-train", *summary.command.with_radius(best.rho)] if best else None,
        "radii": [
            {
                "rho": _radius(row.rho, summary),
                "mean": row.mean,
                "standard_deviation": row.deviation,
                "runs": [asdict(result) for result in row.results],
            }
            for row in summary.rows
        ],
    }
