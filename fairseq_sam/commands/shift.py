"""``fairseq-sam shift``: the analytic trials of GA-SAM on digits."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Dict

from fairseq_sam.commands.figures import (
    add_output_arguments,
    check_output_arguments,
    write_results,
)
from fairseq_sam.commands.progress import progress
from fairseq_sam.commands.refusals import CommandError
from fairseq_sam.flags.number_types import count, positive, seed, whole_number

if TYPE_CHECKING:
    from fairseq_sam.analysis.digits import Digits, Examples
    from fairseq_sam.analysis.shift import ShiftSummary

_EPILOG = """\
examples:
  fairseq-sam shift --trials 10 --max-examples 200 --plot shift.png
  fairseq-sam shift --data mnist/ --json shift.json --plot shift.pdf

The first runs on scikit-learn's digits in about a minute; the second wants MNIST's four IDX files,
packed or not. Trains a perceptron (100 and 100 hidden units) on digits, theta; from there to the
minimum on mixtures with a share eta of test data, theta* = theta + delta; and shows that the
training loss shifted by delta follows the test loss, and that the length of delta grows with eta
(GA-SAM, Section 2.4, Figures 1 and 2). Losses are in nats per example and contain the weight decay,
without which there are no minima. Runs on the CPU in float64, 100 trials in minutes.
"""

MOST_TRIALS = 10_000
TOLERANCE = 1e-4
"""Largest gradient entry that counts as a minimum; the training loss's are near 1e-2 at first."""


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Adds this subcommand's parser."""
    parser = subparsers.add_parser(
        "shift",
        help="show that a shift of the data acts like one of the weights",
        description="Compares the minima of training and test loss of a small network on digits.",
        epilog=_EPILOG,
    )
    _add_data_arguments(parser)
    parser.add_argument(
        "--trials",
        type=whole_number(3, MOST_TRIALS),
        default=100,
        metavar="N",
        help="shares eta = 1/N, 2/N, ..., 1 (default: %(default)s)",
    )
    parser.add_argument(
        "--mixture",
        choices=("weighted", "drawn"),
        default="weighted",
        help="weight training and test loss by 1 - eta and eta, or draw such shares of the examples"
        " (default: %(default)s)",
    )
    parser.add_argument(
        "--weight-decay",
        type=positive,
        default=0.05,
        metavar="X",
        help="X / 2 times the squared length of the weights is part of the loss"
        " (default: %(default)s)",
    )
    parser.add_argument(
        "--max-steps",
        type=count,
        default=2000,
        metavar="N",
        help="L-BFGS steps to theta; a tenth for each trial (default: %(default)s)",
    )
    add_output_arguments(parser)
    parser.set_defaults(run=run)


def _add_data_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--data",
        type=Path,
        metavar="DIR",
        help="directory with MNIST's IDX files (default: scikit-learn's digits)",
    )
    parser.add_argument(
        "--max-examples",
        type=count,
        default=3000,
        metavar="N",
        help="the first N images at most of training and test set (default: %(default)s)",
    )
    parser.add_argument(
        "--seed",
        type=seed,
        default=1,
        help="seed of weights and draws (default: %(default)s)",
    )


def run(args: argparse.Namespace) -> int:
    """Trains, measures, prints, writes."""
    check_output_arguments(args)
    digits = _read(args)
    try:
        result = _measure(args, digits)
    except (FloatingPointError, ValueError) as error:
        raise CommandError(f"--weight-decay {args.weight_decay:g}: {error}") from error
    _print(args, digits, result)
    figures = {**_settings(args, digits), **_figures(result)}
    write_results(args, figures, lambda path: _plot(result, path))
    return 0


def _read(args: argparse.Namespace) -> Digits:
    from fairseq_sam.analysis import digits

    try:
        if args.data is not None:
            found = digits.read_mnist(args.data)
        else:
            found = digits.sklearn_digits(seed=args.seed)
    except ImportError as error:
        raise CommandError(
            f"without --data it needs scikit-learn ({error}): pip install scikit-learn"
        ) from error
    return digits.Digits(*(_first(examples, args.max_examples) for examples in found))


def _first(examples: Examples, number: int) -> Examples:
    return type(examples)(examples.inputs[:number], examples.labels[:number])


def _measure(args: argparse.Namespace, digits: Digits) -> ShiftSummary:
    import torch

    from fairseq_sam.analysis import digit_network, shift

    network = digit_network.small_network(digits.train.inputs.shape[1], args.seed)
    if args.mixture == "drawn":
        generator = torch.Generator().manual_seed(args.seed)
        mixture = digit_network.drawn_mixture(network, digits, args.weight_decay, generator)
    else:
        mixture = shift.weighted_mixture(
            *(digit_network.digit_loss(network, examples, args.weight_decay) for examples in digits)
        )
    trials = shift.ShiftTrials(list(network.parameters()), mixture, args.max_steps, TOLERANCE)
    shares = [trial / args.trials for trial in range(1, args.trials + 1)]
    found = progress(trials.lengths(shares), args.trials, "trial", "training")
    return trials.summarise(found)


def _print(args: argparse.Namespace, digits: Digits, result: ShiftSummary) -> None:
    fit, alphas = result.fit, result.curves.alphas
    source = args.data or "scikit-learn's digits"
    print(
        f"{source}: {len(digits.train.labels)} training and {len(digits.test.labels)} test images"
    )
    print(f"correlation with the test loss for alpha from {alphas[0]:g} to {alphas[-1]:g}")
    print(f"  shifted training loss  {result.correlation:7.4f}")
    print(f"  training loss          {result.unshifted_correlation:7.4f}")
    print(f"length of delta over {len(result.shares)} shares eta ({args.mixture})")
    print(f"  fitted line            {fit.intercept:.4f} + {fit.slope:.4f} eta")
    print(f"  R^2                    {fit.r_squared:7.4f}")
    if result.largest_gradient > TOLERANCE:
        print(
            f"fairseq-sam shift: warning: a gradient entry of {result.largest_gradient:.1e} is left"
            f" (aim: {TOLERANCE:.0e}): try larger --max-steps or --weight-decay",
            file=sys.stderr,
        )


def _settings(args: argparse.Namespace, digits: Digits) -> Dict[str, Any]:
    return {
        "data": None if args.data is None else str(args.data),
        "num_train": len(digits.train.labels),
        "num_test": len(digits.test.labels),
        "trials": args.trials,
        "mixture": args.mixture,
        "weight_decay": args.weight_decay,
        "seed": args.seed,
        "unit": "nats per example",
    }


def _figures(result: ShiftSummary) -> Dict[str, Any]:
    figures = result._asdict()
    return {**figures, "curves": result.curves._asdict(), "fit": result.fit._asdict()}


def _plot(result: ShiftSummary, path: Path) -> None:
    from fairseq_sam.reporting.shift_plot import write_shift_plot

    write_shift_plot(result.curves, result.shares, result.lengths, result.fit, path)
