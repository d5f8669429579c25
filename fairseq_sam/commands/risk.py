"""``fairseq-sam risk``: the adversarial risk of a trained model."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any, Dict, List, Tuple

from fairseq_sam.commands.checkpoint_data import (
    add_data_arguments,
    add_output_arguments,
    check_output_arguments,
    explaining,
    load_plugins,
    load_single_sentences,
    progress,
    write_figures,
)
from fairseq_sam.commands.number_types import count, positive
from fairseq_sam.commands.quiet import only_warnings

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
    add_data_arguments(parser)
    add_output_arguments(parser, plot=False)
    parser.set_defaults(run=run)


def _add_ball_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--rho", type=positive, default=0.05, help="radius of the ball (default: %(default)s)"
    )
    parser.add_argument(
        "--norm",
        choices=("l2", "linf"),
        default="l2",
        help="norm of the ball (default: %(default)s)",
    )
    parser.add_argument(
        "--steps",
        type=count,
        default=1,
        metavar="K",
        help="gradient steps for each sentence (default: %(default)s)",
    )


def run(args: argparse.Namespace) -> int:
    """Measures, prints, writes."""
    check_output_arguments(args)
    load_plugins(args.user_dir)
    from fairseq_sam.analysis.adversarial_risk import summarise

    criterion, risks = _measure(args)
    summary = summarise(risks)
    _print(args, criterion, summary)
    if args.json is not None:
        write_figures({**_settings(args, criterion), **_figures(summary)}, args.json)
    return 0


def _measure(args: argparse.Namespace) -> Tuple[str, List[SentenceRisk]]:
    from fairseq_sam.analysis.adversarial_risk import sentence_risks

    trained, name, criterion, total, samples = load_single_sentences(args, args.checkpoint)
    pad = getattr(criterion, "padding_idx", None)
    if pad is None:
        pad = trained.task.source_dictionary.pad()
    risks = sentence_risks(trained.model, criterion, samples, pad, args.rho, args.steps, args.norm)
    with only_warnings(), explaining(args.checkpoint, args.data):
        return name, progress(risks, total, "sentence")


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
