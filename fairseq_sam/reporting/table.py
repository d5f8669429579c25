"""Runs side by side as a Markdown table."""

from __future__ import annotations

import statistics
from typing import Callable, Dict, List, NamedTuple, Optional, Sequence

from fairseq_sam.reporting.deviation import mean_of, sample_deviation
from fairseq_sam.reporting.published import Published
from fairseq_sam.reporting.runs import Run, group_runs
from fairseq_sam.reporting.scores import TOKENISED_BLEU

_LEADING_METRICS = ("BLEU", "chrF2", TOKENISED_BLEU)
_NO_VALUE = "–"


SUMMARIES = ("mean-std", "best-median")
_LESS_IS_MORE = ("Perplexity",)


def markdown_table(
    runs: Sequence[Run],
    group_by: Optional[str] = None,
    published: Optional[Published] = None,
    summary: str = "mean-std",
) -> str:
    """Formats runs as a table, with sacrebleu's signatures below it.

    Args:
        runs: in the order of the rows.
        group_by: as for :func:`~fairseq_sam.reporting.runs.group_runs`. Runs of a group share a
            row: mean ± sample standard deviation, and the median of p-values.
        published: a paper's results; beside each metric that it has, and its other rows below.
            Its metrics come in its order, before others.
        summary: what stands for the scores of several runs: ``mean-std``, or ``best-median``.

    Returns:
        Markdown. Columns without any value are left out.
    """
    groups = group_runs(runs, group_by)
    if published is not None:
        for name in (name for values in published.metrics.values() for name in values):
            groups.setdefault(name, [])
    columns = [
        c for c in _columns(runs, published, summary) if any(c.cell(*g) for g in groups.items())
    ]
    header = ["run", *(["runs"] if group_by else []), *(column.title for column in columns)]
    rows = []
    for name, members in groups.items():
        cells = [name, *([str(len(members))] if group_by else [])]
        rows.append([*cells, *(column.cell(name, members) or _NO_VALUE for column in columns)])
    lines = [_row(header), _row(["---", *["---:"] * (len(header) - 1)]), *map(_row, rows)]
    return "\n".join([*lines, *_notes(runs, published)]) + "\n"


class _Column(NamedTuple):
    """A title, and the text for a row's name and runs ("" for nothing)."""

    title: str
    cell: Callable[[str, Sequence[Run]], str]


def _columns(runs: Sequence[Run], published: Optional[Published], summary: str) -> List[_Column]:
    """Returns every column that a table may have."""
    found = {metric for run in runs for metric in run.scores}
    found |= set(published.metrics) if published else set()
    metrics = [m for m in _LEADING_METRICS if m in found]
    if published:
        metrics += [m for m in published.metrics if m not in metrics]
    metrics += sorted(found - set(metrics))
    columns: List[_Column] = []
    for metric in metrics:
        if summary == "best-median":
            columns.append(_best_median_column(metric, _score_of(metric)))
        else:
            columns.append(_mean_column(metric, 2, _score_of(metric)))
        if published and metric in published.metrics:
            title = "paper" if any(metric in run.scores for run in runs) else f"{metric}, paper"
            columns.append(_Column(title, _published_cell(published.metrics[metric])))
        columns.append(_Column("p", _p_value_cell(metric)))
    return [
        *columns,
        _mean_column("best valid loss (bits)", 3, Run.best_valid_loss),
        _mean_column("s/epoch", 1, lambda run: run.seconds_per_epoch(perturbed=False)),
        _mean_column("s/epoch perturbed", 1, lambda run: run.seconds_per_epoch(perturbed=True)),
    ]


def _mean_column(title: str, digits: int, value: Callable[[Run], Optional[float]]) -> _Column:
    return _Column(title, lambda name, runs: _mean([value(run) for run in runs], digits))


def _best_median_column(metric: str, value: Callable[[Run], Optional[float]]) -> _Column:
    best = min if metric in _LESS_IS_MORE else max

    def cell(name: str, runs: Sequence[Run]) -> str:
        known = [v for v in map(value, runs) if v is not None]
        return f"{best(known):.2f} / {statistics.median(known):.2f}" if known else ""

    return _Column(f"{metric}, best / median", cell)


def _published_cell(values: Dict[str, str]) -> Callable[[str, Sequence[Run]], str]:
    return lambda name, runs: values.get(name, "")


def _p_value_cell(metric: str) -> Callable[[str, Sequence[Run]], str]:
    def cell(name: str, runs: Sequence[Run]) -> str:
        scores = [run.scores[metric].p_value for run in runs if metric in run.scores]
        values = [p for p in scores if p is not None]
        return f"{statistics.median(values):.3f}" if values else ""

    return cell


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


def _notes(runs: Sequence[Run], published: Optional[Published]) -> List[str]:
    signatures = {
        (metric, score.signature)
        for run in runs
        for metric, score in run.scores.items()
        if score.signature
    }
    notes = [f"- {metric}: `{signature}`" for metric, signature in sorted(signatures)]
    if any(score.p_value is not None for run in runs for score in run.scores.values()):
        notes.append(
            "- p: paired bootstrap over sentences against the same seed's baseline; over several "
            "seeds the median"
        )
    if published is not None:
        notes.append(f"- paper: {published.source}")
    return ["", *notes] if notes else []
