"""``fairseq-sam landscape``: the loss around a trained model, and its m-sharpness."""

from __future__ import annotations

import argparse
from functools import partial
from typing import TYPE_CHECKING, Any, Dict, List, Optional

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
from fairseq_sam.commands.refusals import CommandError
from fairseq_sam.flags.number_types import count, num_points, positive, radii, whole_number
from fairseq_sam.reporting.landscape_plot import write_landscape_plot
from fairseq_sam.reporting.landscape_table import landscape_tables
from fairseq_sam.reporting.numbers import told_apart

if TYPE_CHECKING:
    from fairseq_sam.analysis.dataset_loss import DatasetLoss
    from fairseq_sam.evaluation.trained_model import TrainedModel

_EPILOG = """\
examples:
  fairseq-sam landscape data-bin checkpoints/checkpoint_best.pt --plot line.pdf
  fairseq-sam landscape data-bin checkpoint_best.pt --dimensions 2 --max-sentences 200 --plot 2d.pdf
  fairseq-sam landscape data-bin adam/average.pt ga_sam/average.pt --points 41 --json between.json
  fairseq-sam landscape data-bin checkpoint_best.pt --dimensions 0 --m-sharpness 0.01,0.05 --m 16

Around one checkpoint: L(w + x d), and with two dimensions L(w + x d + y e), in random directions
whose filters are as long as those of the weights, biases and normalisations staying put (Li et al.
2018). With two checkpoints x runs from the first (0) to the second (1) in a straight line, -0.5 to
1.5, and y is a random direction as before. m-sharpness: the mean over random mini-batches of m
sentences of max L_B(w + a) - L_B(w), ||a|| <= radius, by one ascent step (Foret et al. 2021).
Losses are in nats, without dropout. The checkpoints are only read.
"""


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Adds this subcommand's parser."""
    parser = subparsers.add_parser(
        "landscape",
        help="map the loss around a checkpoint or between two; m-sharpness",
        description="Evaluates the loss on a line or a plane through trained weights.",
        epilog=_EPILOG,
    )
    add_checkpoint_arguments(
        parser, "one of fairseq-train, or two of the same model; any number with --dimensions 0"
    )
    _add_grid_arguments(parser)
    _add_sharpness_arguments(parser)
    add_data_arguments(parser)
    add_batch_arguments(parser)
    add_output_arguments(parser)
    parser.set_defaults(run=run, misuse=parser.error)


def _add_grid_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--dimensions",
        type=whole_number(0, 2),
        metavar="{0,1,2}",
        default=1,
        help="a line, a plane, or neither (default: %(default)s)",
    )
    parser.add_argument(
        "--points",
        type=num_points,
        metavar="N",
        help="points of each dimension, 2 at least (default: 21 of a line, 11 of a plane)",
    )
    parser.add_argument(
        "--span",
        type=positive,
        default=1.0,
        metavar="R",
        help="random directions run from -R to R (default: %(default)s)",
    )


def _add_sharpness_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--m-sharpness", type=radii, default=(), metavar="R,R,...", help="at these radii, too"
    )
    parser.add_argument(
        "--m",
        type=count,
        default=16,
        metavar="M",
        help="sentences in a mini-batch of m-sharpness (default: %(default)s)",
    )


def run(args: argparse.Namespace) -> int:
    """Measures, prints, writes."""
    if args.dimensions == 0 and not args.m_sharpness:
        raise CommandError("--dimensions 0 leaves nothing to do without --m-sharpness")
    if args.dimensions and len(args.checkpoints) > 2:
        args.misuse(
            f"a line or plane goes through 2 CHECKPOINTs at most, not {len(args.checkpoints)}"
        )
    figures = _measure(args, prepare(args))
    print(landscape_tables(figures), end="")
    write_results(args, figures, partial(write_landscape_plot, figures))
    return 0


