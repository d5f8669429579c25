"""Goes through the stages of an experiment: runs them, prints them, or takes part in them."""

from __future__ import annotations

import argparse
import contextlib
import os
import shlex
import sys
import time
from pathlib import Path
from typing import Callable, Dict, List, Optional, Sequence

from fairseq_sam import FairseqSamError
from fairseq_sam.experiments.command_lines import one_line, shell_lines
from fairseq_sam.experiments.directory import check_settings, locked
from fairseq_sam.experiments.errors import JobError, MisuseError, OtherSettingsError
from fairseq_sam.experiments.experiment import LAUNCHED, ROOT, Experiment
from fairseq_sam.experiments.jobs import Job, Runner
from fairseq_sam.experiments.option_types import without
from fairseq_sam.experiments.options import ARRAY, STAGES, parse
from fairseq_sam.experiments.processes import (
    duration,
    gpu_slots,
    termination_interrupts,
    visible_gpus,
)
from fairseq_sam.experiments.recipe import Recipe
from fairseq_sam.experiments.stages import SHARED, job_named, jobs_of, possible_jobs, training_job
from fairseq_sam.files.reading import read_text
from fairseq_sam.files.writing import write_text

_WAIT_SECONDS = 1.0

ENDED = "ended"
"""Among the records the file that tells other machines by its time that rank 0 has ended."""


def main(recipe: Recipe, program: str, arguments: Sequence[str]) -> int:
    """Runs a recipe.

    Args:
        recipe: what to run.
        program: what the user typed, for messages.
        arguments: what came behind it. With ``--check`` first they are only checked.

    Returns:
        The exit status: 0, 1 after a failure, 2 for misuse, 130 when interrupted.
    """
    only_check = list(arguments[:1]) == ["--check"]
    arguments = arguments[1:] if only_check else arguments
    try:
        options = parse(recipe, program, arguments)
        choose_gpus(options, recipe.on_cpu, only_check)
        experiment = Experiment(recipe, options, tell)
        if options.dry_run:
            print_script(experiment, program, arguments)
        elif not only_check:
            with termination_interrupts():
                run(experiment, program, arguments)
    except (MisuseError, OtherSettingsError) as error:
        tell(f"error: {error}")
        return 2
    except FairseqSamError as error:
        tell(f"error: {error}")
        return 1
    except OSError as error:
        tell(f"error: {error.filename or 'output'}: {error.strerror or error}")
        return 1
    except KeyboardInterrupt:
        tell("stopped; the same command goes on")
        return 130
    return 0


def tell(line: str) -> None:
    """Says what goes on; whether anybody can still read it is no matter to the work."""
    with contextlib.suppress(OSError):
        print(line, file=sys.stderr, flush=True)


def choose_gpus(options: argparse.Namespace, on_cpu: bool, only_check: bool) -> None:
    """Sets the number of GPUs where it was not given.

    Raises:
        MisuseError: there are fewer than wanted; a cluster's are not counted.
    """
    elsewhere = options.dry_run or options.launcher
    if options.gpus is None and (on_cpu or elsewhere):
        options.gpus = int(not on_cpu)
    if not elsewhere and options.gpus != 0:
        if only_check:  # there may be no torch yet to ask
            options.gpus = 1 if options.gpus is None else options.gpus
            return
        there = len(visible_gpus())
        options.gpus = min(1, there) if options.gpus is None else options.gpus
        if options.gpus > there:
            raise MisuseError(f"argument --gpus: {options.gpus} is not allowed: there are {there}")
    if options.nodes > 1 and not options.gpus:
        raise MisuseError(f"argument --nodes: {options.nodes} need --gpus of at least 1")


# ---- the stages ---------------------------------------------------------------------------------


def run(x: Experiment, program: str, arguments: Sequence[str]) -> None:
    """Does the stages that were asked for."""
    out, options = Path(x.out), x.options
    (out / ".done").mkdir(parents=True, exist_ok=True)
    if x.node:
        join(x)
        return
    begin = time.monotonic()
    with contextlib.ExitStack() as stack:
        if options.nodes > 1:
            stack.callback((out / ".done" / ENDED).touch)
        locks = [stack.enter_context(locked(out / ".lock", shared=bool(options.job)))]
        if options.job:
            locks.append(stack.enter_context(locked(out / ".done" / f"{options.job}.lock")))
        check_settings(out, x.recipe.recorded(x), tell)
        array = ["--launcher"] if options.launcher == ARRAY else []
        kept = without(arguments, "--stage", "--stop-stage", *array)
        again = f"{program} {one_line(kept)}"
        runner = Runner(_slots(options), tell, locks, keep_going=True)
        runner.again = lambda job: f"{again} --job {job.name}"
        if options.job:
            job = job_named(x, options.job)
            if job.record.exists():  # as where a cluster repeats what it stopped
                tell(f"{job.title}: done before")
            else:
                runner.run([job])
            return
        failures: List[str] = []
        stages = range(options.stage, options.stop_stage + 1)
        try:
            to_the_end = all(do_stage(x, runner, number, failures) for number in stages)
        except JobError as error:
            failures.append(str(error))
    if failures:
        raise JobError("\n  ".join(failures))
    if to_the_end:
        tell(f"finished in {duration(time.monotonic() - begin)}")


