"""``fairseq-sam risk``: the adversarial risk of a trained model."""

from __future__ import annotations

import argparse
from functools import partial
from typing import TYPE_CHECKING, Any, Dict

from fairseq_sam.commands.checkpoint_data import (
    add_checkpoint_arguments,
    add_data_arguments,
    explaining,
    load_single_sentences,
    prepare,
)
from fairseq_sam.commands.figures import add_output_arguments, write_results
from fairseq_sam.commands.progress import progress
from fairseq_sam.commands.quiet import only_warnings
from fairseq_sam.flags.number_types import num_steps, positive
from fairseq_sam.reporting.risk_plot import write_risk_plot
from fairseq_sam.reporting.risk_table import risk_table

if TYPE_CHECKING:
    from fairseq_sam.analysis.adversarial_risk import RiskSummary

_EPILOG = """\
examples:
  fairseq-sam risk data-bin checkpoints/checkpoint_best.pt --rho 0.05
  fairseq-sam risk data-bin adam/average.pt ga_sam/average.pt --json risk.json --plot risk.pdf
  fairseq-sam risk data-bin checkpoint_best.pt --steps 5 --max-sentences 500
  fairseq-sam risk data-bin lm.pt --criterion cross_entropy --subset test

The risk is the mean over sentences of the largest loss within rho of the weights, each sentence
having a perturbation of its own (delta-SAM, Eq. 2 and Table 4). One gradient step finds it to first
order; more steps find more. Losses are in nats per sentence (summed over its tokens), without
dropout; the errors are standard errors of the means over sentences: compare differences, whose
errors do not contain the sentences' lengths. Checkpoints are only read.
"""


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Adds this subcommand's parser."""
    parser = subparsers.add_parser(
        "risk",
        help="measure how much each sentence can lose nearby",
        description="Measures how much the loss of each sentence grows in the worst direction.",
        epilog=_EPILOG,
    )
    add_checkpoint_arguments(parser)
    _add_ball_arguments(parser)
    add_data_arguments(parser)
    add_output_arguments(parser)
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
        type=num_steps,
        default=1,
        metavar="K",
        help="gradient steps for each sentence (default: %(default)s)",
    )


def run(args: argparse.Namespace) -> int:
    """Measures, prints, writes."""
    names = prepare(args)
    measured = [_measure(args, *each) for each in zip(args.checkpoints, names)]
    figures = {**_settings(args), "checkpoints": measured}
    print(risk_table(figures), end="")
    write_results(args, figures, partial(write_risk_plot, figures))
    return 0


def _measure(args: argparse.Namespace, checkpoint: str, name: str) -> Dict[str, Any]:
    from fairseq_sam.analysis.adversarial_risk import sentence_risks, summarise

    trained, criterion_name, criterion, total, samples = load_single_sentences(args, checkpoint)
    pad = getattr(criterion, "padding_idx", None)
    if pad is None:
        pad = trained.task.source_dictionary.pad()
    risks = sentence_risks(trained.model, criterion, samples, pad, args.rho, args.steps, args.norm)
    with only_warnings(), explaining(checkpoint, args.data):
        summary = summarise(progress(risks, total, "sentence", name))
    figures = {"checkpoint": checkpoint, "name": name, "criterion": criterion_name}
    return {**figures, **_figures(summary)}


def _settings(args: argparse.Namespace) -> Dict[str, Any]:
    return {
        "data": args.data,
        "subset": args.subset,
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
