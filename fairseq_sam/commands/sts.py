"""``fairseq-sam sts``: semantic textual similarity of an encoder's sentence embeddings."""

from __future__ import annotations

import argparse
import os
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Callable, Dict, List, NamedTuple, Tuple

from fairseq_sam.commands.checkpoint_data import check_checkpoints, checkpoint_names
from fairseq_sam.commands.figures import (
    add_output_arguments,
    check_output_arguments,
    write_results,
)
from fairseq_sam.commands.progress import counting
from fairseq_sam.commands.quiet import only_warnings
from fairseq_sam.commands.refusals import CommandError, load_fairseq
from fairseq_sam.reporting.sts_plot import write_sts_plot

if TYPE_CHECKING:
    from fairseq_sam.analysis.sts import Correlation, Subset
    from fairseq_sam.evaluation.sentence_embedding import SentenceEmbedder

_MOST_UNKNOWN = 0.1
"""Share of unknown words above which something is wrong."""

_EPILOG = """\
examples:
  fairseq-sam sts SentEval/data/downstream minilm/model.pt
  fairseq-sam sts SentEval/data/downstream checkpoints/checkpoint_last.pt --data data-bin \\
      --tokenizer minilm/tokenizer.json --json sts.json
  fairseq-sam sts SentEval/data/downstream adam.pt ga_sam.pt --data data-bin --dev --plot sts.pdf

Reports Spearman's correlation (in per cent) between the cosine of two sentences' embeddings and
people's scores, on STS12 to STS16 and the test sets of STS-B and SICK-R. "all" takes the pairs of
all subsets together, which is what papers report; "mean" and "weighted" are means over subsets,
the latter by number of pairs. Sets that are not there are skipped.
"""


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Adds this subcommand's parser."""
    parser = subparsers.add_parser(
        "sts",
        help="evaluate sentence embeddings on textual similarity",
        description="Evaluates an encoder's sentence embeddings on semantic textual similarity.",
        epilog=_EPILOG,
    )
    parser.add_argument(
        "folder", type=Path, metavar="SENTEVAL_DIR", help="SentEval's data/downstream"
    )
    parser.add_argument("checkpoints", type=Path, metavar="CHECKPOINT", nargs="+", help="encoders")
    parser.add_argument(
        "--data", metavar="DIR", help="where dict.txt is (default: beside CHECKPOINT)"
    )
    parser.add_argument(
        "--tokenizer",
        metavar="FILE",
        help="tokenizer.json of the encoder, or 'none' to split at spaces (default: the one beside "
        "dict.txt or CHECKPOINT)",
    )
    parser.add_argument(
        "--pooling",
        choices=("cls", "mean"),
        help="first token or mean of all (default: the one trained with, or mean)",
    )
    parser.add_argument("--dev", action="store_true", help="only STS-B's development set")
    add_output_arguments(parser)
    parser.add_argument("--cpu", action="store_true", help="do not use a GPU")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Evaluates, prints, writes."""
    check_output_arguments(args)
    import scipy  # noqa: F401

    load_fairseq()
    check_checkpoints(args)
    from fairseq_sam.analysis.sts import read_sets

    sets, missing = read_sets(args.folder, args.dev)
    names = checkpoint_names([str(path) for path in args.checkpoints])
    found = [_evaluate(args, sets, *each) for each in zip(args.checkpoints, names)]
    for line in missing:
        print(line, file=sys.stderr)
    for each in found:
        _print(each)
    figures = {
        "unit": "Spearman's correlation, per cent",
        "missing": missing,
        "checkpoints": [_figures(each) for each in found],
    }
    write_results(args, figures, partial(write_sts_plot, figures))
    return 0


def _embedder(args: argparse.Namespace, checkpoint: Path) -> Tuple[SentenceEmbedder, str]:
    """Returns the model as a function of sentences, and its pooling."""
    import torch

    from fairseq_sam.evaluation.sentence_embedding import SentenceEmbedder
    from fairseq_sam.evaluation.trained_model import load_trained_model

    data = str(checkpoint.parent) if args.data is None else args.data
    if args.data is None and not os.path.isfile(os.path.join(data, "dict.txt")):
        raise CommandError(f"{data}: has no dict.txt: give its directory with --data")
    pieces = _tokenizer(args, checkpoint, data)
    trained = load_trained_model(str(checkpoint), data)
    if torch.cuda.is_available() and not args.cpu:
        trained.model.cuda()
    pooling = args.pooling or getattr(trained.cfg.criterion, "mirror_pooling", "mean")
    return SentenceEmbedder(trained, pieces, str(pooling)), str(pooling)


def _tokenizer(args: argparse.Namespace, checkpoint: Path, data: str) -> Callable[[str], List[str]]:
    from fairseq_sam.checkpoints.conversion.tokenizer import FILE_NAME, load_tokenizer

    if args.tokenizer == "none":
        return str.split
    if args.tokenizer is not None:
        return load_tokenizer(Path(args.tokenizer))
    for folder in (Path(data), checkpoint.parent):
        if (folder / FILE_NAME).is_file():
            return load_tokenizer(folder / FILE_NAME)
    raise CommandError(
        f"{data}: has no {FILE_NAME}: give it with --tokenizer, or split at spaces with "
        "--tokenizer none"
    )


class _Result(NamedTuple):
    checkpoint: Path
    name: str
    pooling: str
    correlations: Dict[str, Correlation]


def _evaluate(
    args: argparse.Namespace, sets: Dict[str, List[Subset]], checkpoint: Path, label: str
) -> _Result:
    from fairseq_sam.analysis.sts import evaluate

    found = {}
    with only_warnings():
        embed, pooling = _embedder(args, checkpoint)
        with counting("set", label, len(sets)) as after_each:
            for name, subsets in sets.items():
                found[name] = evaluate(subsets, embed)
                after_each()
    unknown = embed.num_unknown / max(1, embed.num_pieces)
    if unknown > _MOST_UNKNOWN:
        print(
            f"fairseq-sam sts: warning: {checkpoint}: {unknown:.0%} of the words are not in its "
            "dictionary: the tokenizer may be that of another model",
            file=sys.stderr,
        )
    return _Result(checkpoint, label, pooling, found)


def _print(result: _Result) -> None:
    from fairseq_sam.analysis.sts import average

    checkpoint, _, pooling, correlations = result
    print(f"{checkpoint}: Spearman's correlation in per cent, {pooling} pooling")
    print(f"{'':<10}{'pairs':>8}{'all':>8}{'mean':>8}{'weighted':>10}")
    for name, found in correlations.items():
        means = f"{found.mean:8.2f}{found.weighted_mean:10.2f}"
        print(f"{name:<10}{found.num_pairs:8d}{found.all:8.2f}{means}")
    if len(correlations) > 1:
        print(f"{'average':<10}{'':8}{average(correlations):8.2f}")


def _figures(result: _Result) -> Dict[str, Any]:
    from fairseq_sam.analysis.sts import average

    sets = {
        name: {**found._asdict(), "subsets": dict(found.subsets)}
        for name, found in result.correlations.items()
    }
    return {
        "checkpoint": str(result.checkpoint),
        "name": result.name,
        "pooling": result.pooling,
        "sets": sets,
        "average": average(result.correlations),
    }
