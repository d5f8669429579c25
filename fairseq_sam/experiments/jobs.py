"""Jobs: several at once, each on its GPUs and cores, each until its record says that it is done.

A job is a list of steps and a record, a JSON file that is written last. What has a record is never
done again; what has none is done from its beginning, where a training goes on from its last
checkpoint. A process that outlives a killed runner holds the lock that it inherits.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import threading
import time
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Callable, Dict, Iterable, List, Optional, Sequence, Tuple

from fairseq_sam import FairseqSamError
from fairseq_sam.experiments.command_lines import Command, Step, shell_line
from fairseq_sam.experiments.downloads import download
from fairseq_sam.experiments.errors import JobError
from fairseq_sam.experiments.log_lines import last_lines
from fairseq_sam.experiments.processes import Progress, cores, end_group
from fairseq_sam.files.writing import write_json

POLL_SECONDS = 0.5

Record = Dict[str, Any]


@dataclass(frozen=True)
class Ending:
    """How a job's last process ended.

    Attributes:
        status: its exit status.
        stopped: why it was stopped, "" if it ended by itself.
        failure: what it said last, in a line.
        lines: the last lines of its output.
    """

    status: int
    stopped: str = ""
    failure: str = ""
    lines: Sequence[str] = ()


def finished(ending: Ending) -> Record:
    """Returns the record of a job whose steps have all succeeded.

    Raises:
        JobError: one has not.
    """
    if ending.status != 0:
        raise JobError(ending.failure)
    return {"status": "finished"}


@dataclass
class Job:
    """Work to be done once.

    Attributes:
        name: what it is called.
        title: the same in words.
        steps: makes its steps, one after the other: what one needs may be there after the last.
        log: what its processes print.
        record: the file that tells that it is done.
        watch: is called every half a second or so, while a command with a log is at work, with
            where its part of that begins; a text stops the job.
        outcome: makes the record of how it ended; raises JobError.
        begin: is called when it starts; what it returns is added to the line that says so.
        after: the job whose work it goes on from, if there is one.
    """

    name: str
    title: str
    steps: Callable[[], Iterable[Step]]
    log: Path
    record: Path
    watch: Callable[[int], str] = lambda _: ""
    outcome: Callable[[Ending], Record] = finished
    begin: Callable[[], str] = lambda: ""
    after: Optional[Job] = None

    def missing(self) -> Optional[Job]:
        """Returns the job that it waits for, None where it can be done or has been."""
        before = self.after
        if before is None or before.record.exists() or self.record.exists():
            return None
        return before


@dataclass
class Runner:
    """Runs jobs.

    Attributes:
        slots: ``CUDA_VISIBLE_DEVICES`` of each job that may be at work at once (None leaves it).
        tell: is called with a line when a job starts and ends.
        locks: file descriptors for processes to inherit.
        keep_going: does the other jobs where one fails.
        again: names the command that repeats a job, for the list of what failed.
        counted: says how far it is after each job.
    """

    slots: Sequence[Optional[str]]
    tell: Callable[[str], None]
    locks: Sequence[int] = ()
    keep_going: bool = False
    again: Callable[[Job], str] = lambda job: ""
    counted: bool = True
    _stopping: threading.Event = field(default_factory=threading.Event)

    def run(self, jobs: Sequence[Job]) -> Dict[str, Record]:
        """Does jobs, in order, and returns the records of those that were done.

        Whatever happens, no process is left when it returns.

        Raises:
            JobError: a job failed.
        """
        self._stopping.clear()
        waiting, free = list(jobs), list(self.slots)
        records: Dict[str, Record] = {}
        failed: List[Tuple[Job, str]] = []
        progress = Progress(len(jobs))
        working: Dict[Future, Tuple[Job, Optional[str]]] = {}
        with ThreadPoolExecutor(len(free)) as pool:
            try:
                while working or (waiting and (self.keep_going or not failed)):
                    while waiting and free and (self.keep_going or not failed):
                        job, slot = waiting.pop(0), free.pop(0)
                        working[pool.submit(self._do, job, slot)] = (job, slot)
                    # Not for ever: a signal is looked at between two waits.
                    for future in wait(working, 0.1, FIRST_COMPLETED).done:
                        job, slot = working.pop(future)
                        free.append(slot)
                        self._settle(future, job, records, failed)
                        if self.counted and (waiting or working):
                            self.tell(progress.line(len(jobs) - len(waiting) - len(working)))
            finally:
                self._stopping.set()
        if failed:
            self._report(failed, len(jobs))
        return records

    def _settle(
        self, future: Future, job: Job, records: Dict[str, Record], failed: List[Tuple[Job, str]]
    ) -> None:
        try:
            records[job.name] = future.result()
        except (FairseqSamError, OSError) as error:
            failed.append((job, str(error)))
            self.tell(f"{job.title}: failed: {error}")
            if not self.keep_going:
                self._stopping.set()

    def _report(self, failed: List[Tuple[Job, str]], count: int) -> None:
        if not self.keep_going or count == 1:
            raise JobError(failed[0][1])
        lines = [f"{len(failed)} of {count} failed; a rerun tries them again:"]
        lines += [f"{job.name}: {text}; alone: {self.again(job)}" for job, text in failed]
        raise JobError("\n  ".join(lines))

    def _do(self, job: Job, slot: Optional[str]) -> Record:
        begin = time.monotonic()
        where = "" if slot is None else f" on GPU {slot}"
        self.tell(f"{job.title}{job.begin()}{where}")
        job.log.parent.mkdir(parents=True, exist_ok=True)
        ending = Ending(0)
        for step in job.steps():
            if isinstance(step, Command):
                if step.unless and os.path.exists(step.unless):
                    continue
                ending = self._process(step, job, slot)
            else:
                download(step, self.tell, self._stopping.is_set)
            if self._stopping.is_set():
                raise JobError(f"{job.name}: stopped")
            if ending.status != 0 or ending.stopped:
                break
        record = {**job.outcome(ending), "seconds": round(time.monotonic() - begin, 1)}
        write_json(record, job.record)
        return record

    def _process(self, command: Command, job: Job, slot: Optional[str]) -> Ending:
        with contextlib.ExitStack() as files:
            log = files.enter_context(open(job.log, "ab"))
            output, start = log, log.tell()
            if command.stdout:
                output = files.enter_context(open(f"{command.stdout}.incomplete", "wb"))
            status, stopped = self._watched(command, job, slot, output, log, start)
        if command.stdout and status == 0:
            os.replace(f"{command.stdout}.incomplete", command.stdout)
        lines = last_lines(job.log, start)
        said = lines[-1][:300] if lines else f"{shell_line(command, {})[:200]}: it printed nothing"
        failure = f"{job.log}: it ended with status {status}: {said}"
        return Ending(status, stopped, failure, lines)

    def _watched(
        self, command: Command, job: Job, slot: Optional[str], output: Any, log: Any, start: int
    ) -> Tuple[int, str]:
        with open(command.stdin or os.devnull, "rb") as stdin:
            process = subprocess.Popen(
                command.words,
                stdin=stdin,
                stdout=output,
                stderr=log,
                env=self._environment(slot),
                start_new_session=True,  # a group to be ended as a whole; Ctrl-C reaches only us
                pass_fds=self.locks,
            )
        watch = job.watch if command.log else _look_away
        try:
            while True:
                try:
                    status = process.wait(POLL_SECONDS)
                    watch(start)
                    return status, ""
                except subprocess.TimeoutExpired:
                    reason = "stopped" if self._stopping.is_set() else watch(start)
                    if reason:
                        end_group(process)
                        return process.returncode, reason
        finally:
            if process.returncode is None:  # watching it failed: nobody would end it any more
                end_group(process)

    def _environment(self, slot: Optional[str]) -> Dict[str, str]:
        environment = dict(os.environ)
        if slot is not None:
            environment["CUDA_VISIBLE_DEVICES"] = slot
        if len(self.slots) > 1:
            threads = max(1, cores() // len(self.slots))
            environment.setdefault("OMP_NUM_THREADS", str(threads))
        return environment


def _look_away(_: int) -> str:
    return ""
