"""``fairseq-sam risk``: the adversarial risk of a trained model."""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import math
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Dict, Iterator, List, Tuple

from fairseq_sam.commands.errors import CommandError

if TYPE_CHECKING:
    from fairseq_sam.analysis.adversarial_risk import Estimate, RiskSummary, SentenceRisk

_EPILOG = """\
examples:
  fairseq-sam risk checkpoints/checkpoint_best.pt data-bin --rho 0.05
  fairseq-sam risk checkpoint_best.pt data-bin --steps 5 --max-sentences 500 --json risk.json
  fairseq-sam risk lm.pt data-bin --criterion cross_entropy --subset test

The risk is the mean over sentences of the largest loss within rho of the weights, each sentence
having a perturbation of its own (delta-SAM, Eq. 2 and Table 4). One gradient step finds it to first
order; more steps find more. Losses are in nats per sentence (summed over its tokens), without
dropout; the errors are standard errors of the means over sentences. The checkpoint is only read.
"""


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Adds this subcommand's parser."""
    parser = subparsers.add_parser(
        "risk",
        help="measure the adversarial risk of a checkpoint",
        description="Measures how much the loss of each sentence grows in the worst direction.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help="a checkpoint of fairseq-train")
    parser.add_argument("data", metavar="DATA", help="the binarised data, as for fairseq-train")
    _add_ball_arguments(parser)
    _add_data_arguments(parser)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures here as well")
    parser.add_argument("--cpu", action="store_true", help="do not use a GPU")
    parser.set_defaults(run=run)


def _add_ball_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--rho", type=_radius, default=0.05, help="radius of the ball (default: %(default)s)"
    )
    parser.add_argument(
        "--norm",
        choices=("l2", "linf"),
        default="l2",
        help="norm of the ball (default: %(default)s)",
    )
    parser.add_argument(
        "--steps",
        type=_count,
        default=1,
        metavar="K",
        help="gradient steps for each sentence (default: %(default)s)",
    )


def _add_data_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--criterion",
        metavar="NAME",
        help="criterion whose losses count (default: the one that the model was trained with)",
    )
    parser.add_argument(
        "--subset", default="valid", help="split of the data (default: %(default)s)"
    )
    parser.add_argument(
        "--max-sentences", type=_count, metavar="N", help="only N sentences, drawn at random"
    )
    parser.add_argument(
        "--seed", type=int, default=1, help="seed of that draw (default: %(default)s)"
    )
    parser.add_argument(
        "--skip-invalid-size-inputs-valid-test",
        dest="skip_too_long",
        action="store_true",
        help="leave out sentences that are too long for the model, instead of stopping",
    )
    parser.add_argument(
        "--user-dir", metavar="DIR", help="more code of yours to load, as for fairseq-train"
    )


def run(args: argparse.Namespace) -> int:
    """Measures, prints, writes."""
    if args.json is not None and not args.json.absolute().parent.is_dir():
        raise CommandError(f"{args.json}: its directory does not exist")
    _load_plugins(args.user_dir)
    from fairseq_sam.analysis.adversarial_risk import summarise
    from fairseq_sam.trained_model import LoadError

    try:
        with _only_warnings():
            criterion, risks = _measure(args)
    except LoadError as error:
        raise CommandError(str(error)) from error
    summary = summarise(risks)
    _print(args, criterion, summary)
    if args.json is not None:
        _write_json({**_settings(args, criterion), **_figures(summary)}, args.json)
    return 0


@contextlib.contextmanager
def _only_warnings() -> Iterator[None]:
    """Keeps fairseq from telling how it loads a model; it may tell again afterwards."""
    logger = logging.getLogger("fairseq")
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        logger.setLevel(level)


def _load_plugins(user_dir: Any) -> None:
    """Imports fairseq with the plugin in it, and the user's own code."""
    import fairseq  # noqa: F401
    from fairseq.utils import import_user_module

    import fairseq_sam

    fairseq_sam.register()
    if user_dir is None:
        return
    if not os.path.isdir(user_dir):
        raise CommandError(f"{user_dir}: no such directory")
    import_user_module(argparse.Namespace(user_dir=user_dir))


def _measure(args: argparse.Namespace) -> Tuple[str, List[SentenceRisk]]:
    import torch
    from tqdm import tqdm  # type: ignore[import-untyped]

    from fairseq_sam import trained_model
    from fairseq_sam.analysis.adversarial_risk import sentence_risks

    trained = trained_model.load_trained_model(args.checkpoint, args.data)
    name, criterion = trained_model.per_sentence_criterion(trained, args.criterion)
    if torch.cuda.is_available() and not args.cpu:
        trained.model.cuda()
        criterion.cuda()
    count, samples = trained_model.single_sentences(
        trained, args.subset, args.max_sentences, args.seed, args.skip_too_long
    )
    pad = getattr(criterion, "padding_idx", None)
    if pad is None:
        pad = trained.task.source_dictionary.pad()
    risks = sentence_risks(trained.model, criterion, samples, pad, args.rho, args.steps, args.norm)
    quiet = 0 if sys.stderr.isatty() else 30  # in a log, a line each half minute is enough
    progress = tqdm(
        risks, total=count, unit="sentence", file=sys.stderr, delay=quiet, mininterval=quiet or 0.1
    )
    try:
        return name, list(progress)
    except FloatingPointError as error:
        raise CommandError(f"{args.checkpoint}: {error}") from error
    except (AssertionError, LookupError, RuntimeError, TypeError, ValueError) as error:
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise CommandError(f"{args.data}: does not fit {args.checkpoint} ({reason})") from error


def _print(args: argparse.Namespace, criterion: str, summary: RiskSummary) -> None:
    rows = (
        ("clean loss", summary.clean),
        ("adversarial loss", summary.adversarial),
        ("difference", summary.difference),
    )
    print(f"{args.checkpoint}, {args.subset}: {summary.num_sentences} sentences, {criterion}")
    print(f"within {args.rho:g} ({args.norm}, {args.steps} ascent steps), nats per sentence")
    for name, estimate in rows:
        print(f"{name:<18}{estimate.mean:10.4f}  standard error {_error(estimate)}")


def _error(estimate: Estimate) -> str:
    error = estimate.standard_error
    return "unknown" if error is None else f"{error:.4f}"


def _settings(args: argparse.Namespace, criterion: str) -> Dict[str, Any]:
    return {
        "checkpoint": args.checkpoint,
        "data": args.data,
        "subset": args.subset,
        "criterion": criterion,
        "rho": args.rho,
        "norm": args.norm,
        "steps": args.steps,
        "unit": "nats per sentence",
    }


def _figures(summary: RiskSummary) -> Dict[str, Any]:
    figures: Dict[str, Any] = {"num_sentences": summary.num_sentences}
    for name in ("clean", "adversarial", "difference"):
        estimate = getattr(summary, name)
        figures[name] = {"mean": estimate.mean, "standard_error": estimate.standard_error}
    return figures


def _write_json(content: Dict[str, Any], path: Path) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.incomplete")
    try:
        temporary.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        os.replace(temporary, path)
    except OSError as error:
        raise CommandError(f"{path}: cannot write ({error.strerror})") from None


def _radius(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and value > 0):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0")
    return value


def _count(text: str) -> int:
    value = int(text) if text.isdigit() else 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return value
