"""Runs trials as processes, several at once, each until it ends or is hopeless."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path
from typing import Callable, Deque, Dict, List, Optional, Sequence, Tuple

from fairseq_sam.files import open_regular, replaced, write_json
from fairseq_sam.search.errors import TrialError
from fairseq_sam.search.files import set_aside
from fairseq_sam.search.settings import SETTINGS_NAME, Settings
from fairseq_sam.search.training_command import TrainingCommand
from fairseq_sam.search.trials import (
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
    write_result,
)

# What the script fairseq-train does, under this interpreter.
TRAINER = (sys.executable, "-c", "from fairseq_cli.train import cli_main; cli_main()")
POLL_SECONDS = 0.5
GRACE_SECONDS = 10.0
_CHECKPOINT = "checkpoint_last.pt"
_TAIL_BYTES = 1 << 20

_PREFIX = r"^(?:\[rank\d+\]:? ?)?(?:\w+\.)*"  # torchrun names the process, Python the module
# fairseq's word for gradients and loss scales that ran away.
_RAN_AWAY = re.compile(_PREFIX + r"(FloatingPointError\b.*)")
# What others say of them: torch's distributions, matrix decompositions, a conversion to an integer.
_NOT_FINITE = re.compile(
    _PREFIX + r"(\w+(?:Error|Exception): .*\b(?:nans?|inf|infs|infinity|infinite|not finite)\b.*)",
    re.IGNORECASE,
)


@dataclass
class _Process:
    """A run in progress.

    Attributes:
        trial: what it tries.
        process: the group leader of its processes.
        gpus: what its ``CUDA_VISIBLE_DEVICES`` is, None for all.
        log_start: where its part of the log begins.
        log_size: how much of its log was looked at.
    """

    trial: Trial
    process: subprocess.Popen
    gpus: Optional[str]
    log_start: int = 0
    log_size: int = 0

    def stop(self) -> None:
        """Ends the process and what it has started."""
        for number in (signal.SIGTERM, signal.SIGKILL):
            try:
                os.killpg(self.process.pid, number)
            except ProcessLookupError:
                break
            try:
                self.process.wait(GRACE_SECONDS)
            except subprocess.TimeoutExpired:
                continue
        self.process.wait()


@dataclass
class TrialRunner:
    """Runs trials in a directory.

    Attributes:
        directory: where each trial has its own directory.
        command: what to train.
        slots: ``CUDA_VISIBLE_DEVICES`` of each run that may be in progress at once (None leaves
            it as it is).
        rule: when to give up a run.
        tell: is called with a line when a run starts and ends.
        lock: a file descriptor for the runs to inherit.
        start_from: the checkpoint that every run begins with, None for new weights.
        settings: what the results depend on, kept beside each run.
    """

    directory: Path
    command: TrainingCommand
    slots: Sequence[Optional[str]]
    rule: StopRule
    tell: Callable[[str], None]
    lock: int
    start_from: Optional[Path] = None
    settings: Settings = field(default_factory=dict)

    def run(self, trials: Sequence[Trial]) -> Dict[Trial, Result]:
        """Runs those trials that have no result yet, in order, and returns all results.

        Whatever happens, no process is left when it returns. Runs that were cut off go on from
        their last checkpoint the next time.

        Raises:
            TrialError: a run failed, or the baseline diverged.
        """
        ended = {trial: self._ended(trial) for trial in trials}
        results = {trial: result for trial, result in ended.items() if result is not None}
        waiting: Deque[Trial] = deque(trial for trial in trials if trial not in results)
        free = list(reversed(self.slots))
        running: List[_Process] = []
        try:
            while waiting or running:
                while waiting and free:
                    running.append(self._start(waiting.popleft(), free.pop()))
                time.sleep(POLL_SECONDS)
                for run in list(running):
                    result = self._result(run)
                    if result is not None:
                        write_result(result, self.directory / run.trial.name)
                        self.tell(f"{run.trial.name}: {self._describe(result)}")
                        results[run.trial] = result
                        running.remove(run)
                        free.append(run.gpus)
        finally:
            for run in running:
                run.stop()
        return results

    def _ended(self, trial: Trial) -> Optional[Result]:
        """Returns the result of an earlier search; one that cannot be read is set aside."""
        directory = self.directory / trial.name
        try:
            return read_result(directory)
        except ValueError as error:
            aside = set_aside(directory / RESULT_NAME).name
            self.tell(f"{trial.name}: {RESULT_NAME} is damaged ({error}), now {aside}")
            return None

    def _clear(self, directory: Path) -> bool:
        """Sets aside what a run cannot go on with, and returns whether it has a checkpoint."""
        log, last = directory / LOG_NAME, directory / _CHECKPOINT
        if os.path.lexists(directory) and not directory.is_dir():
            self._set_aside(directory, "not a directory")
        directory.mkdir(exist_ok=True)
        for path in (log, last, directory / SETTINGS_NAME):
            if os.path.lexists(path) and not path.is_file():
                self._set_aside(path, "not a file")
        if not last.exists():
            return False
        if not log.exists() or log.stat().st_size == 0:
            self._set_aside(last, "the log of how it came about is lost")
            return False
        fault = _fault_of(last)
        if fault is not None:
            self._set_aside(last, fault)
            self._set_aside(log, "it is of the damaged checkpoint")
        return fault is None

    def _set_aside(self, path: Path, reason: str) -> None:
        aside = set_aside(path).name
        self.tell(f"{path.relative_to(self.directory)}: {reason}; now {aside}")

    def _start(self, trial: Trial, gpus: Optional[str]) -> _Process:
        directory = self.directory / trial.name
        goes_on, last = self._clear(directory), directory / _CHECKPOINT
        write_json(self.settings, directory / SETTINGS_NAME)
        if self.start_from is not None and not goes_on:
            with replaced(last) as temporary:
                shutil.copyfile(self.start_from, temporary)
        environment = dict(os.environ)
        if gpus is not None:
            environment["CUDA_VISIBLE_DEVICES"] = gpus
        where = "" if gpus is None else f" on GPU {gpus}"
        self.tell(f"{trial.name}: {'goes on' if goes_on else 'starts'}{where}")
        with open(directory / LOG_NAME, "ab") as log:
            log_start = log.tell()
            process = subprocess.Popen(
                [*TRAINER, *self.command.of_run(trial.rho, trial.seed, directory)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=True,  # a group to be ended as a whole; Ctrl-C reaches only us
                pass_fds=(self.lock,),
            )
        return _Process(trial, process, gpus, log_start)

    def _result(self, run: _Process) -> Optional[Result]:
        """Looks after a run: its result if it has ended or is hopeless."""
        log = self.directory / run.trial.name / LOG_NAME
        status = run.process.poll()
        if status is None:
            size = log.stat().st_size
            if size == run.log_size or run.trial.is_baseline:
                return None
            run.log_size = size
            reason = self._hopeless(run.trial)
            if reason is None:
                return None
            run.stop()
            return Result(STOPPED, *self._reached(run.trial), reason)
        if status != 0:
            return self._failed(run, status)
        reason = None if run.trial.is_baseline else self._hopeless(run.trial)
        if reason is not None:
            return Result(STOPPED, *self._reached(run.trial), reason)
        value, updates = self._reached(run.trial)
        if value is None:
            what = f"{self.command.metric} on {self.command.subset}"
            raise TrialError(f"{log}: no finite {what} was logged")
        return Result(FINISHED, value, updates)

    def _failed(self, run: _Process, status: int) -> Result:
        log = self.directory / run.trial.name / LOG_NAME
        lines = _last_lines(log, run.log_start)
        runaway = _divergence(lines)
        if runaway is not None and not run.trial.is_baseline:
            return Result(DIVERGED, *self._reached(run.trial), runaway[:200])
        last = runaway or (lines or ["it printed nothing"])[-1]
        raise TrialError(f"{log}: fairseq-train ended with status {status}: {last[:300]}")

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


def _fault_of(checkpoint: Path) -> Optional[str]:
    """Returns why a run cannot go on from a checkpoint, None if it can."""
    from fairseq_sam import host
    from fairseq_sam.checkpoint_files import CheckpointError, read_checkpoint

    host.repair()  # torch's safe loader then knows fairseq's types
    try:
        read_checkpoint(checkpoint)
    except CheckpointError as error:
        return str(error).partition(": ")[2] or str(error)
    return None


def _divergence(lines: Sequence[str]) -> Optional[str]:
    """Returns the error that tells that a run diverged, None if it failed in another way.

    Python prints the error that fairseq raised before those that came of handling it, and warnings
    may come after both.
    """
    ran_away = [match.group(1) for match in map(_RAN_AWAY.match, lines) if match]
    not_finite = [match.group(1) for match in map(_NOT_FINITE.match, lines) if match]
    return next(iter([*reversed(ran_away), *reversed(not_finite)]), None)


def _last_lines(log: Path, start: int) -> List[str]:
    """Returns the last lines that are not empty; the message of a traceback is among them.

    What Python reports while it shuts down ("Exception ignored in …") is left out.

    Args:
        log: of several attempts.
        start: where that of the last one begins.
    """
    with open_regular(log) as stream:
        stream.seek(max(start, stream.seek(0, os.SEEK_END) - _TAIL_BYTES))
        text = stream.read().decode("utf-8", "replace")
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    end = range(max(0, len(lines) - 40), len(lines))
    ignored = (i for i in end if lines[i].startswith("Exception ignored in"))
    return lines[: next(ignored, len(lines))]
