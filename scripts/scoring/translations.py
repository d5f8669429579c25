#!/usr/bin/env python3
"""Scores translations with sacreBLEU, and against a baseline's by paired bootstrap resampling.

Reads what fairseq-generate wrote (--generated), whose hypotheses are detokenised, and untokenised
references. Writes a list of {name, score, signature} and, with --baseline, {p_value}: the
probability of a difference at least as large where the two systems are equally good (Koehn 2004, as
sacreBLEU computes it). The result file's directory then holds the text that was scored: hypothesis.

Example:
    translations.py --generated generate.txt --reference test.raw.en --lang en --output scores.json
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any, Dict, List, Optional

import scores
from scores import (
    RESAMPLES,
    Records,
    check_lengths,
    read_hypotheses,
    read_lines,
    read_text,
    write_hypotheses,
)


def score(
    hypotheses: List[str], references: List[str], lowercase: bool, baseline: Optional[List[str]]
) -> Records:
    """Returns BLEU and chrF2 as records, with p-values if there is a baseline."""
    from sacrebleu.metrics import BLEU, CHRF
    from sacrebleu.significance import PairedTest

    metrics: Dict[str, Any] = {
        "BLEU": BLEU(lowercase=lowercase, references=[references]),
        "chrF2": CHRF(lowercase=lowercase, references=[references]),
    }
    records = []
    for name, metric in metrics.items():
        value = metric.corpus_score(hypotheses, None)
        records.append({"name": name, "score": value.score})
    for record, metric in zip(records, metrics.values()):
        record["signature"] = str(metric.get_signature())
    if baseline is not None:
        systems = [("baseline", baseline), ("system", hypotheses)]
        test = PairedTest(systems, metrics, None, test_type="bs", n_samples=RESAMPLES)
        results = test()[1]
        for record in records:
            # sacreBLEU gives the least p-value to a system that is compared with itself.
            same = hypotheses == baseline
            record["p_value"] = 1.0 if same else results[record["name"]][1].p_value
    return records


def run(args: argparse.Namespace) -> Records:
    """Scores one system."""
    from sacremoses import MosesDetokenizer

    references = read_lines(args.reference)
    detokenizer = MosesDetokenizer(args.lang)
    tokenized = read_hypotheses(read_text(args.generated))
    hypotheses = [detokenizer.detokenize(line.split()) for line in tokenized]
    baseline = read_lines(args.baseline) if args.baseline else None
    check_lengths(args, "translations", references, hypotheses, baseline)
    records = score(hypotheses, references, args.lowercase, baseline)
    write_hypotheses(hypotheses, args.output)
    return records


def main() -> int:
    """Scores and writes."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--generated", type=Path, required=True, help="fairseq-generate's output")
    parser.add_argument("--reference", type=Path, required=True, help="untokenised references")
    parser.add_argument("--lang", required=True, help="target language, for detokenising")
    parser.add_argument("--lowercase", action="store_true", help="compare without case")
    parser.add_argument("--baseline", type=Path, help="hypothesis file of the baseline")
    return scores.run(parser, run)


if __name__ == "__main__":
    sys.exit(main())
