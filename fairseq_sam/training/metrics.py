"""What a run logs of its perturbations, alongside the criterion's own metrics.

Each micro-batch puts sums under keys beginning with ``sam_`` into its logging output, fairseq adds
them up over micro-batches and workers, and :func:`log` turns the sums into

=========================  ======================================================================
``sharpness``              loss at w + a_K minus loss at w, in the unit of the logged ``loss``;
                           under the functional risk to first order in the model's outputs
``rho``                    the radius ρ, mean over micro-batches
``perturbation_norm``      ‖a_K‖₂, mean over micro-batches
``perturbation_realised``  share of the perturbation that half-precision weights took; 1 is all
``perturbation_skipped``   share of micro-batches trained on unperturbed, as a pass overflowed
``perturbation_uniform``   share of micro-batches whose δ-SAM weights fell back to uniform ones
``perturbation_cosine``    cos(−m, g) of a momentum direction with the gradient; below 0 the
                           direction goes downhill, and the radius does no good
``perturbation_on``        1 while the gate is open, 0 while the run is the base optimizer's
=========================  ======================================================================

Where there is no pass with the whole batch at w (momentum, or an ascent on a part of the batch),
``loss`` is the loss at w + a_K, and there is no ``sharpness``. How to read them: docs/radius.md.

Everything stays on the device until fairseq reads its own metrics.
"""

import logging
from typing import Any, Dict, List

import torch
from fairseq.logging import metrics
from torch import Tensor

from fairseq_sam.perturbation import Outcome

logger = logging.getLogger(__name__)

PREFIX = "sam_"

DIGITS = 9
"""Decimals kept, so many because fairseq prints six significant ones and small radii are small."""

AVERAGED = {
    "sam_rho": "rho",
    "sam_norm": "perturbation_norm",
    "sam_realised": "perturbation_realised",
    "sam_skipped": "perturbation_skipped",
    "sam_uniform": "perturbation_uniform",
    "sam_cosine": "perturbation_cosine",
}
"""What is logged as the mean over the perturbed micro-batches, by its key in a logging output."""

LoggingOutput = Dict[str, Any]


def describe_off(logging_output: LoggingOutput) -> LoggingOutput:
    """Returns the logging output of a micro-batch before the gate opens."""
    return {**logging_output, "sam_batches": 1, "sam_on": 0}


def describe_on(outcomes: List[Outcome]) -> LoggingOutput:
    """Returns the logging output of the passes at w, with what was seen at w + a_K.

    Where no pass had the whole batch at w, ``loss`` and all else is that of the pass at w + a_K.

    Args:
        outcomes: one, or one for each sentence where each is perturbed on its own.
    """
    entries: LoggingOutput = {
        "sam_rho": _mean([outcome.rho for outcome in outcomes]),
        "sam_norm": _mean([outcome.norm for outcome in outcomes]),
        "sam_skipped": _mean([(~outcome.finite).float() for outcome in outcomes]),
    }
    if all(outcome.clean is not None for outcome in outcomes):
        entries["sam_loss"] = sum(_loss_above(outcome) for outcome in outcomes)
        entries["sam_compared"] = 1
    realised = [outcome.realised for outcome in outcomes if outcome.realised is not None]
    if realised:
        entries["sam_realised"] = _mean(realised)
    uniform = [outcome.uniform.float() for outcome in outcomes if outcome.uniform is not None]
    if uniform:
        entries["sam_uniform"] = _mean(uniform)
        entries["sam_weighed"] = 1
    cosines = [outcome.cosine for outcome in outcomes if outcome.cosine is not None]
    if cosines:
        entries["sam_cosine"] = _mean(cosines)
    logged = _sum_outputs([outcome.logged.extra for outcome in outcomes])
    return {**logged, "sam_batches": 1, "sam_on": 1, **entries}


def _loss_above(outcome: Outcome) -> Any:
    """Returns the loss that was logged at w + a_K; to first order in the outputs where none was."""
    if outcome.perturbed.extra is not None:
        return outcome.perturbed.extra.get("loss", 0)
    rise = outcome.perturbed.loss - outcome.logged.loss
    return outcome.logged.extra.get("loss", 0) + rise


