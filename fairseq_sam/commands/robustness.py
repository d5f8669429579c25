"""``fairseq-sam robustness``: how trained models stand corrupted parameters."""

from __future__ import annotations

import argparse
import json
import math
from functools import partial
from typing import TYPE_CHECKING, Any, ContextManager, Dict, Iterator, List, Sequence, Tuple

from fairseq_sam.commands.checkpoint_data import (
    add_batch_arguments,
    add_checkpoint_arguments,
    add_data_arguments,
    explaining,
    load_dataset_loss,
    prepare,
)
from fairseq_sam.commands.figures import add_output_arguments, write_results
from fairseq_sam.commands.progress import progress
from fairseq_sam.flags.number_types import num_draws, num_steps, radii
from fairseq_sam.reporting.numbers import told_apart
from fairseq_sam.reporting.robustness_plot import write_robustness_plot
from fairseq_sam.reporting.robustness_table import robustness_tables

if TYPE_CHECKING:
    from fairseq_sam.analysis.dataset_loss import DatasetLoss
    from fairseq_sam.evaluation.trained_model import TrainedModel

_BEAM = '{"beam": 5, "max_len_a": 1.2, "max_len_b": 10}'

_EPILOG = """\
examples:
  fairseq-sam robustness data-bin checkpoints/checkpoint_best.pt --radii 0.05,0.1,0.2
  fairseq-sam robustness data-bin adam/average.pt ga_sam/average.pt --subset test --norm linf \\
      --radii 1e-4,2e-4,5e-4 --bleu --eval-bleu-remove-bpe --json linf.json --plot linf.pdf
  fairseq-sam robustness data-bin checkpoint_best.pt --corruption random --radii 1,5 --draws 10

Moves all parameters by exactly each radius and validates the model there (GA-SAM, Table 4).
Adversarial: projected gradient ascent on the mean loss of all the sentences, K steps of 1.5 radius
/ K; the sentences are those that are scored. Random: a normal direction (l2) or signs (linf), the
same for all radii and checkpoints; mean and standard error over draws. Losses are in nats, without
dropout. BLEU is that of fairseq's validation, on tokenised text (and, without
--eval-bleu-remove-bpe, on subwords): compare it within a table only. Checkpoints are only read.
"""

_Measured = Tuple[float, float, Dict[str, float]]
"""Radius asked for (0 without corruption), measured, and the scores there."""


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Adds this subcommand's parser."""
    parser = subparsers.add_parser(
        "robustness",
        help="measure how checkpoints stand corrupted parameters",
        description="Measures loss and task score after moving the parameters by given radii.",
        epilog=_EPILOG,
    )
    add_checkpoint_arguments(parser)
    _add_corruption_arguments(parser)
    _add_bleu_arguments(parser)
    add_data_arguments(parser)
    add_batch_arguments(parser)
    add_output_arguments(parser)
    parser.set_defaults(run=run)


def _add_corruption_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--radii", type=radii, required=True, metavar="R,R,...", help="radii, joined by commas"
    )
    parser.add_argument(
        "--norm",
        choices=("l2", "linf"),
        default="l2",
        help="norm of the radii, over all parameters together (default: %(default)s)",
    )
    parser.add_argument(
        "--corruption",
        choices=("adversarial", "random"),
        default="adversarial",
        help="the worst direction, or any (default: %(default)s)",
    )
    parser.add_argument(
        "--steps",
        type=num_steps,
        default=10,
        metavar="K",
        help="gradient steps of an adversarial corruption (default: %(default)s)",
    )
    parser.add_argument(
        "--draws",
        type=num_draws,
        default=5,
        metavar="N",
        help="random corruptions to average over (default: %(default)s)",
    )


def _add_bleu_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--bleu", action="store_true", help="translate too, and measure BLEU")
    parser.add_argument(
        "--eval-bleu-args",
        type=_json_object,
        default=_BEAM,
        metavar="JSON",
        help="how to translate, as for fairseq-train (default: %(default)s)",
    )
    parser.add_argument(
        "--eval-bleu-remove-bpe",
        nargs="?",
        const="@@ ",
        metavar="SYMBOL",
        help="put subwords together before measuring, as for fairseq-train (default symbol: '@@ ')",
    )


def _json_object(text: str) -> str:
    try:
        content = json.loads(text)
    except ValueError:
        content = None
    if not isinstance(content, dict):
        raise argparse.ArgumentTypeError(f"{text!r} is not a JSON object")
    return text


