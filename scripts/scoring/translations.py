#!/usr/bin/env python3
"""Scores translations with sacreBLEU, and against a baseline's by paired bootstrap resampling.

Reads what fairseq-generate wrote (--generated), whose hypotheses are detokenised, and untokenised
references. Writes a list of {name, score, signature} and, with --baseline, {p_value, baseline}: the
probability of a difference at least as large where the two systems are equally good (Koehn 2004, as
sacreBLEU computes it). The result file's directory then holds the text that was scored: hypothesis.

Example:
    translations.py --generated generate.txt --reference test.raw.en --lang en --output scores.json
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any, Dict, List, Optional

RESAMPLES = 1000


class ScoringError(Exception):
    """Files that do not belong together; the text is one line that names them."""


def read_hypotheses(generated: str) -> List[str]:
    r"""Returns fairseq-generate's hypotheses in the order of the test set, tokenised.

    >>> read_hypotheses("S-1\tx\nH-1\t-0.5\tb c\nH-0\t-0.1\ta\nGenerate: BLEU4 = 1")
    ['a', 'b c']
    """
    found: Dict[int, str] = {}
    for line in generated.split("\n"):
        if line.startswith("H-"):
            key, _, text = line.split("\t", 2)
            found.setdefault(int(key[2:]), text)
    return [found[key] for key in sorted(found)]


def score(
    hypotheses: List[str], references: List[str], lowercase: bool, baseline: Optional[List[str]]
) -> List[Dict[str, Any]]:
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


def read_lines(path: Path) -> List[str]:
    """Returns a text file's lines."""
    text = path.read_text(encoding="utf-8")
    return text[:-1].split("\n") if text.endswith("\n") else text.split("\n")


def write_whole(path: Path, text: str) -> None:
    """Writes a file that is never seen half-written."""
    incomplete = path.with_name(f"{path.name}.incomplete")
    incomplete.write_text(text, encoding="utf-8")
    os.replace(incomplete, path)


def run(args: argparse.Namespace) -> None:
    """Scores one system."""
    from sacremoses import MosesDetokenizer

    references = read_lines(args.reference)
    detokenizer = MosesDetokenizer(args.lang)
    tokenized = read_hypotheses(args.generated.read_text(encoding="utf-8"))
    hypotheses = [detokenizer.detokenize(line.split()) for line in tokenized]
    baseline = read_lines(args.baseline) if args.baseline else None
    for path, lines in ((args.generated, hypotheses), (args.baseline, baseline)):
        if lines is not None and len(lines) != len(references):
            raise ScoringError(
                f"{path} has {len(lines)} translations, {args.reference} {len(references)} lines"
            )
    records = score(hypotheses, references, args.lowercase, baseline)
    if args.baseline:
        for record in records:
            record["baseline"] = args.baseline_name
    write_whole(args.output.with_name("hypothesis"), "".join(f"{h}\n" for h in hypotheses))
    write_whole(args.output, json.dumps(records, indent=1) + "\n")


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
    parser.add_argument("--baseline-name", default="baseline", help="what the report calls it")
    parser.add_argument("--output", type=Path, required=True, help="JSON file to write")
    args = parser.parse_args()
    try:
        run(args)
    except (ScoringError, OSError) as error:
        print(f"{parser.prog}: error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
