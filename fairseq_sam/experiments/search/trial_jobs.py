"""The runs of a search as jobs, each until it ends or is hopeless."""

from __future__ import annotations

import os
import re
import shutil
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, Optional, Sequence, Tuple

from fairseq_sam.experiments.command_lines import Command, Step
from fairseq_sam.experiments.directory import SETTINGS_NAME, Settings, set_aside
from fairseq_sam.experiments.errors import JobError
from fairseq_sam.experiments.jobs import Ending, Job, Record, Runner
from fairseq_sam.experiments.resumption import goes_on
from fairseq_sam.experiments.search.training_command import TrainingCommand
from fairseq_sam.experiments.search.trials import (
    DIVERGED,
    FINISHED,
    LOG_NAME,
    RESULT_NAME,
    STOPPED,
    Result,
    StopRule,
    Trial,
    Validations,
    best_value,
    hopeless,
    read_result,
    read_validations,
)
from fairseq_sam.files.reading import sha256_of
from fairseq_sam.files.writing import replaced, write_json

# What the script fairseq-train does, under this interpreter.
TRAINER = (sys.executable, "-c", "from fairseq_cli.train import cli_main; cli_main()")
CHECKPOINT_NAME = "checkpoint_last.pt"
START_CONTENT = "content of --start-from"
"""The setting that tells what was in the checkpoint that runs begin with."""

_PREFIX = r"^(?:\[rank\d+\]:? ?)?(?:\w+\.)*"  # torchrun names the process, Python the module
# fairseq's word for gradients and loss scales that ran away.
_RAN_AWAY = re.compile(_PREFIX + r"(FloatingPointError\b.*)")
# What others say of them: torch's distributions, matrix decompositions, a conversion to an integer.
# Only errors of calculation: those of files and networks name paths and hosts, which may be /inf.
_CALCULATION = re.compile(
    _PREFIX + r"((?:Runtime|Value|Arithmetic|Overflow|ZeroDivision|Assertion|_?LinAlg)Error: .*)"
)
_NAMES = re.compile(r"""(?<!\w)(['"]).*?\1(?!\w)|(?<![\w/])/.*/\S*""")  # in quotes; paths
_NOT_FINITE = re.compile(
    r"(?<![^\s(\[`])[+-]?(?:nans?|infs?|nans?/infs?|infs?/nans?|infinity|infinite|non-?finite|not"
    r" finite)(?=[.,;:!]?(?:\s|$)|[)`])",
    re.IGNORECASE,
)