def do_stage(x: Experiment, runner: Runner, number: int, failures: List[str]) -> bool:
    """Does what is left of a stage; false where it was handed over to an array job.

    A job that fails takes along what goes on from it, and nothing else.

    Args:
        x: the experiment.
        runner: of its jobs.
        number: of the stage.
        failures: is added to by what failed, or was left undone by an earlier command.

    Raises:
        ExperimentError: nothing of the stage can be done.
        JobError: all of it failed.
    """
    if number == 6:
        report(x, failures)
        return True
    if number >= 3:
        x.check_done("prepare", 2)
    failed: List[str] = []
    groups = possible_jobs(x, number, failures)
    for jobs in groups:
        left = [job for job in jobs if not job.record.exists()]
        for job in jobs:
            if job not in left:
                tell(f"{job.title}: done before")
        if left and x.options.launcher == ARRAY and number in (3, 4):
            write_array(x, runner, left, number)
            return False
        if left:
            tell(f"stage {number}: {STAGES[number - 1]}")
            try:
                runner.run(left)
            except JobError as error:
                failed.append(str(error))
    if failed and not any(job.record.exists() for jobs in groups for job in jobs):
        raise JobError("\n  ".join(failed))
    failures += failed
    return True


def report(x: Experiment, failures: List[str]) -> None:
    """Tabulates what has been scored."""
    Runner([None], tell, counted=False).run(jobs_of(x, 6)[0])
    print(read_text(Path(x.out, "report.md")), end="", flush=True)
    for line in (f"table: {x.out}/report.md", *x.recipe.closing(x)):
        tell(line)
    if x.options.stage == 6:
        scored = x.scored()
        left_out = [run for run in x.runs() if run not in scored]
        failures += [f"{x.path(*run)}: not scored, not in the table" for run in left_out]


def _slots(options: argparse.Namespace) -> List[Optional[str]]:
    gpus = [] if options.launcher or not options.gpus else visible_gpus()
    return gpu_slots(gpus, max(options.gpus, 1), options.parallel)


def join(x: Experiment) -> None:
    """Takes part in what rank 0 launches."""
    shared = [(SHARED, seed) for seed in x.options.seeds if (x.options.start_epoch or 1) > 1]
    jobs = [training_job(x, *each) for each in (*shared, *x.runs())]
    runner, failures = Runner(_slots(x.options), tell, counted=False), []
    ended = _time_of(Path(x.out, ".done", ENDED))
    while True:
        tell("waiting for rank 0 to begin a training")
        job = _launched(jobs, lambda: _time_of(Path(x.out, ".done", ENDED)) != ended)
        if job is None:
            break
        jobs.remove(job)
        job.record = job.record.with_name(f"{job.name}.node{x.node}")
        try:
            runner.run([job])
        except JobError as error:  # rank 0 goes on with the next
            failures.append(str(error))
    if failures:
        raise JobError("\n  ".join(failures))


def _launched(jobs: Sequence[Job], is_over: Callable[[], bool]) -> Optional[Job]:
    """Waits until rank 0 is at work on one of the jobs; None where it is over, or all are done.

    It is at work on what has a file whose time goes on: one that a killed rank 0 left behind keeps
    its time.
    """
    before: Dict[str, Optional[int]] = {}
    while not is_over() and not all(job.record.exists() for job in jobs):
        for job in jobs:
            now = _time_of(job.log.parent / LAUNCHED)
            if None not in (now, before.get(job.name)) and now != before[job.name]:
                return job
            before[job.name] = now
        time.sleep(_WAIT_SECONDS)
    return None


def _time_of(path: Path) -> Optional[int]:
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return None


# ---- by hand, and by a cluster ------------------------------------------------------------------


def print_script(x: Experiment, program: str, arguments: Sequence[str]) -> None:
    """Prints a shell script that does what the runner would do."""
    places = {"OUT": x.out, "DATA": x.options.data, "ROOT": str(ROOT)}
    places = {name: str(place).rstrip("/") for name, place in places.items() if place}
    print("#!/usr/bin/env bash")
    options = one_line(argument for argument in arguments if argument != "--dry-run")
    print(f"# What {program} {options} does, one after the other.")
    print("# Trainings go on from their last checkpoint; `python` has fairseq and all the rest.")
    print("# Numbers that follow from the data, such as updates, are those of the whole set.")
    print("set -euo pipefail")
    for name, place in places.items():
        print(f"{name}={shlex.quote(place)}")
    print('export PYTHONPATH="$ROOT"')
    if "OMP_NUM_THREADS" in os.environ:
        print(f"export OMP_NUM_THREADS={shlex.quote(os.environ['OMP_NUM_THREADS'])}")
    for number in range(x.options.stage, x.options.stop_stage + 1):
        for job in (job for group in jobs_of(x, number) for job in group):
            print(f"\n# stage {number}: {job.title}")
            for step in job.steps():
                for line in shell_lines(step, places):
                    print(line)


def write_array(x: Experiment, runner: Runner, jobs: Sequence[Job], number: int) -> None:
    """Writes jobs as the commands of an array job, and says how to submit it."""
    path = Path(x.out, f"array.stage{number}.txt")
    begin = f"cd {shlex.quote(os.getcwd())} && "
    write_text(path, "".join(f"{begin}{runner.again(job)}\n" for job in jobs))
    tell(f"{len(jobs)} commands in {path}; submit them, and run this again when they are done:")
    line = f'sed -n "${{SLURM_ARRAY_TASK_ID}}p" {shlex.quote(str(path))} | bash'
    print(f"sbatch --array=1-{len(jobs)} --wrap {shlex.quote(line)}")
