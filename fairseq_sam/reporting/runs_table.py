"""Runs side by side as a Markdown table."""

from __future__ import annotations

import math
import statistics
from typing import Callable, Dict, List, NamedTuple, Optional, Sequence

from fairseq_sam.reporting.numbers import mean_of, sample_deviation
from fairseq_sam.reporting.runs import Run, group_runs
from fairseq_sam.reporting.scores import TOKENISED_BLEU, Published

_LEADING_METRICS = ("BLEU", "chrF2", TOKENISED_BLEU)
_NO_VALUE = "–"


SUMMARIES = ("mean-std", "best-median")
_LESS_IS_MORE = ("Perplexity", "NLL", "ECE")
_PERCENT = ("Accuracy", "Token accuracy", "F1")
_OF_VALIDATION = "valid "
_FINE = ("NLL", "Entropy", "length ratio")
_HUNDRED = ("BLEU", "chrF", "ROUGE", "Matthews", "Pearson", "Spearman", "STS", "SICK")
"""What the names of metrics begin with whose best value is 100."""
_BLEU_OF_CHANCE = 1.0


def markdown_table(
    runs: Sequence[Run],
    group_by: Optional[str] = None,
    published: Optional[Published] = None,
    summary: str = "mean-std",
    paper_remark: str = "",
    metrics: Optional[Sequence[str]] = None,
) -> str:
    """Formats runs as a table, with sacrebleu's signatures below it.

    Args:
        runs: in the order of the rows.
        group_by: as for :func:`~fairseq_sam.reporting.runs.group_runs`. Runs of a group share a
            row: mean ± sample standard deviation, and the median of p-values.
        published: a paper's results, shown next to each metric and run that it has, and only there.
            Its metrics come in its order, before others.
        summary: what stands for the scores of several runs: ``mean-std``, or ``best-median``.
        paper_remark: what is to be said of the comparison, in the header of the paper's figures.
        metrics: only these, in this order.

    Returns:
        Markdown. Columns without any value are left out.
    """
    groups = group_runs(runs, group_by)
    spread = ", mean ± std" if any(len(members) > 1 for members in groups.values()) else ""
    columns = _columns(runs, published, summary, spread, paper_remark, metrics)
    columns = [column for column in columns if any(column.cell(*g) for g in groups.items())]
    header = ["run", *(["runs"] if group_by else []), *(column.title for column in columns)]
    rows = []
    for name, members in groups.items():
        cells = [name, *([str(len(members))] if group_by else [])]
        rows.append([*cells, *(column.cell(name, members) or _NO_VALUE for column in columns)])
    lines = [_row(header), _row(["---", *["---:"] * (len(header) - 1)]), *map(_row, rows)]
    notes = _notes(runs, published, [column.title for column in columns])
    return "\n".join([*lines, *notes]) + "\n"


class _Column(NamedTuple):
    """A title, and the text for a row's name and runs ("" for nothing)."""

    title: str
    cell: Callable[[str, Sequence[Run]], str]


def _columns(
    runs: Sequence[Run],
    published: Optional[Published],
    summary: str,
    spread: str,
    paper_remark: str,
    wanted: Optional[Sequence[str]] = None,
) -> List[_Column]:
    """Returns every column that a table may have."""
    found = {metric for run in runs for metric in run.scores}
    metrics = [m for m in _LEADING_METRICS if m in found]
    if published:
        metrics += [m for m in published.metrics if m in found and m not in metrics]
    metrics += sorted(found - set(metrics))
    if wanted is not None:
        metrics = [metric for metric in wanted if metric in found]
    columns: List[_Column] = []
    for metric in metrics:
        if summary == "best-median":
            columns.append(_best_median_column(metric, _score_of(metric)))
        else:
            digits = 3 if metric.endswith(_FINE) else 2
            columns.append(_mean_column(metric_title(metric) + spread, digits, _score_of(metric)))
        if published and metric in published.metrics:
            title = f"{metric} in the paper" + (f" ({paper_remark})" if paper_remark else "")
            columns.append(_Column(title, _published_cell(published.metrics[metric])))
        columns.append(_Column(f"p: {metric} differs from baseline's", _p_value_cell(metric)))
    clean, perturbed = "training s/epoch", "training s/epoch, perturbed"
    return [
        *columns,
        _mean_column(f"lowest valid loss (bits) ↓{spread}", 3, Run.best_valid_loss),
        _mean_column(clean + spread, 1, lambda run: run.seconds_per_epoch(perturbed=False)),
        _mean_column(perturbed + spread, 1, lambda run: run.seconds_per_epoch(perturbed=True)),
    ]


