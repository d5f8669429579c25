#!/usr/bin/env python3
"""Scores translations at the length penalty that is best on the validation set.

Reads what fairseq-generate wrote with --nbest, for the validation and the test set. The hypotheses
of a sentence are ranked anew by the sum of their log-probabilities over length^penalty, which
searches among those that the beam ended with. The best penalty has the highest BLEU on the
validation set, whose reference is tokenised; the test set's is not. Writes BLEU and chrF2 at
penalty 1, BLEU at the best one, the penalty, and the length of the output by the reference's.
The result file's directory then holds the text at penalty 1: hypothesis.

Example:
    length_penalty.py --valid valid.txt --valid-reference valid.en --test test.txt \
        --test-reference test.raw.en --lang en --output scores.json
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Callable, Dict, List, Sequence, Tuple

import scores
from scores import Records, ScoringError, read_lines, read_text, write_hypotheses

PENALTIES = (0.0, 0.5, 1.0, 1.5, 2.0)
Hypotheses = List[List[Tuple[float, str, int]]]
"""For each sentence its hypotheses: sum of log-probabilities, text, and length with its end."""


def read_nbest(generated: str) -> Hypotheses:
    r"""Returns fairseq-generate's hypotheses, whose scores are at length penalty 1.

    >>> read_nbest("H-1\t-0.5\tb c\nP-1\t-0.5 -0.7 -0.3\nH-0\t-0.1\ta\nP-0\t-0.1 -0.1")
    [[(-0.2, 'a', 2)], [(-1.5, 'b c', 3)]]
    """
    found: Dict[int, List[Tuple[float, str, int]]] = {}
    text = ""
    for line in generated.split("\n"):
        if line.startswith("H-"):
            text = line.split("\t", 2)[2]
        elif line.startswith("P-"):
            key, numbers = line.split("\t", 1)
            values = list(map(float, numbers.split()))
            found.setdefault(int(key[2:]), []).append((round(sum(values), 6), text, len(values)))
    return [found[key] for key in sorted(found)]


def best_at(nbest: Hypotheses, penalty: float) -> List[str]:
    """Returns the best hypothesis of each sentence at a length penalty.

    >>> nbest = [[(-1.0, "short", 1), (-1.5, "not so short", 3)]]
    >>> best_at(nbest, 0.0), best_at(nbest, 1.0)
    (['short'], ['not so short'])
    """
    return [
        max(sentence, key=lambda hypothesis: hypothesis[0] / hypothesis[2] ** penalty)[1]
        for sentence in nbest
    ]


def choose_penalty(
    nbest: Hypotheses, bleu: Callable[[List[str]], float], penalties: Sequence[float] = PENALTIES
) -> float:
    """Returns the penalty with the highest BLEU; of equal ones that which is nearest to 1."""
    return max(penalties, key=lambda p: (bleu(best_at(nbest, p)), -abs(p - 1)))


def run(args: argparse.Namespace) -> Records:
    """Scores one system."""
    from sacrebleu.metrics import BLEU, CHRF
    from sacremoses import MosesDetokenizer

    detokenizer = MosesDetokenizer(args.lang)

    def plain(lines: Sequence[str]) -> List[str]:
        return [detokenizer.detokenize(line.split()) for line in lines]

    valid, test = (read_nbest(read_text(path)) for path in (args.valid, args.test))
    references = [plain(read_lines(args.valid_reference)), read_lines(args.test_reference)]
    pairs = zip((args.valid, args.test), (valid, test), references)
    for path, nbest, lines in pairs:
        if len(nbest) != len(lines):
            raise ScoringError(f"{path} has {len(nbest)} translations of {len(lines)} sentences")
    bleu, bleu_of_valid = (
        BLEU(lowercase=args.lowercase, references=[lines]) for lines in reversed(references)
    )
    chrf = CHRF(lowercase=args.lowercase, references=[references[1]])
    penalty = choose_penalty(
        valid, lambda lines: float(bleu_of_valid.corpus_score(plain(lines), None).score)
    )
    found = plain(best_at(test, 1.0))
    at_one = bleu.corpus_score(found, None)
    best = bleu.corpus_score(plain(best_at(test, penalty)), None)
    of_valid = bleu_of_valid.corpus_score(plain(best_at(valid, 1.0)), None)
    write_hypotheses(found, args.output)
    signature = str(bleu.get_signature())
    return [
        {"name": "BLEU", "score": at_one.score, "signature": signature},
        {"name": "chrF2", "score": chrf.corpus_score(found, None).score},
        {"name": "BLEU at the best length penalty", "score": best.score, "signature": signature},
        {"name": "length penalty", "score": penalty},
        {"name": "length ratio", "score": at_one.sys_len / at_one.ref_len},
        {"name": "valid BLEU", "score": of_valid.score},
    ]


def main() -> int:
    """Scores and writes."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--valid", type=Path, required=True, help="fairseq-generate's output")
    parser.add_argument("--valid-reference", type=Path, required=True, help="tokenised")
    parser.add_argument("--test", type=Path, required=True, help="fairseq-generate's output")
    parser.add_argument("--test-reference", type=Path, required=True, help="untokenised")
    parser.add_argument("--lang", required=True, help="target language, for detokenising")
    parser.add_argument("--lowercase", action="store_true", help="compare without case")
    return scores.run(parser, run)


if __name__ == "__main__":
    sys.exit(main())
