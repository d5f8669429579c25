"""``fairseq-sam spectrum``: eigenvalues, trace and density of the Hessian and of the Fisher."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any, Dict, List

from fairseq_sam.commands.checkpoint_data import (
    add_batch_arguments,
    add_checkpoint_arguments,
    add_data_arguments,
    checkpoint_names,
    prepare,
)
from fairseq_sam.commands.figures import add_output_arguments, write_results
from fairseq_sam.commands.spectrum_measurement import CheckpointSpectrum, measure_spectrum
from fairseq_sam.flags.number_types import count, num_draws, positive

_EPILOG = """\
examples:
  fairseq-sam spectrum data-bin checkpoints/checkpoint_best.pt --max-sentences 100
  fairseq-sam spectrum data-bin adam.pt ga_sam.pt --max-sentences 500 --plot spectrum.pdf
  fairseq-sam spectrum data-bin adam.pt --matrix empirical-fisher --json fisher.json

Every matrix is that of the mean loss per unit (token, or sentence in classification), in nats, at
the checkpoint's weights and without dropout:
  hessian            second derivatives, by products with vectors that go forward and twice
                     backward through the data; eigenvalues by Lanczos (scipy's eigsh), trace by
                     Hutchinson's random signs, whose standard error is given
  empirical-fisher   sum over sentences of the outer product of the loss's gradient, over the number
                     of units: the Hessian "under the Fisher assumption" (GA-SAM Fig. 3)
  fisher             Monte Carlo: the same with labels that the model draws (--samples a sentence),
                     each given the data's context; translation, language models, masked ones and
                     classification. No label smoothing: the likelihood is the model's

Tolerance: each of the Hessian's eigenvalues is within T times its own size of a true one, beside
the rounding of float32 (about 1e-6 of the largest). The Fishers are decomposed exactly (but for
the same rounding) through the Gram matrix of the gradients.

Cost: the Hessian's k largest take about 3k to 10k products; a product costs as much as 2 to 3
gradients of the data. Memory for 2k+1 vectors as large as the weights, or if need be for 1.2k: 100M
weights and --top 50 take 26 to 42 GB, --top 10 takes 8 to 10 GB. The Fisher takes a gradient for
each sentence and draw, or several where not all of them fit into memory at a time.
"""

MATRICES = ("hessian", "empirical-fisher", "fisher")
_TITLES = {"hessian": "Hessian", "empirical-fisher": "empirical Fisher", "fisher": "Fisher"}


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Adds this subcommand's parser."""
    parser = subparsers.add_parser(
        "spectrum",
        help="measure the curvature of checkpoints: eigenvalues and trace",
        description="Measures the largest eigenvalues and the trace of the Hessian or the Fisher.",
        epilog=_EPILOG,
    )
    add_checkpoint_arguments(parser)
    _add_matrix_arguments(parser)
    add_data_arguments(parser)
    add_batch_arguments(parser)
    add_output_arguments(parser)
    parser.set_defaults(run=run)


def _add_matrix_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--matrix", choices=MATRICES, default="hessian", help="which (default: %(default)s)"
    )
    parser.add_argument(
        "--top",
        type=count,
        default=50,
        metavar="K",
        help="how many of the largest eigenvalues (default: %(default)s)",
    )
    parser.add_argument(
        "--tolerance",
        type=positive,
        default=1e-3,
        metavar="T",
        help="relative error of the Hessian's eigenvalues (default: %(default)s)",
    )
    parser.add_argument(
        "--trace-samples",
        type=num_draws,
        default=30,
        metavar="N",
        help="random vectors for the Hessian's trace (default: %(default)s)",
    )
    parser.add_argument(
        "--samples",
        type=num_draws,
        default=2,
        metavar="N",
        help="draws of each sentence's labels for --matrix fisher (default: %(default)s)",
    )
    parser.add_argument(
        "--density", action="store_true", help="measure where all the eigenvalues lie as well"
    )


def run(args: argparse.Namespace) -> int:
    """Measures, prints, writes."""
    names = prepare(args)
    results = [measure_spectrum(args, *each) for each in zip(args.checkpoints, names)]
    _print(args, results)
    write_results(args, _figures(args, results), lambda path: _plot(args, results, path))
    return 0


_RANKS = (1, 2, 3, 5, 10, 20, 30, 50, 100)


def _print(args: argparse.Namespace, results: List[CheckpointSpectrum]) -> None:
    title = _TITLES[args.matrix]
    for result in results:
        values = result.spectrum.eigenvalues
        print(
            f"{result.checkpoint}, {args.subset}: {result.num_sentences} sentences, "
            f"{result.num_weights} weights, loss {result.loss:.4f}"
        )
        print(f"{title} of the loss, nats per unit ({_accuracy(args)})")
        print(f"{'trace':<16}{result.spectrum.trace.mean:12.5g}  {_error(result)}")
        for rank in (rank for rank in _RANKS if rank <= len(values)):
            print(f"{f'eigenvalue {rank}':<16}{values[rank - 1]:12.5g}")


def _accuracy(args: argparse.Namespace) -> str:
    if args.matrix == "hessian":
        return f"eigenvalues to a tolerance of {args.tolerance:g}"
    return "Monte Carlo" if args.matrix == "fisher" else "exact but for rounding"


def _error(result: CheckpointSpectrum) -> str:
    error = result.spectrum.trace.standard_error
    if error == 0:
        return "exact"
    return "standard error " + ("unknown" if error is None else f"{error:.3g}")


def _figures(args: argparse.Namespace, results: List[CheckpointSpectrum]) -> Dict[str, Any]:
    hessian, drawn = args.matrix == "hessian", args.matrix == "fisher"
    return {
        "data": args.data,
        "subset": args.subset,
        "criterion": args.criterion,
        "matrix": args.matrix,
        "unit": "nats per unit",
        "tolerance": args.tolerance if hessian else None,
        "trace_samples": args.trace_samples if hessian else None,
        "samples": args.samples if drawn else None,
        "seed": args.seed,
        "checkpoints": [_result_figures(result) for result in results],
    }


def _result_figures(result: CheckpointSpectrum) -> Dict[str, Any]:
    spectrum = result.spectrum
    figures = {
        "checkpoint": result.checkpoint,
        "loss": result.loss,
        "num_weights": result.num_weights,
        "num_sentences": result.num_sentences,
        "sample_size": result.sample_size,
        "trace": {"mean": spectrum.trace.mean, "standard_error": spectrum.trace.standard_error},
        "eigenvalues": spectrum.eigenvalues.tolist(),
    }
    if spectrum.density is not None:
        figures["density"] = {
            "nodes": spectrum.density.nodes.tolist(),
            "weights": spectrum.density.weights.tolist(),
        }
    return figures


def _plot(args: argparse.Namespace, results: List[CheckpointSpectrum], path: Path) -> None:
    from fairseq_sam.analysis.spectral_density import smooth, smoothing_width
    from fairseq_sam.reporting.spectrum_plot import write_spectrum_plot

    names = checkpoint_names(args.checkpoints)
    spectra = {name: r.spectrum.eigenvalues.tolist() for name, r in zip(names, results)}
    found = [r.spectrum.density for r in results if r.spectrum.density is not None]
    densities = {name: smooth(each, smoothing_width(found)) for name, each in zip(names, found)}
    write_spectrum_plot(spectra, densities, _TITLES[args.matrix], path)
