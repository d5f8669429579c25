"""Robustness against parameter corruption as curves: a panel a metric, a line a checkpoint."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Dict, List, Mapping, Sequence

from fairseq_sam.reporting.print_style import (
    error_bars,
    figure_file,
    line_style,
    side_by_side,
    tick_values,
    use_log_scale,
)

_NORMS = {"l2": "L2 radius of the corruption", "linf": "L∞ radius of the corruption"}


def write_robustness_plot(figures: Mapping[str, Any], path: Path) -> None:
    """Draws what ``fairseq-sam robustness --json`` writes.

    Bars are standard errors over draws, where there are several. The axis of the perplexity, which
    is an exponential of the loss, is logarithmic.

    Args:
        figures: that content.
        path: the image.

    Raises:
        OSError: it cannot be written.
    """
    labels = metric_labels(figures["checkpoints"], figures["unit"])
    with figure_file(path, len(labels), height=2.0) as (_, axes):
        for axis, (metric, label) in zip(axes, labels.items()):
            for index, measured in enumerate(figures["checkpoints"]):
                if metric in measured["clean"]:
                    _draw(axis, measured, metric, index, len(figures["checkpoints"]))
            axis.set_ylabel(label)
            if metric == "ppl":
                use_log_scale(axis)
            tick_values(axis, [0.0, *_radii(figures)])
        axes[-1].set_xlabel(_NORMS[figures["norm"]] + _bars(figures))
        axes[0].set_title(f"{figures['corruption']} corruption, {figures['subset']}")
        axes[0].legend()


def _radii(figures: Mapping[str, Any]) -> List[float]:
    return [point["radius"] for point in figures["checkpoints"][0]["corrupted"]]


def _bars(figures: Mapping[str, Any]) -> str:
    """Returns what to say of the bars, if there are any."""
    draws = figures.get("draws", 1)
    if figures["corruption"] != "random" or draws == 1:
        return ""
    return f"\nbars: standard errors over {draws} draws (points moved apart)"


def _draw(axis: Any, measured: Mapping[str, Any], metric: str, index: int, count: int) -> None:
    points: List[Mapping[str, Any]] = [{"radius": 0.0, **_clean(measured)}, *measured["corrupted"]]
    points.sort(key=lambda point: point["radius"])
    radii, errors = (
        [point["radius"] for point in points],
        error_bars([point[metric]["standard_error"] for point in points]),
    )
    axis.errorbar(
        side_by_side(radii, index, count) if errors else radii,
        [_number(point[metric]["mean"]) for point in points],
        yerr=errors,
        capsize=2,
        label=measured["name"],
        **line_style(index),
    )


def _clean(measured: Mapping[str, Any]) -> Dict[str, Any]:
    return {
        metric: {"mean": value, "standard_error": None}
        for metric, value in measured["clean"].items()
    }


def _number(value: Any) -> float:
    return math.nan if value is None else float(value)


def metric_labels(checkpoints: Sequence[Mapping[str, Any]], unit: str) -> Dict[str, str]:
    """Returns the metrics that any checkpoint has, and their names for people, with their units.

    >>> metric_labels([{"clean": {"loss": 1}}, {"clean": {"accuracy": 2}}], "nats per token")
    {'loss': 'loss (nats per token)', 'accuracy': 'accuracy (%)'}
    """
    metrics = dict.fromkeys(metric for each in checkpoints for metric in each["clean"])
    known = {
        "loss": f"loss ({unit})",
        "ppl": "perplexity",
        "accuracy": "accuracy (%)",
        "bleu_tokenised": "BLEU (tokenised)",
    }
    return {metric: known.get(metric, metric) for metric in metrics}