def metric_title(metric: str) -> str:
    """Returns a metric's name with its unit, and an arrow to its better side where that is known.

    >>> metric_title("Accuracy"), metric_title("BLEU"), metric_title("Perplexity")
    ('Accuracy (%) ↑', 'BLEU (of 100) ↑', 'Perplexity ↓')
    """
    if metric.startswith(_OF_VALIDATION):
        return _OF_VALIDATION + metric_title(metric[len(_OF_VALIDATION) :])
    if metric in _LESS_IS_MORE:
        return f"{metric} ↓"
    if metric in _PERCENT:
        return f"{metric} (%) ↑"
    return f"{metric} (of 100) ↑" if metric.startswith(_HUNDRED) else metric


def _mean_column(title: str, digits: int, value: Callable[[Run], Optional[float]]) -> _Column:
    return _Column(title, lambda name, runs: _mean([value(run) for run in runs], digits))


def _best_median_column(metric: str, value: Callable[[Run], Optional[float]]) -> _Column:
    sign = 1 if metric_title(metric).endswith("↓") else -1

    def cell(name: str, runs: Sequence[Run]) -> str:
        known = [v for v in map(value, runs) if v is not None]
        if not known:
            return ""
        costs = [sign * v if math.isfinite(v) else math.inf for v in known]
        found = (min(costs), statistics.median(costs))
        return " / ".join(f"{sign * c:.2f}" if c < math.inf else "nan" for c in found)

    return _Column(f"{metric_title(metric)}, best / median", cell)


def _published_cell(values: Dict[str, str]) -> Callable[[str, Sequence[Run]], str]:
    return lambda name, runs: values.get(name, "")


def _p_value_cell(metric: str) -> Callable[[str, Sequence[Run]], str]:
    def cell(name: str, runs: Sequence[Run]) -> str:
        scored = [run for run in runs if metric in run.scores and not _is_of_chance(run, metric)]
        p_values = [run.scores[metric].p_value for run in scored]
        values = [p for p in p_values if p is not None]
        return f"{statistics.median(values):.3f}" if values else ""

    return cell


def _is_of_chance(run: Run, metric: str) -> bool:
    """Returns whether a score is one that no learning is needed for: its p-value tells nothing.

    A translation without a BLEU of 1 has hardly a phrase in common with the reference, so that what
    its chrF has is letters.
    """
    score, bleu = run.scores[metric], run.scores.get("BLEU")
    if metric.startswith(("BLEU", "chrF")):
        return (bleu or score).value < _BLEU_OF_CHANCE
    return score.chance is not None and score.value <= score.chance


def _score_of(metric: str) -> Callable[[Run], Optional[float]]:
    return lambda run: run.scores[metric].value if metric in run.scores else None


def _mean(values: Sequence[Optional[float]], digits: int) -> str:
    known = [value for value in values if value is not None]
    if not known:
        return ""
    mean = f"{mean_of(known):.{digits}f}"
    return mean if len(known) == 1 else f"{mean} ± {sample_deviation(known):.{digits}f}"


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _notes(runs: Sequence[Run], published: Optional[Published], titles: Sequence[str]) -> List[str]:
    signatures = {
        (metric, score.signature)
        for run in runs
        for metric, score in run.scores.items()
        if score.signature
    }
    notes = [f"- {metric}: `{signature}`" for metric, signature in sorted(signatures)]
    if any(score.p_value is not None for run in runs for score in run.scores.values()):
        notes.append(
            "- p: of a difference at least as large between equally good systems, by paired "
            "bootstrap over sentences against the same seed's baseline; over several seeds the "
            "median. It says nothing of other seeds, and is left out where a score is that of "
            "chance (a BLEU below 1, the accuracy of the commonest class)"
        )
    if published is not None and any(" in the paper" in title for title in titles):
        notes.append(f"- paper: {published.source}")
    if any("↑" in title or "↓" in title for title in titles):
        notes.append("- ↑ higher is better, ↓ lower is better; std is the sample's, over runs")
    if any(title.startswith("training s/epoch") for title in titles):
        notes.append("- training s/epoch: seconds, without validation")
    return ["", *notes] if notes else []
