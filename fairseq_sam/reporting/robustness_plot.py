"""Robustness against parameter corruption as curves: a panel a metric, a line a checkpoint."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Dict, List, Mapping, Sequence

from fairseq_sam.reporting.print_style import error_bars, figure_file, line_style, use_log_scale

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
    labels = metric_labels(list(figures["checkpoints"][0]["clean"]), figures["unit"])
    with figure_file(path, len(labels), height=2.0) as (_, axes):
        for axis, (metric, label) in zip(axes, labels.items()):
            for index, measured in enumerate(figures["checkpoints"]):
                _draw(axis, measured, metric, index)
            axis.set_ylabel(label)
            if metric == "ppl":
                use_log_scale(axis)
            axis.ticklabel_format(axis="x", scilimits=(-3, 3))
        axes[-1].set_xlabel(_NORMS[figures["norm"]])
        axes[0].set_title(f"{figures['corruption']} corruption, {figures['subset']}")
        axes[0].legend()


def _draw(axis: Any, measured: Mapping[str, Any], metric: str, index: int) -> None:
    points: List[Mapping[str, Any]] = [{"radius": 0.0, **_clean(measured)}, *measured["corrupted"]]
    points.sort(key=lambda point: point["radius"])
    axis.errorbar(
        [point["radius"] for point in points],
        [_number(point[metric]["mean"]) for point in points],
        yerr=error_bars([point[metric]["standard_error"] for point in points]),
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


def metric_labels(metrics: Sequence[str], unit: str) -> Dict[str, str]:
    """Returns the metrics' names for people, with their units.

    >>> metric_labels(["loss", "accuracy"], "nats per token")
    {'loss': 'loss (nats per token)', 'accuracy': 'accuracy (%)'}
    """
    known = {
        "loss": f"loss ({unit})",
        "ppl": "perplexity",
        "accuracy": "accuracy (%)",
        "bleu_tokenised": "BLEU (tokenised)",
    }
    return {metric: known.get(metric, metric) for metric in metrics}
