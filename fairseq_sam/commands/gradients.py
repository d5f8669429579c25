"""``fairseq-sam gradients``: gradient norms by layer and phase, and the scales T that follow."""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path
from typing import TYPE_CHECKING, Any, Dict, List, NamedTuple, Optional, Tuple

from fairseq_sam.commands.checkpoint_data import (
    add_batch_arguments,
    add_data_arguments,
    add_output_arguments,
    check_output_arguments,
    explaining,
    load_dataset_loss,
    load_plugins,
    progress,
    write_figures,
)
from fairseq_sam.commands.checkpoint_names import checkpoint_names
from fairseq_sam.commands.errors import CommandError
from fairseq_sam.commands.plotting import explaining_plots

if TYPE_CHECKING:
    from fairseq_sam.analysis.gradient_norms import LayerNorms, TensorNorms

_EPILOG = """\
examples:
  fairseq-sam gradients data-bin checkpoints/checkpoint_best.pt
  fairseq-sam gradients data-bin checkpoint1.pt checkpoint5.pt checkpoint20.pt --out norms.pdf
  fairseq-sam gradients data-bin runs/adam/checkpoint_last.pt --run runs/adam --json norms.json

Checkpoints of several epochs show the phases of training (GA-SAM Fig. 4), layers the depth
(Fig. 5). Norms are L2, of the mean loss per unit (token, or sentence in classification) in nats,
without dropout: the root mean square over mini-batches, and for comparison the norm over the whole
data set, where the noise of mini-batches cancels. Here --max-tokens matters: larger mini-batches
have smaller gradients. Strength is the norm over the square root of the number of weights.

T is what --sam-scale makes of each tensor (granularity layer, --sam-loss-reduction mean). A tensor
whose gradient is rounding noise, such as the bias of the key projection, which a softmax ignores,
would get an enormous T where the gradient stands below the line; it gets 0 instead, and is listed.
"""