class UphillCheck:
    """Warns once where a momentum direction goes downhill: there the perturbation does no good.

    It reads the device once in so many mini-batches, and no more once it has warned.
    """

    def __init__(self, interval: int = 100) -> None:
        self._interval = interval
        self._cosines: List[Tensor] = []
        self._has_warned = False

    def note(self, outcome: Outcome) -> None:
        """Looks at one more mini-batch."""
        if outcome.cosine is None or self._has_warned:
            return
        self._cosines.append(outcome.cosine)
        if len(self._cosines) < self._interval:
            return
        mean = float(torch.stack(self._cosines).mean())
        self._cosines = []
        if mean < 0:
            self._has_warned = True
            logger.warning(
                f"the momentum direction goes downhill: cos(-m, g) is {mean:.3f}, the mean of "
                f"{self._interval} mini-batches; start later (--sam-start-update) or with a larger "
                "--sam-rho"
            )


def _mean(values: List[Tensor]) -> Tensor:
    return torch.stack(list(values)).mean() if len(values) > 1 else values[0]


def _sum_outputs(outputs: List[LoggingOutput]) -> LoggingOutput:
    """Adds up what the sentences of a mini-batch logged; what cannot be added is the first's."""
    if len(outputs) == 1:
        return outputs[0]
    return {key: _sum([output.get(key, 0) for output in outputs]) for key in outputs[0]}


def _sum(values: List[Any]) -> Any:
    if all(isinstance(value, dict) for value in values):
        return _sum_outputs(values)
    if all(isinstance(value, (int, float, Tensor)) for value in values):
        return sum(values)
    return values[0]


def without_ours(logging_outputs: List[LoggingOutput]) -> List[LoggingOutput]:
    """Returns the logging outputs as the criterion made them."""
    return [
        {key: value for key, value in output.items() if not key.startswith(PREFIX)}
        for output in logging_outputs
    ]


def log(logging_outputs: List[LoggingOutput], criterion: Any) -> None:
    """Logs the perturbation's metrics; nothing for runs that are not sharpness-aware."""
    batches = _total(logging_outputs, "sam_batches")
    if not batches:
        return
    perturbed = _total(logging_outputs, "sam_on")
    if perturbed:
        # By number, for fairseq may have added up the outputs of a worker.
        if _total(logging_outputs, "sam_compared") == batches:
            known = any("sample_size" in output for output in logging_outputs)
            size = _total(logging_outputs, "sample_size") if known else 1
            metrics.log_scalar(
                "sharpness", _sharpness(logging_outputs, criterion), size, priority=31, round=DIGITS
            )
        for number, (key, name) in enumerate(AVERAGED.items()):
            if any(key in output for output in logging_outputs):
                of = "sam_weighed" if key == "sam_uniform" else "sam_on"
                mean = _total(logging_outputs, key) / _total(logging_outputs, of)
                metrics.log_scalar(name, mean, perturbed, priority=32 + number, round=DIGITS)
    metrics.log_scalar("perturbation_on", perturbed / batches, batches, priority=39, round=2)


def _sharpness(logging_outputs: List[LoggingOutput], criterion: Any) -> "float | Tensor":
    """Lets the criterion itself turn both sums into losses, so that the units are its own."""
    at_w = without_ours(logging_outputs)
    above = [{**log, "loss": output["sam_loss"]} for log, output in zip(at_w, logging_outputs)]
    return _reduced_loss(above, criterion) - _reduced_loss(at_w, criterion)


def _reduced_loss(logging_outputs: List[LoggingOutput], criterion: Any) -> "float | Tensor":
    with metrics.aggregate(new_root=True) as aggregator:
        criterion.__class__.reduce_metrics(logging_outputs)
        meter = aggregator.get("loss")
        return 0.0 if meter is None else meter.avg  # type: ignore[no-any-return]


def _total(logging_outputs: List[LoggingOutput], key: str) -> Any:
    return sum(output.get(key, 0) for output in logging_outputs)
