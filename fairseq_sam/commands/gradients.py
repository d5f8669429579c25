"""``fairseq-sam gradients``: gradient norms by layer and phase, and the scales T that follow."""

from __future__ import annotations

import argparse
import statistics
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Dict, List, NamedTuple, Optional, Sequence

from fairseq_sam.commands.checkpoint_data import (
    add_batch_arguments,
    add_data_arguments,
    check_input_arguments,
    checkpoint_names,
    explaining,
    load_dataset_loss,
    load_plugins,
)
from fairseq_sam.commands.figures import (
    add_output_arguments,
    check_output_arguments,
    write_results,
)
from fairseq_sam.commands.progress import progress
from fairseq_sam.commands.refusals import CommandError
from fairseq_sam.reporting.logged_gradients import LoggedNorms, layers_of, logged_norms
from fairseq_sam.reporting.runs import read_run

if TYPE_CHECKING:
    from fairseq_sam.analysis.gradient_norms import LayerNorms, TensorNorms

_EPILOG = """\
examples:
  fairseq-sam gradients data-bin checkpoints/checkpoint_best.pt
  fairseq-sam gradients data-bin checkpoint1.pt checkpoint5.pt checkpoint20.pt --plot norms.pdf
  fairseq-sam gradients data-bin runs/adam/checkpoint_last.pt --run runs/adam --json norms.json
  fairseq-sam gradients --run runs/adam

A run tells the norm of its whole gradient epoch by epoch, and one trained with
--sam-log-gradients N (of any --optimizer here; --sam-rho 0 is the base optimizer alone) those of
its layers as well: of the loss that was minimised, per unit, with dropout, before clipping.

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
    )
    parser.add_argument(
        "data", nargs="?", metavar="DATA", help="the binarised data, as for fairseq-train"
    )
    parser.add_argument(
        "checkpoints", nargs="*", metavar="CHECKPOINT", help="checkpoints of fairseq-train"
    )
    parser.add_argument(
        "--run",
        dest="run_directory",
        type=Path,
        metavar="RUN_DIR",
        help="a run whose log (*.log) tells the norms of the gradient in each epoch; needs neither "
        "DATA nor CHECKPOINT",
    )
    parser.add_argument(
        "--tensors", action="store_true", help="print every tensor with its scales as well"
    )
    add_data_arguments(parser)
    add_batch_arguments(parser, "larger ones have smaller gradients")
    add_output_arguments(parser)
    parser.set_defaults(run=run, misuse=parser.error)


def run(args: argparse.Namespace) -> int:
    """Measures, prints, writes."""
    if not args.checkpoints and (args.data is not None or args.run_directory is None):
        args.misuse("DATA and at least one CHECKPOINT are needed, or --run")
    check_output_arguments(args)
    logged = _logged_norms(args.run_directory)
    results = []
    if args.checkpoints:
        load_plugins(args.user_dir)
        check_input_arguments(args)
        names = checkpoint_names(args.checkpoints)
        results = [_measure(args, *each) for each in zip(args.checkpoints, names)]
    for result in results:
        _print(args, result)
    if logged:
        _print_logged(args.run_directory, logged)
    figures = _figures(args, results, logged)
    write_results(args, figures, lambda path: _plot(args, results, logged, path))
    return 0


def _logged_norms(directory: Optional[Path]) -> List[LoggedNorms]:
    """Returns the mean norms of each epoch's gradients, as logged."""
    if directory is None:
        return []
    logged = logged_norms(read_run(directory, directory.name, _pass_over).epochs)
    if not logged:
        raise CommandError(f"{directory}: no log in it tells gnorm, the norm of the gradient")
    return logged


def _pass_over(fault: str) -> None:
    print(f"fairseq-sam gradients: passed over: {fault}", file=sys.stderr)


def _measure(args: argparse.Namespace, checkpoint: str, name: str) -> _Result:
    from fairseq_sam.analysis.gradient_norms import GradientNorms, by_layer

    _, dataset = load_dataset_loss(args, checkpoint)
    norms = GradientNorms(dataset)
    with explaining(checkpoint, args.data):
        progress(norms.measure(), len(dataset.samples), "mini-batch", name)
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


def _print_logged(directory: Path, logged: Sequence[LoggedNorms]) -> None:
    """Prints a column an epoch, of at most eight epochs that span the run."""
    shown = [logged[i] for i in sorted({round(i * (len(logged) - 1) / 7) for i in range(8)})]
    layers = layers_of(logged)
    width = max(len(name) for name in ("whole gradient", *layers))
    print(f"{directory}: norm of the gradient by epoch, as logged in training")
    print(f"{'epoch':<{width}}  " + "  ".join(f"{epoch.epoch:>8}" for epoch in shown))
    for name in ("whole gradient", *layers):
        norms = [e.whole if name == "whole gradient" else e.layers.get(name) for e in shown]
        cells = ["–" if norm is None else f"{norm:.3g}" for norm in norms]
        print(f"{name:<{width}}  " + "  ".join(f"{cell:>8}" for cell in cells))


def _print_scales(result: _Result) -> None:
    """Prints the range of each T, and what it would be for gradients that are rounding noise."""
    from fairseq_sam.perturbation.ascent import MEMORYLESS

    live = [tensor for tensor in result.tensors if not tensor.is_noise]
    noise = [tensor for tensor in result.tensors if tensor.is_noise]
    print(f"{'scale T':<22}{'smallest':>10}  {'median':>10}  {'largest':>10}  without the floor")
    for name, scale in MEMORYLESS.items():
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
    from fairseq_sam.perturbation.ascent import MEMORYLESS

    width = max((len(tensor.name) for tensor in result.tensors), default=0)
    print(f"{'T of each tensor':<{width}}  " + "  ".join(f"{name:>20}" for name in MEMORYLESS))
    for tensor in result.tensors:
        mark = "  rounding noise" if tensor.is_noise else ""
        values = "  ".join(f"{tensor.scales[name]:>20.3g}" for name in MEMORYLESS)
        print(f"{tensor.name:<{width}}  {values}{mark}")


def _figures(
    args: argparse.Namespace, results: List[_Result], logged: List[LoggedNorms]
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
        "logged": [
            {"epoch": each.epoch, "gnorm": each.whole, "layers": each.layers} for each in logged
        ],
    }


def _plot(
    args: argparse.Namespace, results: List[_Result], logged: List[LoggedNorms], path: Path
) -> None:
    from fairseq_sam.reporting.gradients_plot import write_gradients_plot

    norms = {
        name: {layer.name: layer.strength for layer in result.layers}
        for name, result in zip(checkpoint_names(args.checkpoints), results)
    }
    last = results[-1].tensors if results else []
    scales = [(t.name, t.unfloored["gradient-strength"], t.is_noise) for t in last]
    write_gradients_plot(norms, scales, logged, path)
