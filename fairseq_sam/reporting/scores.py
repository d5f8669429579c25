"""Reads the scores of translations: sacrebleu's results and ``fairseq-generate``'s last line."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Dict, List, Optional

_GENERATE = re.compile(r"^Generate .*: BLEU4 = ([0-9.]+)", re.MULTILINE)
TOKENISED_BLEU = "BLEU (tokenised)"


@dataclass(frozen=True)
class Score:
    """One metric of one translation.

    Attributes:
        value: percent, as sacrebleu prints it.
        signature: sacrebleu's description of how it was computed, "" if there is none.
        p_value: of the difference to a baseline's translation, None if they were not compared.
    """

    value: float
    signature: str = ""
    p_value: Optional[float] = None


def read_scores(directory: Path) -> Dict[str, Score]:
    """Reads every score that lies in a run directory.

    Looks at ``*.json`` written by ``sacrebleu --format json`` or by the programs of
    scripts/scoring, which add p-values (other JSON files are passed over), and at
    ``generate*.txt``, whose tokenised BLEU is listed as such.
    """
    scores: Dict[str, Score] = {}
    for path in sorted(directory.glob("*.json")):
        for record in _records(path):
            p_value = record.get("p_value")
            scores[str(record["name"])] = Score(
                float(record["score"]),
                str(record.get("signature", "")),
                None if p_value is None else float(p_value),
            )
    for path in sorted(directory.glob("generate*.txt")):
        found = _GENERATE.findall(path.read_text(encoding="utf-8", errors="replace"))
        if found:
            scores[TOKENISED_BLEU] = Score(float(found[-1]))
    return scores


def _records(path: Path) -> List[dict]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        return []
    records = content if isinstance(content, list) else [content]
    return [r for r in records if isinstance(r, dict) and {"name", "score"} <= r.keys()]