@dataclass
class TrialRunner:
    """Runs trials in a directory.

    Attributes:
        directory: where each trial has its own directory.
        command: what to train.
        slots: ``CUDA_VISIBLE_DEVICES`` of each run that may be in progress at once (None leaves
            it as it is).
        rule: when to stop a run early.
        tell: is called with a line when a run starts and ends.
        lock: a file descriptor for the runs to inherit.
        start_from: the checkpoint that every run begins with, None for new weights.
        settings: what the results depend on, kept beside each run; with ``start_from`` its content
            is among them.
    """

    directory: Path
    command: TrainingCommand
    slots: Sequence[Optional[str]]
    rule: StopRule
    tell: Callable[[str], None]
    lock: int
    start_from: Optional[Path] = None
    settings: Settings = field(default_factory=dict)
    _sizes: Dict[Trial, int] = field(default_factory=dict)

    def run(self, trials: Sequence[Trial]) -> Dict[Trial, Result]:
        """Runs those trials that have no result yet, in order, and returns all results.

        Raises:
            JobError: a run failed, or the baseline diverged.
        """
        ended = {trial: self._ended(trial) for trial in trials}
        jobs = [self._job(trial) for trial, result in ended.items() if result is None]
        Runner(self.slots, self.tell, [self.lock], counted=False).run(jobs)
        results = {trial: result or self._ended(trial) for trial, result in ended.items()}
        return {trial: result for trial, result in results.items() if result is not None}

    def _job(self, trial: Trial) -> Job:
        directory = self.directory / trial.name
        return Job(
            name=trial.name,
            title=f"{trial.name}: ",
            steps=lambda: self._steps(trial),
            log=directory / LOG_NAME,
            record=directory / RESULT_NAME,
            watch=lambda _: self._watch(trial),
            outcome=lambda ending: self._outcome(trial, ending),
            begin=lambda: self._begin(trial),
        )

    def _ended(self, trial: Trial) -> Optional[Result]:
        """Returns the result of an earlier search; one that cannot be read is set aside."""
        directory = self.directory / trial.name
        try:
            return read_result(directory)
        except ValueError as error:
            aside = set_aside(directory / RESULT_NAME).name
            self.tell(f"{trial.name}: {RESULT_NAME} is damaged ({error}), now {aside}")
            return None

    def _begin(self, trial: Trial) -> str:
        """Makes the directory ready; says whether the run goes on."""
        directory = self.directory / trial.name
        last = directory / CHECKPOINT_NAME
        if os.path.lexists(directory) and not directory.is_dir():
            self.tell(f"{trial.name}: not a directory; now {set_aside(directory).name}")
        directory.mkdir(exist_ok=True)
        settings = directory / SETTINGS_NAME
        again = goes_on(last, directory / LOG_NAME, self.tell, [settings])
        write_json(self.settings, settings)
        if self.start_from is not None and not again:
            with replaced(last) as temporary:
                shutil.copyfile(self.start_from, temporary)
                if content_of(temporary) != self.settings[START_CONTENT]:
                    raise JobError(
                        f"{self.start_from}: has changed since the search began: restore it, or"
                        " use another --out"
                    )
        return "goes on" if again else "starts"

    def _steps(self, trial: Trial) -> Iterator[Step]:
        arguments = self.command.of_run(trial.rho, trial.seed, self.directory / trial.name)
        yield Command((*TRAINER, *arguments), log=str(self.directory / trial.name / LOG_NAME))

    def _watch(self, trial: Trial) -> str:
        """Says why a run is hopeless."""
        size = (self.directory / trial.name / LOG_NAME).stat().st_size
        if trial.is_baseline or size == self._sizes.get(trial):
            return ""
        self._sizes[trial] = size
        return self._hopeless(trial) or ""

    def _outcome(self, trial: Trial, ending: Ending) -> Record:
        result = self._result(trial, ending)
        self.tell(f"{trial.name}: {self._describe(result)}")
        return asdict(result)

    def _result(self, trial: Trial, ending: Ending) -> Result:
        log = self.directory / trial.name / LOG_NAME
        value, updates = self._reached(trial)
        if ending.status != 0 and not ending.stopped:
            runaway = _divergence(ending.lines)
            if runaway is not None and not trial.is_baseline:
                return Result(DIVERGED, value, updates, runaway[:200])
            last = runaway or ([*ending.lines] or ["it printed nothing"])[-1]
            status = f"fairseq-train ended with status {ending.status}"
            raise JobError(f"{log}: {status}: {last[:300]}")
        reason = "" if trial.is_baseline else ending.stopped or self._hopeless(trial)
        if reason:
            return Result(STOPPED, value, updates, reason)
        if value is None:
            what = f"{self.command.metric} on {self.command.subset}"
            raise JobError(f"{log}: no finite {what} was logged")
        return Result(FINISHED, value, updates)

    def _hopeless(self, trial: Trial) -> Optional[str]:
        baseline = self._validations(Trial(0.0, trial.seed))
        return hopeless(self._validations(trial), baseline, self.rule, self.command.maximise)

    def _reached(self, trial: Trial) -> Tuple[Optional[float], int]:
        validations = self._validations(trial)
        return best_value(validations, self.command.maximise), max(validations, default=0)

    def _validations(self, trial: Trial) -> Validations:
        log = self.directory / trial.name / LOG_NAME
        return read_validations(log, self.command.subset, self.command.metric)

    def _describe(self, result: Result) -> str:
        if result.status == FINISHED:
            return f"{self.command.metric} {result.value:.5g} in {result.updates} updates"
        return f"{result.status} ({result.reason})"


def content_of(checkpoint: Path) -> Dict[str, Any]:
    """Returns what tells a checkpoint from others by its path.

    Raises:
        OSError: it cannot be read.
    """
    return {"bytes": checkpoint.stat().st_size, "SHA-256": sha256_of(checkpoint)}


def _divergence(lines: Sequence[str]) -> Optional[str]:
    """Returns the error that tells that a run diverged, None if it failed in another way.

    Python prints the error that fairseq raised before those that came of handling it, and warnings
    may come after both.
    """
    ran_away = [match.group(1) for match in map(_RAN_AWAY.match, lines) if match]
    calculation = [match.group(1) for match in map(_CALCULATION.match, lines) if match]
    not_finite = [text for text in calculation if _NOT_FINITE.search(_NAMES.sub(" ", text))]
    return next(iter([*reversed(ran_away), *reversed(not_finite)]), None)
