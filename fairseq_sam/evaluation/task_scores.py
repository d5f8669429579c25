"""What a task says of a model in validation: loss, perplexity, accuracy, BLEU."""

from __future__ import annotations

import contextlib
import logging
import math
from typing import Any, Dict, Iterator, List, Sequence, Tuple

from fairseq_sam.analysis.dataset_loss import DatasetLoss, evaluation_mode
from fairseq_sam.evaluation.trained_model import LoadError, TrainedModel

BLEU = "bleu_tokenised"
"""BLEU of the words as the data has them, which is not the one to publish (that is sacrebleu's)."""

_NO_SCORES = {"loss", "nll_loss", "wps", "wpb", "bsz", "ntokens", "nsentences"}


def bleu_overrides(generation_args: str, remove_bpe: Any = None) -> Dict[str, Any]:
    """Returns what makes fairseq's translation task measure BLEU in validation.

    Args:
        generation_args: JSON, as for fairseq-train's ``--eval-bleu-args``.
        remove_bpe: as for its ``--eval-bleu-remove-bpe``.
    """
    return {
        "eval_bleu": True,
        "eval_bleu_args": generation_args,
        "eval_bleu_remove_bpe": remove_bpe,
        "eval_bleu_detok": "space",
        "eval_bleu_detok_args": "{}",
        "eval_tokenized_bleu": True,
        "eval_bleu_print_samples": False,
    }


def check_measures_bleu(trained: TrainedModel) -> None:
    """Refuses tasks that have no BLEU.

    Raises:
        LoadError: naming the task.
    """
    if not getattr(trained.cfg.task, "eval_bleu", False):
        name = getattr(trained.cfg.task, "_name", type(trained.task).__name__)
        raise LoadError(f"--bleu: the task {name} does not measure it in validation")


def task_scores(
    trained: TrainedModel, criterion: Any, samples: Sequence[Dict[str, Any]]
) -> Dict[str, float]:
    """Validates the model as it is, with fairseq's own metrics.

    Args:
        trained: the model and its task.
        criterion: of fairseq.
        samples: all the mini-batches.

    Returns:
        ``loss``, in nats per unit of the criterion's normalisation (fairseq logs bits), and
        whatever the task and the criterion report, by their names: ``ppl``, ``accuracy`` …;
        ``bleu_tokenised`` if the task was loaded with :func:`bleu_overrides`.

    Raises:
        FloatingPointError: the loss is not finite.
    """
    from fairseq import utils
    from fairseq.logging import metrics

    total, size = 0.0, 0.0
    outputs: List[Dict[str, Any]] = []
    with evaluation_mode(trained.model, criterion), _no_advice_on_bleu():
        for sample in samples:
            loss, sample_size, output = trained.task.valid_step(sample, trained.model, criterion)
            total += float(loss)
            size += float(sample_size)
            outputs.append(output)
    if not math.isfinite(total):
        raise FloatingPointError("the loss is not finite")
    with _replaced([(vars(utils), "get_perplexity", _perplexity)]):
        with metrics.aggregate(new_root=True) as meters:
            trained.task.reduce_metrics(outputs, criterion)
        with _replaced(_roundings(meters)):
            return {"loss": total / size, **_scores(meters)}


_Replacement = Tuple[Dict[str, Any], str, Any]  # in a module's globals: a name, and what it is


def _perplexity(loss: Any, round: Any = None, base: float = 2) -> float:
    """Does what ``fairseq.utils.get_perplexity`` does, but for rounding to two decimals.

    That is enough for a log, but makes a staircase of a curve, and nothing of a small difference.
    """
    if loss is None:
        return 0.0
    try:
        return float(base) ** float(loss)
    except OverflowError:
        return math.inf


def _as_it_is(number: Any, ndigits: Any = None) -> Any:
    return number


def _roundings(meters: Any) -> List[_Replacement]:
    """Returns what keeps the formulas of derived metrics, such as an accuracy, from rounding."""
    formulas = (getattr(meters[name], "fn", None) for name in meters)
    scopes: List[Dict[str, Any]] = [getattr(formula, "__globals__", {}) for formula in formulas]
    by_module = {id(scope): scope for scope in scopes}.values()
    named = {"round": _as_it_is, "get_perplexity": _perplexity}
    return [
        (scope, name, value)
        for scope in by_module
        for name, value in named.items()
        if name == "round" or name in scope
    ]


@contextlib.contextmanager
def _replaced(replacements: Sequence[_Replacement]) -> Iterator[None]:
    """Context in which modules see other values by some global names."""
    missing = object()
    before = [(scope, name, scope.get(name, missing)) for scope, name, _ in replacements]
    for scope, name, value in replacements:
        scope[name] = value
    try:
        yield
    finally:
        for scope, name, value in before:
            if value is missing:
                del scope[name]
            else:
                scope[name] = value


@contextlib.contextmanager
def _no_advice_on_bleu() -> Iterator[None]:
    """Keeps sacrebleu from complaining of tokenised text, which is what is meant."""
    logger = logging.getLogger("sacrebleu")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def _scores(meters: Any) -> Dict[str, float]:
    names = [name for name in meters if not name.startswith("_") and name not in _NO_SCORES]
    return {BLEU if name == "bleu" else name: _value(meters, name) for name in names}


def _value(meters: Any, name: str) -> float:
    """Returns what was logged without the rounding that is for the eye."""
    average = getattr(meters[name], "avg", None)
    return float(meters.get_smoothed_value(name) if average is None else average)


def loss_unit(loss: DatasetLoss) -> str:
    """Returns what the criterion divides its losses by, as words for tables and axes."""
    import torch

    sample = loss.samples[0]
    with loss.evaluating(), torch.no_grad():
        _, size, output = loss.criterion(loss.model, sample)
    for unit in ("token", "sentence"):
        if float(size) == float(output.get(f"n{unit}s", math.nan)):
            return f"nats per {unit}"
    return "nats per unit of the criterion's sample size"
