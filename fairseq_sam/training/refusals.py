"""What cannot be perturbed, and is refused with one line where a run's first step shows it."""

import functools
from typing import NoReturn

import torch
from fairseq import criterions
from fairseq.modules.base_layer import BaseLayer
from torch import nn

from fairseq_sam.training.configuration import SharpnessAwareConfig
from fairseq_sam.training.flags import require_sentences


def stop(reason: str) -> NoReturn:
    """Ends the run, past what fairseq's trainer does when a run crashes: nothing was trained."""
    raise SystemExit(f"error: {reason}") from None


def criterion_name(criterion: nn.Module) -> str:
    """Returns the name that a criterion is registered under."""
    names = (n for n, cls in criterions.CRITERION_REGISTRY.items() if cls is type(criterion))
    return str(next(names, type(criterion).__name__))


def refuse_criterion(criterion: nn.Module, config: SharpnessAwareConfig) -> None:
    """Refuses a criterion that does not go with the method."""
    name = criterion_name(criterion)
    if config.perturbation.needs_sentences:
        try:
            require_sentences(type(criterion), name)
        except ValueError as error:
            stop(str(error))
    if config.perturbation.per_instance and getattr(criterion, "couples_sentences", False):
        stop(
            f"argument --criterion: {name} needs the other sentences of the batch: it cannot be "
            "perturbed sentence by sentence"
        )
    if config.perturbation.per_instance and not _logs_can_be_summed(criterion):
        stop(
            f"argument --criterion: what {name} logs cannot be summed, as where losses are means: "
            "it cannot be perturbed sentence by sentence"
        )


def _logs_can_be_summed(criterion: nn.Module) -> bool:
    """Returns what a criterion says; of one that says nothing fairseq assumes the worst."""
    silent = (None, criterions.FairseqCriterion.logging_outputs_can_be_summed)
    said = getattr(type(criterion), "logging_outputs_can_be_summed", None)
    if said in silent:
        return True
    try:
        return bool(criterion.logging_outputs_can_be_summed())  # type: ignore[operator]
    except AttributeError:  # wav2vec's knows after its first pass: only where it runs on a TPU
        return False


def refuse_collectives(model: nn.Module) -> None:
    """Refuses a model whose workers wait for each other in forward, once for each sentence.

    They would wait for ever: their mini-batches have different numbers of sentences.
    """
    waiting = [m for m in model.modules() if isinstance(m, (nn.SyncBatchNorm, BaseLayer))]
    if waiting and is_distributed():
        stop(
            f"argument --optimizer: the workers of a model with {type(waiting[0]).__name__} must "
            "have equally many passes: it cannot be perturbed sentence by sentence on several"
        )


def refuse_checkpointing(model: nn.Module) -> None:
    """Refuses a model of which a part is to be called without the perturbation.

    Raises:
        SystemExit: with one line, where the model recomputes its activations in the backward pass.
            By then its weights are perturbed, and the gradient would be wrong.
    """
    for module in model.modules():
        forward = module.__dict__.get("forward")
        if isinstance(forward, functools.partial) and "checkpoint" in forward.func.__name__:
            stop(
                "argument --checkpoint-activations: it does not go with --mirror-perturb one, "
                "where one view is computed without the perturbation"
            )


def is_distributed() -> bool:
    """Whether there are several workers."""
    return torch.distributed.is_available() and torch.distributed.is_initialized()
