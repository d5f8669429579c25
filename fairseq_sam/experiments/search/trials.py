"""One run of the search: its directory, its validations, its result, and when to stop it early."""

from __future__ import annotations

import math
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Dict, Iterable, Optional

from fairseq_sam.experiments.search.strategy import BASELINE
from fairseq_sam.files.reading import read_json, read_lines
from fairseq_sam.files.writing import write_json
from fairseq_sam.reporting.numbers import number, number_of
from fairseq_sam.reporting.train_log import record_of

LOG_NAME = "train.log"
RESULT_NAME = "result.json"

FINISHED = "finished"
STOPPED = "stopped"
DIVERGED = "diverged"

Validations = Dict[int, float]
"""The validated metric after so many updates."""


@dataclass(frozen=True)
class Trial:
    """A radius and a seed (None: the command's own)."""

    rho: float
    seed: Optional[int] = None

    @property
    def name(self) -> str:
        """The name of its directory.

        >>> Trial(0.002).name, Trial(0.025).name, Trial(0.0, seed=3).name
        ('rho-2e-03', 'rho-0.025', 'rho-0-seed3')
        """
        rho = "0" if self.rho == BASELINE else f"{self.rho:.0e}"
        if float(rho) != self.rho:
            rho = f"{self.rho:g}"
        return f"rho-{rho}" + ("" if self.seed is None else f"-seed{self.seed}")

    @property
    def is_baseline(self) -> bool:
        """Whether nothing is perturbed in it."""
        return self.rho == BASELINE


@dataclass(frozen=True)
class Result:
    """How a run ended.

    Attributes:
        status: ``finished``, ``stopped`` (early, as hopeless) or ``diverged``.
        value: the best finite value of the metric, None if there is none.
        updates: the updates after which it was last validated.
        reason: why it did not finish, "" if it did.
    """

    status: str
    value: Optional[float]
    updates: int
    reason: str = ""


@dataclass(frozen=True)
class StopRule:
    """When a run is stopped early.

    A run is hopeless once the metric is not a finite number, or once the best value that it has
    reached is worse than what the baseline with the same seed had reached after as many updates,
    by more than a margin, at several validations in a row.

    Attributes:
        margin: as a share of the baseline's absolute value.
        patience: the number of validations in a row.
    """

    margin: float = 0.1
    patience: int = 3


def read_result(directory: Path) -> Optional[Result]:
    """Returns the result that a run's directory holds, None if the run has not ended.

    Raises:
        ValueError: there is something by its name that is damaged, or of another version.
    """
    path = directory / RESULT_NAME
    if not os.path.lexists(path):
        return None
    try:
        content = read_json(path)
    except OSError as error:
        raise ValueError(error.strerror or str(error)) from None
    return _result_of(content)


def _result_of(content: Any) -> Result:
    if not isinstance(content, dict) or content.get("status") not in (FINISHED, STOPPED, DIVERGED):
        raise ValueError("not the result of a run")
    value, updates, reason = (content.get(name) for name in ("value", "updates", "reason"))
    found = number(value)
    if value is not None and (found is None or not math.isfinite(found)):
        raise ValueError("its value is not a number")
    if content["status"] == FINISHED and found is None:
        raise ValueError("it finished without a value")
    if not isinstance(updates, int) or isinstance(updates, bool):
        raise ValueError("its updates are not a number")
    return Result(content["status"], found, updates, reason if isinstance(reason, str) else "")


def write_result(result: Result, directory: Path) -> None:
    """Writes the result of a run, after which it counts as ended."""
    write_json(asdict(result), directory / RESULT_NAME)


def read_validations(log: Path, subset: str, metric: str) -> Validations:
    """Reads every validation from a log of ``fairseq-train --log-format json``.

    Unlike :mod:`fairseq_sam.reporting.train_log`, which keeps one for each epoch, this keeps those
    within an epoch too, and of whatever subset.
    """
    try:
        return parse_validations(read_lines(log), subset, metric)
    except OSError:
        return {}


def parse_validations(lines: Iterable[str], subset: str, metric: str) -> Validations:
    """Reads every validation from lines of a log.

    >>> line = 'INFO | valid | {"epoch": 1, "valid_loss": "4.5", "valid_num_updates": "30"}'
    >>> parse_validations([line, "other"], "valid", "loss")
    {30: 4.5}
    """
    validations = {}
    for line in lines:
        # Others are of another kind, or still being written.
        record = record_of(line) if f'"{subset}_{metric}"' in line else None
        if record is not None:
            updates = number_of(record.get(f"{subset}_num_updates"))
            value = number_of(record.get(f"{subset}_{metric}"))
            if updates is not None and value is not None and math.isfinite(updates):
                validations[int(updates)] = value
    return validations


def best_value(validations: Validations, maximise: bool) -> Optional[float]:
    """Returns the best finite value, None if there is none."""
    finite = [value for value in validations.values() if math.isfinite(value)]
    return (max if maximise else min)(finite, default=None)


def hopeless(
    run: Validations, baseline: Validations, rule: StopRule, maximise: bool
) -> Optional[str]:
    """Returns why a run is to be stopped early, None if it is not.

    Args:
        run: its validations so far.
        baseline: those of the run without perturbation; where it has not come as far, nothing is
            compared.
        rule: see there.
        maximise: whether more is better.
    """
    streak = 0
    furthest = max(baseline, default=-1)
    for updates in sorted(run):
        if not math.isfinite(run[updates]):
            return f"{run[updates]} after {updates} updates"
        ours = best_value({u: v for u, v in run.items() if u <= updates}, maximise)
        theirs = best_value({u: v for u, v in baseline.items() if u <= updates}, maximise)
        if ours is None or theirs is None or updates > furthest:
            continue
        worse = (theirs - ours if maximise else ours - theirs) > rule.margin * abs(theirs)
        streak = streak + 1 if worse else 0
        if streak >= rule.patience:
            return f"{ours:.5g} after {updates} updates, the baseline {theirs:.5g}"
    return None