def run(args: argparse.Namespace) -> int:
    """Measures, prints, writes."""
    names = prepare(args)
    measured = [_measure(args, path, name) for path, name in zip(args.checkpoints, names)]
    (about, _), *_ = measured
    for word in ("criterion", "unit"):
        about[word] = told_apart({each["name"]: found[word] for found, each in measured})
    figures = {**_settings(args), **about, "checkpoints": [each for _, each in measured]}
    print(robustness_tables(figures), end="")
    write_results(args, figures, partial(write_robustness_plot, figures))
    return 0


def _measure(
    args: argparse.Namespace, checkpoint: str, name: str
) -> Tuple[Dict[str, Any], Dict[str, Any]]:
    """Returns what is said of the data, and a checkpoint's figures."""
    from fairseq_sam.evaluation import task_scores
    from fairseq_sam.training.samples import num_sentences

    overrides: Dict[str, Any] = {"eval_bleu": False}
    if args.bleu:
        overrides = task_scores.bleu_overrides(args.eval_bleu_args, args.eval_bleu_remove_bpe)
    trained, loss = load_dataset_loss(args, checkpoint, overrides)
    if args.bleu:
        task_scores.check_measures_bleu(trained)
    total = 1 + len(args.radii) * (args.draws if args.corruption == "random" else 1)
    with explaining(checkpoint, args.data):
        points = progress(_points(args, trained, loss), total, "corruption", name)
        about = {
            "criterion": getattr(trained.cfg.criterion, "_name", None),
            "unit": task_scores.loss_unit(loss),
        }
        count = sum(map(num_sentences, loss.samples))
    figures = {"checkpoint": checkpoint, "name": name, "num_sentences": count}
    return about, {**figures, **_summary(points)}


def _points(
    args: argparse.Namespace, trained: TrainedModel, loss: DatasetLoss
) -> Iterator[_Measured]:
    from fairseq_sam.evaluation.task_scores import task_scores

    yield 0.0, 0.0, task_scores(trained, loss.criterion, loss.samples)
    for radius in args.radii:
        for corruption in _corruptions(args, loss, radius):
            try:
                with corruption as length:
                    scores = task_scores(trained, loss.criterion, loss.samples)
            except FloatingPointError as error:
                raise FloatingPointError(f"{error} at the radius {radius:g}") from error
            yield radius, length, scores


def _corruptions(
    args: argparse.Namespace, loss: DatasetLoss, radius: float
) -> Iterator[ContextManager[float]]:
    from fairseq_sam.analysis.corruption import adversarial_corruption, random_corruption

    if args.corruption == "adversarial":
        yield adversarial_corruption(loss, radius, args.norm, args.steps)
        return
    for draw in range(args.draws):
        yield random_corruption(loss.weights, radius, args.norm, args.seed + draw)


def _summary(points: Sequence[_Measured]) -> Dict[str, Any]:
    from fairseq_sam.analysis.adversarial_risk import estimate

    (_, _, clean), *corrupted = points
    by_radius: Dict[float, List[_Measured]] = {}
    for point in corrupted:
        by_radius.setdefault(point[0], []).append(point)
    rows: List[Dict[str, Any]] = []
    for radius, draws in by_radius.items():
        row: Dict[str, Any] = {"radius": radius, "measured_radius": [each for _, each, _ in draws]}
        for metric in clean:
            mean, error = estimate([scores[metric] for _, _, scores in draws])
            row[metric] = {"mean": _finite(mean), "standard_error": _finite(error)}
        rows.append(row)
    return {"clean": {name: _finite(value) for name, value in clean.items()}, "corrupted": rows}


def _finite(value: Any) -> Any:
    """JSON has no infinity (a perplexity, say)."""
    return value if value is not None and math.isfinite(value) else None


def _settings(args: argparse.Namespace) -> Dict[str, Any]:
    settings: Dict[str, Any] = {
        "data": args.data,
        "subset": args.subset,
        "corruption": args.corruption,
        "norm": args.norm,
    }
    if args.corruption == "adversarial":
        settings["steps"] = args.steps
    else:
        settings.update(draws=args.draws, seed=args.seed)
    if args.bleu:
        settings.update(eval_bleu_args=args.eval_bleu_args, remove_bpe=args.eval_bleu_remove_bpe)
    return settings
