"""What the scoring programs share: generated text, p-values, and the files that they write."""

import argparse
import errno
import math
import os
import sys
from pathlib import Path
from typing import Any, Callable, Dict, Iterable, List, Sequence

import numpy as np

from fairseq_sam import FairseqSamError
from fairseq_sam.files.writing import may_write, write_json, write_text

RESAMPLES = 1000

Records = List[Dict[str, Any]]


class ScoringError(FairseqSamError):
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


def read_text(path: Path) -> str:
    """Returns a file's text.

    Raises:
        ScoringError: it is none.
    """
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ScoringError(f"{path}: is not UTF-8 ({error.reason})") from None


def read_lines(path: Path) -> List[str]:
    """Returns a text file's lines."""
    text = read_text(path)
    return text[:-1].split("\n") if text.endswith("\n") else text.split("\n")


def check_lengths(args: argparse.Namespace, what: str, references: List[str], *found: Any) -> None:
    """Refuses ``found`` texts, those generated and the baseline's (or None), of another length.

    Raises:
        ScoringError: naming the file.
    """
    for path, lines in zip((args.generated, args.baseline), found):
        if lines is not None and len(lines) != len(references):
            raise ScoringError(
                f"{path} has {len(lines)} {what}, {args.reference} {len(references)} lines"
            )


def two_sided_p_value(differences: Sequence[float], observed: float) -> float:
    """Returns the p-value of a difference by those of resamples.

    The share of resamples whose difference is farther from the mean difference of all resamples
    than the observed difference is from 0, as in sacreBLEU (Riezler and Maxwell 2005).
    """
    found = np.asarray(differences)
    beyond = np.abs(found - found.mean()) >= abs(observed)
    return float((beyond.sum() + 1) / (len(found) + 1))


def perplexity(nll: float) -> float:
    """Returns the perplexity of a mean negative log-likelihood in nats.

    >>> perplexity(0.0), perplexity(710.0)  # beyond what a float holds
    (1.0, inf)
    """
    try:
        return math.exp(nll)
    except OverflowError:
        return math.inf


def kind_of(trained: Any) -> str:
    """Returns what a model predicts: ``numbers``, ``classes``, or ``tokens``."""
    criterion = trained.cfg.criterion
    if getattr(criterion, "classification_head_name", None) is None:
        return "tokens"
    return "numbers" if getattr(criterion, "regression_target", False) else "classes"


def write_hypotheses(lines: Iterable[str], scores: Path) -> None:
    """Writes the text that was scored, beside the scores."""
    write_text(_hypotheses(scores), "".join(f"{line}\n" for line in lines))


def _hypotheses(scores: Path) -> Path:
    return scores.with_name("hypothesis")


def run(parser: argparse.ArgumentParser, score: Callable[[argparse.Namespace], Records]) -> int:
    """Scores, writes ``--output`` and returns the exit status; a failure is one line."""
    parser.add_argument("--output", type=Path, required=True, help="JSON file to write")
    args = parser.parse_args()
    try:
        _check_output(args)
        write_json(score(args), args.output)
    except (FairseqSamError, OSError) as error:
        print(f"{parser.prog}: error: {error}", file=sys.stderr)
        return 1
    return 0


def _check_output(args: argparse.Namespace) -> None:
    """Refuses what cannot be written, or is read, before anything is computed.

    Raises:
        ScoringError: naming the file.
    """
    if args.output.is_dir() or not args.output.absolute().parent.is_dir():
        raise ScoringError(f"--output {args.output}: it must be a file in a folder that exists")
    if not may_write(args.output):
        raise ScoringError(f"--output {args.output}: cannot write ({os.strerror(errno.EACCES)})")
    for name, path in vars(args).items():
        for written in (args.output, _hypotheses(args.output)):
            if name != "output" and isinstance(path, Path) and _are_one(path, written):
                raise ScoringError(
                    f"--output {args.output}: {written} would be written over, which is --{name}; "
                    "it must be in another folder"
                )


def _are_one(path: Path, other: Path) -> bool:
    return path.exists() and other.exists() and path.samefile(other)