def _measure(args: argparse.Namespace, names: List[str]) -> Dict[str, Any]:
    from fairseq_sam.evaluation.task_scores import loss_unit
    from fairseq_sam.training.samples import num_sentences

    paths = args.checkpoints
    loaded = [load_dataset_loss(args, path) for path in paths]
    _, loss = loaded[0]
    # A surface is all of the first one's criterion.
    own = list(zip(names, paths, loaded if args.m_sharpness else loaded[:1]))
    figures: Dict[str, Any] = {
        "data": args.data,
        "subset": args.subset,
        "checkpoints": paths,
        "names": names,
        "criterion": told_apart(
            {name: str(each.cfg.criterion._name) for name, _, (each, _) in own}
        ),
        "seed": args.seed,
    }
    units = {}
    for name, path, (_, each) in own:
        with explaining(path, args.data):
            units[name] = loss_unit(each)
    figures["unit"] = told_apart(units)
    figures["num_sentences"] = sum(map(num_sentences, loss.samples))
    if args.dimensions:
        end = _matching(loss, loaded[1][1], paths) if len(loaded) > 1 else None
        figures["surface"] = _surface(args, loss, end)
    if args.m_sharpness:
        figures["m"] = args.m
        figures["m_sharpness"] = [
            {"checkpoint": path, "name": name, **_sharpness(args, path, name, *each)}
            for path, name, each in zip(paths, figures["names"], loaded)
        ]
    return figures


def _matching(loss: DatasetLoss, other: DatasetLoss, paths: List[str]) -> DatasetLoss:
    """Refuses two different models."""
    shapes, others = (
        {name: tuple(w.shape) for name, w in zip(each.names, each.weights)}
        for each in (loss, other)
    )
    for name in [*shapes, *others]:
        if shapes.get(name) != others.get(name):
            raise CommandError(f"{paths[1]}: another model than {paths[0]} (they differ in {name})")
    return other


def _surface(
    args: argparse.Namespace, loss: DatasetLoss, end: Optional[DatasetLoss]
) -> Dict[str, Any]:
    from fairseq_sam.analysis import landscape

    points = args.points or {1: 21, 2: 11}[args.dimensions]
    directions, axes, labels = [], [], []
    if end is not None:
        directions.append(landscape.difference(loss.weights, end.weights))
        axes.append(landscape.grid(-0.5, 1.5, points))
        labels.append("position between the checkpoints (0 the first, 1 the second)")
    for number in range(args.dimensions - len(directions)):
        directions.append(landscape.filter_normalised_direction(loss.weights, args.seed + number))
        axes.append(landscape.grid(-args.span, args.span, points))
        labels.append(f"filter-normalised direction {number + 1}")
    with explaining(args.checkpoints[0], args.data):
        walk = landscape.surface(loss, directions, axes)
        losses = progress(walk, points**args.dimensions, "point", "surface")
    return {"labels": labels, "axes": axes, "losses": _nested(losses, points, args.dimensions)}


def _nested(losses: List[float], points: int, dimensions: int) -> List[Any]:
    """Returns the losses as [x] or [x, y]; None where they are infinite, which JSON has not."""
    values = [None if value == float("inf") else value for value in losses]
    if dimensions == 1:
        return values
    return [values[i : i + points] for i in range(0, len(values), points)]


def _sharpness(
    args: argparse.Namespace, path: str, name: str, trained: TrainedModel, loss: DatasetLoss
) -> Dict[str, Any]:
    from fairseq_sam.analysis.adversarial_risk import estimate
    from fairseq_sam.analysis.m_sharpness import batch_sharpness

    batches = _batches(args, trained, loss)
    rows = []
    for radius in args.m_sharpness:
        with explaining(path, args.data):
            found = progress(
                batch_sharpness(batches, radius),
                len(batches.samples),
                "mini-batch",
                f"{name}, radius {radius:g}",
            )
        mean, error = estimate(found)
        rows.append({"radius": radius, "mean": mean, "standard_error": error})
    return {"num_batches": len(batches.samples), "radii": rows}


def _batches(args: argparse.Namespace, trained: TrainedModel, loss: DatasetLoss) -> DatasetLoss:
    from fairseq_sam.analysis.dataset_loss import DatasetLoss
    from fairseq_sam.commands.quiet import only_warnings
    from fairseq_sam.evaluation.sentences import sentence_batches
    from fairseq_sam.evaluation.trained_model import LoadError

    try:
        with only_warnings():
            samples = sentence_batches(
                trained, args.subset, args.m, args.max_sentences, args.seed, args.skip_too_long
            )
    except LoadError as error:
        raise CommandError(f"--m {args.m}: {error}") from error
    return DatasetLoss(loss.model, loss.criterion, samples)
