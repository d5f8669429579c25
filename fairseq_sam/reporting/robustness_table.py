"""Robustness against parameter corruption as Markdown, laid out as GA-SAM's Table 4."""

from __future__ import annotations

from typing import Any, List, Mapping, Optional, Sequence

from fairseq_sam.reporting.numbers import sentences_told_apart
from fairseq_sam.reporting.robustness_plot import metric_labels

_NORMS = {"l2": "L2", "linf": "L∞"}
_NO_VALUE = "–"
"""Stands for what a checkpoint's criterion does not report."""


def robustness_tables(figures: Mapping[str, Any]) -> str:
    """Formats what ``fairseq-sam robustness --json`` writes: a table a metric.

    A row is a radius, a column a checkpoint, a cell the score and in parentheses its difference to
    the one without corruption; standard errors over draws where there are several.
    """
    checkpoints = figures["checkpoints"]
    about = f"{figures['subset']}: {sentences_told_apart(checkpoints)}, {figures['criterion']}"
    lines = [f"{about}, {_described(figures)}"]
    for metric, label in metric_labels(checkpoints, figures["unit"]).items():
        digits = 4 if metric == "loss" else 2
        header = [f"{_NORMS[figures['norm']]} radius", *(each["name"] for each in checkpoints)]
        clean = [_clean(each, metric, digits) for each in checkpoints]
        lines += ["", f"{label}:", "", _row(header), _row(["---:"] * len(header))]
        lines.append(_row(["none", *clean]))
        for index, point in enumerate(checkpoints[0]["corrupted"]):
            cells = [_cell(each, index, metric, digits) for each in checkpoints]
            lines.append(_row([f"{point['radius']:g}", *cells]))
    return "\n".join(lines) + "\n"


def _described(figures: Mapping[str, Any]) -> str:
    if figures["corruption"] == "random" and figures["draws"] == 1:
        return "one random corruption"
    if figures["corruption"] == "random":
        return f"random corruption, mean ± standard error of {figures['draws']} draws"
    return f"adversarial corruption in {figures['steps']} steps"


def _clean(checkpoint: Mapping[str, Any], metric: str, digits: int) -> str:
    scores = checkpoint["clean"]
    return _number(scores[metric], digits) if metric in scores else _NO_VALUE


def _cell(checkpoint: Mapping[str, Any], index: int, metric: str, digits: int) -> str:
    if metric not in checkpoint["clean"]:
        return _NO_VALUE
    found = checkpoint["corrupted"][index][metric]
    clean, mean, error = checkpoint["clean"][metric], found["mean"], found["standard_error"]
    text = _number(mean, digits)
    if error is not None:
        text += f" ± {error:.{digits}f}"
    if clean is not None and mean is not None:
        text += f" ({mean - clean:+.{digits}f})"
    return text


def _number(value: Optional[float], digits: int) -> str:
    return "inf" if value is None else f"{value:.{digits}f}"


def _row(cells: Sequence[str]) -> str:
    escaped: List[str] = [cell.replace("|", "\\|") for cell in cells]
    return "| " + " | ".join(escaped) + " |"
