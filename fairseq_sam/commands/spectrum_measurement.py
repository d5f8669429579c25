"""The measuring part of ``fairseq-sam spectrum``: from a checkpoint to its spectrum."""

from __future__ import annotations

import argparse
import os
import sys
from typing import TYPE_CHECKING, Any, Callable, Dict, List, NamedTuple, Optional

from fairseq_sam.commands.checkpoint_data import (
    explaining,
    load_dataset_loss,
    load_single_sentences,
)
from fairseq_sam.commands.progress import counting
from fairseq_sam.commands.refusals import CommandError

if TYPE_CHECKING:
    from torch import Tensor

    from fairseq_sam.analysis.dataset_loss import DatasetLoss
    from fairseq_sam.analysis.measured_spectrum import MeasuredSpectrum

# Activations that fairseq recomputes have gradients by .backward() only, and no second ones.
_KEEP_ACTIVATIONS = {"checkpoint_activations": False, "offload_activations": False}


class CheckpointSpectrum(NamedTuple):
    """A checkpoint's spectrum, and what it is of."""

    checkpoint: str
    spectrum: MeasuredSpectrum
    loss: float
    num_weights: int
    num_sentences: int
    sample_size: float


def measure_spectrum(args: argparse.Namespace, checkpoint: str, name: str) -> CheckpointSpectrum:
    """Loads a checkpoint and measures what the arguments ask for.

    Args:
        args: the command's.
        checkpoint: fairseq's file.
        name: what the progress bar calls it.

    Raises:
        FairseqSamError: something is missing, damaged, does not fit, or does not converge.
    """
    from fairseq_sam.analysis.eigenvalues import NotConverged

    measure = _measure_hessian if args.matrix == "hessian" else _measure_fisher
    try:
        with explaining(checkpoint, args.data):
            return measure(args, checkpoint, name)
    except NotConverged as error:
        raise CommandError(f"{checkpoint}: {error}") from error
    except MemoryError as error:
        raise CommandError(f"{checkpoint}: not enough memory: a smaller --top takes less") from (
            error
        )
    except ImportError as error:
        raise CommandError(f"the Hessian needs scipy ({error}): pip install scipy") from error


def _measure_hessian(args: argparse.Namespace, checkpoint: str, name: str) -> CheckpointSpectrum:
    from fairseq_sam.analysis.curvature import num_weights
    from fairseq_sam.analysis.measured_spectrum import (
        hessian_spectrum,
        loss_and_sample_size,
        memory_needed,
    )
    from fairseq_sam.training.samples import num_sentences

    _, dataset = load_dataset_loss(args, checkpoint, _KEEP_ACTIVATIONS)
    size, memory = num_weights(dataset.weights), free_memory()
    _check_top(args, checkpoint, size)
    _warn_of_memory(memory_needed(dataset, args.top, memory), memory)
    loss, sample_size = loss_and_sample_size(dataset)
    with counting("product", name) as after_each:
        spectrum = hessian_spectrum(
            dataset,
            args.top,
            args.tolerance,
            args.trace_samples,
            args.density,
            memory,
            args.seed,
            after_each,
        )
    sentences = sum(map(num_sentences, dataset.samples))
    return CheckpointSpectrum(checkpoint, spectrum, loss, size, sentences, sample_size)


def _measure_fisher(args: argparse.Namespace, checkpoint: str, name: str) -> CheckpointSpectrum:
    from fairseq_sam.analysis import fisher, measured_spectrum
    from fairseq_sam.analysis.curvature import num_weights, vector_type
    from fairseq_sam.analysis.dataset_loss import DatasetLoss

    drawn = args.matrix == "fisher"
    loaded = load_single_sentences(args, checkpoint, _KEEP_ACTIVATIONS)
    dataset = DatasetLoss(loaded.trained.model, loaded.criterion, list(loaded.samples))
    size, memory = num_weights(dataset.weights), free_memory()
    _check_top(args, checkpoint, size)
    loss, sample_size = measured_spectrum.loss_and_sample_size(dataset)
    with dataset.evaluating():
        losses = _drawn_losses(args, dataset) if drawn else _own_losses(dataset)
        held = fisher.rows_in_memory(size, vector_type(dataset.weights).itemsize, memory)
        held = min(held, len(losses))
        with counting("gradient", name, fisher.num_gradients(len(losses), held)) as after_each:
            spectrum = measured_spectrum.fisher_spectrum(
                dataset.weights,
                losses,
                sample_size,
                args.top,
                args.samples if drawn else 1,
                drawn,
                args.density,
                held,
                after_each,
            )
    return CheckpointSpectrum(checkpoint, spectrum, loss, size, len(dataset.samples), sample_size)


def _own_losses(dataset: DatasetLoss) -> List[Callable[[], Tensor]]:
    """Returns the losses of the data's own labels, one function a sentence."""
    criterion: Any = dataset.criterion

    def of(sample: Dict[str, Any]) -> Callable[[], Tensor]:
        return lambda: criterion.losses_only(dataset.model, sample).sum()

    return [of(sample) for sample in dataset.samples]


def _drawn_losses(args: argparse.Namespace, dataset: DatasetLoss) -> List[Callable[[], Tensor]]:
    """Returns the losses of drawn labels: all sentences once, all of them again, and so on."""
    import torch

    from fairseq_sam.criterions.drawn_labels import DRAWN, DrawnLabels

    criterion: Any = dataset.criterion
    try:
        drawing = DrawnLabels(criterion)
    except ValueError as error:
        raise CommandError(f"--matrix fisher: {error}") from error
    generator = torch.Generator().manual_seed(args.seed)

    def of(sample: Dict[str, Any]) -> Callable[[], Tensor]:
        labelled = {**sample, DRAWN: drawing.draw(dataset.model, sample, generator)}
        return lambda: drawing.losses_only(dataset.model, labelled)

    return [of(sample) for _ in range(args.samples) for sample in dataset.samples]


def _check_top(args: argparse.Namespace, checkpoint: str, size: int) -> None:
    if args.top > size:
        raise CommandError(f"--top {args.top}: {checkpoint} has only {size} weights")


def _warn_of_memory(needed: int, free: Optional[int]) -> None:
    if free is not None and needed > free:
        print(
            f"fairseq-sam spectrum: warning: the Lanczos vectors take {needed / 1e9:.1f} GB, and "
            f"{free / 1e9:.1f} GB are free: a smaller --top takes less",
            file=sys.stderr,
        )


def free_memory() -> Optional[int]:
    """Returns the bytes that could be had without swapping, None where the system does not say."""
    try:
        with open("/proc/meminfo", encoding="ascii") as lines:
            for line in lines:
                if line.startswith("MemAvailable:"):
                    return int(line.split()[1]) * 1024
    except OSError:
        pass
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
    except (AttributeError, OSError, ValueError):
        return None
