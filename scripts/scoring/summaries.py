#!/usr/bin/env python3
r"""Scores summaries by ROUGE F1 (rouge-score), and against a baseline's by paired bootstrap.

Reported are ROUGE-1, ROUGE-2, ROUGE-L and ROUGE-Lsum with Porter stemming, in percent, the mean
over summaries. The papers' ROUGE-L is that of the original Perl program: the union of longest
common subsequences sentence by sentence, which rouge-score calls rougeLsum; its rougeL takes a
summary as one sentence. Sentences are told apart at final punctuation.

Example:
    summaries.py --generated summaries.txt --encoder-json encoder.json --vocab-bpe vocab.bpe \
        --reference test.target --output scores.json
"""

from __future__ import annotations

import argparse
import re
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any, Dict, List, Sequence

import numpy as np
import scores
from scores import (
    RESAMPLES,
    Records,
    check_lengths,
    read_hypotheses,
    read_lines,
    read_text,
    two_sided_p_value,
    write_hypotheses,
)

METRICS = {
    "ROUGE-1": "rouge1",
    "ROUGE-2": "rouge2",
    "ROUGE-L": "rougeL",
    "ROUGE-Lsum": "rougeLsum",
}
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+")


def sentence_lines(text: str) -> str:
    r"""Puts each sentence on a line of its own, as rougeLsum wants it.

    >>> sentence_lines("One. Two!  Three")
    'One.\nTwo!\nThree'
    """
    return _SENTENCE_END.sub("\n", text.strip())


def rouge_scores(hypotheses: Sequence[str], references: Sequence[str]) -> Dict[str, List[float]]:
    """Returns the F1 scores of each summary, in percent, by metric."""
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer(list(METRICS.values()), use_stemmer=True)
    scores: Dict[str, List[float]] = {name: [] for name in METRICS}
    for hypothesis, reference in zip(hypotheses, references):
        found = scorer.score(sentence_lines(reference), sentence_lines(hypothesis))
        for name, key in METRICS.items():
            scores[name].append(100 * found[key].fmeasure)
    return scores


def paired_bootstrap(
    system: Sequence[float],
    baseline: Sequence[float],
    resamples: int = RESAMPLES,
    seed: int = 12345,
) -> float:
    """Returns the two-sided p-value of a difference in means, by resampling the summaries."""
    differences = np.asarray(system) - np.asarray(baseline)
    generator = np.random.default_rng(seed)
    size = len(differences)
    means = [differences[generator.integers(size, size=size)].mean() for _ in range(resamples)]
    return two_sided_p_value(means, float(differences.mean()))


def decode(encoded: str, decoder: Any) -> str:
    """Turns GPT-2 BPE's numbers into text; symbols that are none, such as <unk>, are left out."""
    text: str = decoder.decode([int(number) for number in encoded.split() if number.isdigit()])
    return " ".join(text.split())


def run(args: argparse.Namespace) -> Records:
    """Scores one system."""
    from fairseq.data.encoders.gpt2_bpe_utils import get_encoder

    references = read_lines(args.reference)
    decoder = get_encoder(args.encoder_json, args.vocab_bpe)
    encoded = read_hypotheses(read_text(args.generated))
    hypotheses = [decode(line, decoder) for line in encoded]
    other = read_lines(args.baseline) if args.baseline else None
    check_lengths(args, "summaries", references, hypotheses, other)
    found = rouge_scores(hypotheses, references)
    baseline = None if other is None else rouge_scores(other, references)
    signature = f"F1, stemmed, rouge-score {version('rouge-score')}"
    records: Records = []
    for name, values in found.items():
        records.append({"name": name, "score": float(np.mean(values)), "signature": signature})
        if baseline is not None:
            records[-1]["p_value"] = paired_bootstrap(values, baseline[name])
    write_hypotheses(hypotheses, args.output)
    return records


def main() -> int:
    """Scores and writes."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--generated", type=Path, required=True, help="fairseq-generate's output")
    parser.add_argument("--encoder-json", required=True, help="GPT-2's encoder.json")
    parser.add_argument("--vocab-bpe", required=True, help="GPT-2's vocab.bpe")
    parser.add_argument("--reference", type=Path, required=True, help="one summary a line")
    parser.add_argument("--baseline", type=Path, help="hypothesis file of the baseline")
    return scores.run(parser, run)


if __name__ == "__main__":
    sys.exit(main())
