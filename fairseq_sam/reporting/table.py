"""Runs side by side as a Markdown table."""

from __future__ import annotations

import re
import statistics
from typing import Callable, Dict, List, Optional, Sequence, Tuple

from fairseq_sam.reporting.runs import Run
from fairseq_sam.reporting.scores import TOKENISED_BLEU

_LEADING_METRICS = ("BLEU", "chrF2", TOKENISED_BLEU)
_NO_VALUE = "–"


def markdown_table(runs: Sequence[Run], group_by: Optional[str] = None) -> str:
    """Formats runs as a table, with sacrebleu's signatures below it.

    Args:
        runs: in the order of the rows.
        group_by: a regular expression (of the seed in a name, for instance). Runs whose names are
            equal once its match is cut out share a row: mean ± sample standard deviation.

    Returns:
        Markdown. Columns without any value are left out.
    """
    groups = _group(runs, group_by)
    columns = [c for c in _columns(runs) if any(c[2](run) is not None for run in runs)]
    header = ["run", *(["runs"] if group_by else []), *(title for title, _, _ in columns)]
    rows = []
    for name, members in groups.items():
        cells = [name, *([str(len(members))] if group_by else [])]
        cells += [_cell([value(run) for run in members], digits) for _, digits, value in columns]
        rows.append(cells)
    lines = [_row(header), _row(["---", *["---:"] * (len(header) - 1)]), *map(_row, rows)]
    return "\n".join([*lines, *_signatures(runs)]) + "\n"


_Column = Tuple[str, int, Callable[[Run], Optional[float]]]


def _columns(runs: Sequence[Run]) -> List[_Column]:
    """Returns (title, digits, value of a run) for every column that a table may have."""
    found = {metric for run in runs for metric in run.scores}
    metrics = [m for m in _LEADING_METRICS if m in found]
    metrics += sorted(found - set(metrics))
    columns: List[_Column] = [(metric, 2, _score_of(metric)) for metric in metrics]
    columns += [
        ("best valid loss (bits)", 3, Run.best_valid_loss),
        ("s/epoch", 1, lambda run: run.seconds_per_epoch(perturbed=False)),
        ("s/epoch perturbed", 1, lambda run: run.seconds_per_epoch(perturbed=True)),
    ]
    return columns


def _score_of(metric: str) -> Callable[[Run], Optional[float]]:
    return lambda run: run.scores[metric].value if metric in run.scores else None


def _group(runs: Sequence[Run], group_by: Optional[str]) -> Dict[str, List[Run]]:
    groups: Dict[str, List[Run]] = {}
    for run in runs:
        name = re.sub(group_by, "", run.name).strip("-_./ ") if group_by else run.name
        groups.setdefault(name or run.name, []).append(run)
    return groups


def _cell(values: Sequence[Optional[float]], digits: int) -> str:
    known = [value for value in values if value is not None]
    if not known:
        return _NO_VALUE
    mean = f"{statistics.fmean(known):.{digits}f}"
    return mean if len(known) == 1 else f"{mean} ± {statistics.stdev(known):.{digits}f}"


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _signatures(runs: Sequence[Run]) -> List[str]:
    signatures = {
        (metric, score.signature)
        for run in runs
        for metric, score in run.scores.items()
        if score.signature
    }
    if not signatures:
        return []
    return ["", *(f"- {metric}: `{signature}`" for metric, signature in sorted(signatures))]
