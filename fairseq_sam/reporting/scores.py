"""Scores: those of a run, as sacrebleu or ``fairseq-generate`` wrote them, and a paper's."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, Optional

from fairseq_sam.files.reading import read_json, read_lines
from fairseq_sam.reporting.numbers import number, printable

Remark = Callable[[str], None]
"""Is called with a line about a file that was passed over; the line names the file and why."""

_GENERATE = re.compile(r"Generate (\S+?)(?: with .*)?: BLEU4 = ([^,\s]*)")
_NUMBER = re.compile(r"[0-9]+(\.[0-9]*)?")
TOKENISED_BLEU = "BLEU (tokenised)"


@dataclass(frozen=True)
class Published:
    """One experiment of a paper, to be shown next to measured ones; the recipes have them.

    Attributes:
        source: the paper, its table, and what is to be known of the comparison.
        metrics: metric to {run to value as printed}; the runs in the paper's order.
    """

    source: str
    metrics: Dict[str, Dict[str, str]]


@dataclass(frozen=True)
class Score:
    """One metric of one translation.

    Attributes:
        value: percent, as sacrebleu prints it.
        signature: sacrebleu's description of how it was computed, "" if there is none.
        p_value: of the difference to a baseline's translation, None if they were not compared.
        chance: the score of always giving the commonest answer, None if that is not known.
    """

    value: float
    signature: str = ""
    p_value: Optional[float] = None
    chance: Optional[float] = None


def ignore(remark: str) -> None:
    """Does nothing with a remark."""


def files_like(directory: Path, pattern: str, remark: Remark = ignore) -> List[Path]:
    """Returns the entries of a directory that a pattern fits, but for hidden ones, in order."""
    try:
        return sorted(path for path in directory.glob(pattern) if not path.name.startswith("."))
    except OSError as error:
        remark(f"{directory}: {error.strerror}")
        return []


def read_scores(directory: Path, remark: Remark = ignore) -> Dict[str, Score]:
    """Reads every score that lies in a run directory; what cannot be read is passed over.

    Looks at ``*.json`` written by ``sacrebleu --format json`` or by the programs of
    scripts/scoring, which add p-values (other JSON files are passed over without a word), and at
    ``generate*.txt``, whose tokenised BLEU is listed as such, with the split if it is no test set.
    Of two files with a score by the same name the last one's counts.
    """
    scores: Dict[str, Score] = {}
    places: Dict[str, Path] = {}
    for path in files_like(directory, "*.json", remark):
        try:
            content = read_json(path)
        except (OSError, ValueError) as error:
            remark(f"{path}: {getattr(error, 'strerror', None) or error}")
            continue
        found: Dict[str, Score] = {}
        for record in _records(content):
            fault = _add_record(record, found)
            if fault:
                remark(f"{path}: {fault}")
        _merge(path, found, scores, places, remark)
    for path in files_like(directory, "generate*.txt", remark):
        try:
            matches = [match for match in map(_GENERATE.match, read_lines(path)) if match]
        except OSError as error:
            remark(f"{path}: {error.strerror}")
            continue
        split, value = matches[-1].groups() if matches else ("", "")
        name = TOKENISED_BLEU if split.startswith("test") else f"{split} {TOKENISED_BLEU}"
        if _NUMBER.fullmatch(value):
            _merge(path, {name: Score(float(value))}, scores, places, remark)
        elif matches:
            remark(f"{path}: its BLEU4 is {printable(value)}, not a number")
    return scores


def _merge(
    path: Path,
    found: Dict[str, Score],
    scores: Dict[str, Score],
    places: Dict[str, Path],
    remark: Remark,
) -> None:
    """Adds a file's scores; tells where they take the place of others."""
    for name, score in found.items():
        if name in scores and scores[name].value != score.value:
            remark(f"{places[name]}: its {name}, since {path.name} has another")
        scores[name], places[name] = score, path


def _records(content: Any) -> Iterator[Dict[str, Any]]:
    for record in content if isinstance(content, list) else [content]:
        if isinstance(record, dict) and {"name", "score"} <= record.keys():
            yield record


def _add_record(record: Dict[str, Any], scores: Dict[str, Score]) -> str:
    """Adds what a record tells, and returns what is wrong with it, "" if nothing."""
    name, signature = record["name"], record.get("signature", "")
    if not isinstance(name, str):
        return ""  # another program's record
    score = math.nan if record["score"] is None else record["score"]  # JSON has no other word
    name, value = printable(name), number(score)
    if value is None:
        return f"its {name} is {printable(repr(record['score']))}, not a number"
    p_value = number(record.get("p_value"))
    is_share = p_value is None or 0 <= p_value <= 1
    described = printable(signature, 200) if isinstance(signature, str) else ""
    chance = number(record.get("chance"))
    scores[name] = Score(value, described, p_value if is_share else None, chance)
    return "" if is_share else f"the p-value of its {name} is {p_value:g}"
