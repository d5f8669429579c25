#!/usr/bin/env python3
"""Brings the figures of ``fairseq-sam sts --json`` into the form of the other scores.

Of a set Spearman's ρ over all its pairs together, in per cent, which papers report; and the mean of
the seven test sets, "STS average", where all of them are there. A ρ that is undefined, since all
embeddings are the same, counts as 0.

Example:
    fairseq-sam sts SentEval/data/downstream checkpoint_last.pt --data data --json sts.json
    similarity.py sts.json --output scores.json
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any, Dict

import scores
from scores import Records, ScoringError

from fairseq_sam.files.reading import read_json

TEST_SETS = ("STS12", "STS13", "STS14", "STS15", "STS16", "STS-B", "SICK-R")


def score(figures: Dict[str, Any]) -> Records:
    """Returns the scores of one evaluation as records.

    >>> score({"pooling": "mean", "sets": {"STS-B dev": {"all": 80.5}, "STS12": {"all": None}}})
    [{'name': 'STS-B dev', 'score': 80.5}, {'name': 'STS12', 'score': 0.0}]
    """
    found = {name: float(values["all"] or 0) for name, values in figures["sets"].items()}
    records: Records = [{"name": name, "score": found[name]} for name in found]
    if set(TEST_SETS) <= found.keys():
        mean = sum(found[name] for name in TEST_SETS) / len(TEST_SETS)
        signature = f"mean of {len(TEST_SETS)} sets' Spearman's ρ, {figures['pooling']} pooling"
        records.append({"name": "STS average", "score": mean, "signature": signature})
    return records


def read_figures(path: Path) -> Dict[str, Any]:
    """Reads what ``fairseq-sam sts --json`` wrote.

    Raises:
        ScoringError: it did not write this.
    """
    try:
        (figures,) = read_json(path)["checkpoints"]
        score(figures)
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ScoringError(f"{path}: not a file of fairseq-sam sts --json") from None
    return dict(figures)


def main() -> int:
    """Reads and writes."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("figures", nargs="+", type=Path, help="of fairseq-sam sts --json")
    return scores.run(
        parser,
        lambda args: [record for path in args.figures for record in score(read_figures(path))],
    )


if __name__ == "__main__":
    sys.exit(main())