class _Result(NamedTuple):
    """A checkpoint's norms."""

    checkpoint: str
    tensors: List[TensorNorms]
    layers: List[LayerNorms]


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Adds this subcommand's parser."""
    parser = subparsers.add_parser(
        "gradients",
        help="measure gradient norms by layer, and the scales that follow",
        description="Measures gradient norms by layer and phase, and the scales T of each method.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("data", metavar="DATA", help="the binarised data, as for fairseq-train")
    parser.add_argument(
        "checkpoints", nargs="+", metavar="CHECKPOINT", help="checkpoints of fairseq-train"
    )
    parser.add_argument(
        "--run",
        dest="run_directory",
        type=Path,
        metavar="RUN_DIR",
        help="a run whose log (*.log) tells the norm of the whole gradient in each epoch",
    )
    parser.add_argument(
        "--tensors", action="store_true", help="print every tensor with its scales as well"
    )
    add_data_arguments(parser)
    add_batch_arguments(parser)
    add_output_arguments(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Measures, prints, writes."""
    check_output_arguments(args)
    epochs = _logged_norms(args.run_directory)
    load_plugins(args.user_dir)
    results = [_measure(args, checkpoint) for checkpoint in args.checkpoints]
    for result in results:
        _print(args, result)
    if epochs:
        print(f"{args.run_directory}: norm of the whole gradient by epoch, as fairseq logged it")
        print("  ".join(f"{epoch}: {norm:g}" for epoch, norm in epochs))
    if args.json is not None:
        write_figures(_figures(args, results, epochs), args.json)
    if args.out is not None:
        _plot(args, results, epochs)
    return 0


def _logged_norms(directory: Optional[Path]) -> List[Tuple[int, float]]:
    """Returns the epochs of a run and the mean norm of the gradient in each (before clipping)."""
    from fairseq_sam.reporting.runs import RunError, read_run

    if directory is None:
        return []
    try:
        run = read_run(directory, directory.name)
    except RunError as error:
        raise CommandError(str(error)) from error
    norms = [(e.epoch, e.train["gnorm"]) for e in run.epochs if "gnorm" in e.train]
    if not norms:
        raise CommandError(f"{directory}: no log in it tells gnorm, the norm of the gradient")
    return norms


def _measure(args: argparse.Namespace, checkpoint: str) -> _Result:
    from fairseq_sam.analysis.gradient_norms import GradientNorms, by_layer

    _, dataset = load_dataset_loss(args, checkpoint)
    norms = GradientNorms(dataset)
    with explaining(checkpoint, args.data):
        progress(norms.measure(), len(dataset.samples), "mini-batch")
        tensors = norms.tensors()
    return _Result(checkpoint, tensors, by_layer(tensors))


def _print(args: argparse.Namespace, result: _Result) -> None:
    width = max((len(layer.name) for layer in result.layers), default=0)
    print(f"{result.checkpoint}, {args.subset}: gradient in nats per unit, by layer")
    print(
        f"{'layer':<{width}}  {'weights':>10}  {'norm':>10}  {'strength':>10}  {'whole data':>10}"
    )
    for layer in result.layers:
        print(
            f"{layer.name:<{width}}  {layer.size:>10}  {layer.batch_norm:>10.3g}  "
            f"{layer.strength:>10.3g}  {layer.mean_norm:>10.3g}"
        )
    _print_scales(result)
    if args.tensors:
        _print_tensors(result)


def _print_scales(result: _Result) -> None:
    """Prints the range of each T, and what it would be for gradients that are rounding noise."""
    from fairseq_sam.perturbation.scales import SCALES

    live = [tensor for tensor in result.tensors if not tensor.is_noise]
    noise = [tensor for tensor in result.tensors if tensor.is_noise]
    print(f"{'scale T':<22}{'smallest':>10}  {'median':>10}  {'largest':>10}  without the floor")
    for name, scale in SCALES.items():
        values = [tensor.scales[name] for tensor in live] or [0.0]
        trapped = [tensor.unfloored[name] for tensor in noise] if scale.divides_by_gradient else []
        print(
            f"{name:<22}{min(values):>10.3g}  {statistics.median(values):>10.3g}  "
            f"{max(values):>10.3g}  {f'{max(trapped):.3g}' if trapped else 'the same'}"
        )
    if noise:
        print(f"gradient is rounding noise in {len(noise)} of {len(result.tensors)} tensors:")
        for tensor in noise:
            print(f"  {tensor.name} (norm {tensor.batch_norm:.3g})")


def _print_tensors(result: _Result) -> None:
    from fairseq_sam.perturbation.scales import SCALES

    width = max((len(tensor.name) for tensor in result.tensors), default=0)
    print(f"{'T of each tensor':<{width}}  " + "  ".join(f"{name:>20}" for name in SCALES))
    for tensor in result.tensors:
        mark = "  rounding noise" if tensor.is_noise else ""
        values = "  ".join(f"{tensor.scales[name]:>20.3g}" for name in SCALES)
        print(f"{tensor.name:<{width}}  {values}{mark}")


def _figures(
    args: argparse.Namespace, results: List[_Result], epochs: List[Tuple[int, float]]
) -> Dict[str, Any]:
    return {
        "data": args.data,
        "subset": args.subset,
        "criterion": args.criterion,
        "max_tokens": args.max_tokens,
        "unit": "nats per unit and weight",
        "checkpoints": [
            {
                "checkpoint": result.checkpoint,
                "layers": [
                    {**layer._asdict(), "strength": layer.strength} for layer in result.layers
                ],
                "tensors": [tensor._asdict() for tensor in result.tensors],
            }
            for result in results
        ],
        "logged": [{"epoch": epoch, "gnorm": norm} for epoch, norm in epochs],
    }


def _plot(
    args: argparse.Namespace, results: List[_Result], epochs: List[Tuple[int, float]]
) -> None:
    from fairseq_sam.reporting.gradients_plot import write_gradients_plot

    norms = {
        name: {layer.name: layer.strength for layer in result.layers}
        for name, result in zip(checkpoint_names(args.checkpoints), results)
    }
    last = [(t.name, t.unfloored["gradient-strength"], t.is_noise) for t in results[-1].tensors]
    with explaining_plots(args.out):
        write_gradients_plot(norms, last, epochs, args.out)
