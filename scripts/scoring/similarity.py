#!/usr/bin/env python3
"""Brings the figures of ``fairseq-sam sts --json`` into the form of the other scores.

Of a set Spearman's ρ over all its pairs together, in per cent, which papers report; and the mean of
the seven test sets, "STS average", where all of them are there. A set that lacks a subset has no
score, since it would not be the papers'. A ρ that is undefined, since all embeddings are the same,
counts as 0.

Example:
    fairseq-sam sts SentEval/data/downstream checkpoint_last.pt --data data --json sts.json
    similarity.py sts.json --output scores.json
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any, Dict, List

import scores
from scores import Records, ScoringError

from fairseq_sam.analysis.sts import SUBSETS
from fairseq_sam.files.reading import read_json

TEST_SETS = ("STS12", "STS13", "STS14", "STS15", "STS16", "STS-B", "SICK-R")


def score(figures: Dict[str, Any]) -> Records:
    """Returns the scores of one evaluation as records.

    >>> sets = {"STS-B": {"all": 80.5, "subsets": {"STS-B": 80.5}},
    ...         "SICK-R": {"all": None, "subsets": {"SICK-R": None}},
    ...         "STS13": {"all": 70.5, "subsets": {"FNWN": 60.5, "OnWN": 75.0}}}
    >>> score({"pooling": "mean", "sets": sets})
    [{'name': 'STS-B', 'score': 80.5}, {'name': 'SICK-R', 'score': 0.0}]
    """
    sets, lacks = figures["sets"], lacking(figures)
    found = {name: float(sets[name]["all"] or 0) for name in sets if name not in lacks}
    records: Records = [{"name": name, "score": found[name]} for name in found]
    if set(TEST_SETS) <= found.keys():
        mean = sum(found[name] for name in TEST_SETS) / len(TEST_SETS)
        signature = f"mean of {len(TEST_SETS)} sets' Spearman's ρ, {figures['pooling']} pooling"
        records.append({"name": "STS average", "score": mean, "signature": signature})
    return records


def lacking(figures: Dict[str, Any]) -> Dict[str, List[str]]:
    """Returns the subsets that test sets lack, by the sets; none where it is of other sets alone.

    >>> lacking({"sets": {"STS-B dev": {"all": 80.5, "subsets": {"STS-B dev": 80.5}}}})
    {}
    """
    sets = figures["sets"]
    if not sets.keys() & set(TEST_SETS):
        return {}
    there = {name: sets[name]["subsets"] if name in sets else () for name in TEST_SETS}
    parts = {name: SUBSETS.get(name, (name,)) for name in TEST_SETS}
    lacks = {name: [part for part in parts[name] if part not in there[name]] for name in TEST_SETS}
    return {name: missing for name, missing in lacks.items() if missing}


def records_of(path: Path) -> Records:
    """Returns the scores of a file; what has none for want of data is said on stderr, in a line.

    Raises:
        ScoringError: it is none of ``fairseq-sam sts --json``.
    """
    figures = read_figures(path)
    told = [
        f"{name} (lacks {', '.join(missing)})" if name in figures["sets"] else f"{name} (not there)"
        for name, missing in lacking(figures).items()
    ]
    if told:
        print(f"{path}: no STS average, and no score of {', '.join(told)}", file=sys.stderr)
    return score(figures)


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
        lambda args: [record for path in args.figures for record in records_of(path)],
    )


if __name__ == "__main__":
    sys.exit(main())
