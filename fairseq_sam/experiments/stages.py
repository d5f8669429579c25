"""The stages of an experiment, and the jobs of each."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Callable, Iterable, List, Optional

from fairseq_sam.experiments.command_lines import Step
from fairseq_sam.experiments.errors import MisuseError
from fairseq_sam.experiments.experiment import LAUNCHED, Experiment
from fairseq_sam.experiments.jobs import Job
from fairseq_sam.experiments.log_lines import EpochLines

SHARED = "shared"
"""Stands for the method of the epochs that all share."""


def jobs_of(x: Experiment, stage: int) -> List[List[Job]]:
    """Returns the jobs of a stage, in groups that follow each other."""
    if stage == 1:
        return [[_job(x, "download", "getting the data", x.download)]]
    if stage == 2:
        return [[_job(x, "prepare", "preparing the data", x.prepare)]]
    if stage == 3:
        return [_shared_jobs(x)]
    if stage == 4:
        return [[training_job(x, *run) for run in x.runs()]]
    if stage == 5:  # those first that others are compared with
        return [[_score_job(x, *run) for run in x.runs(first)] for first in (True, False)]
    return [[_job(x, "report", "reporting", x.report)]]


def possible_jobs(x: Experiment, number: int, failures: List[str]) -> List[List[Job]]:
    """Returns a stage's jobs but for those that wait for one that is not done.

    Args:
        x: the experiment.
        number: of the stage.
        failures: is added to by what is waited for, if this command has not tried it itself.

    Raises:
        ExperimentError: all of them wait.
    """
    groups = jobs_of(x, number)
    missing = [job.missing() for jobs in groups for job in jobs]
    waited_for = {job.name: job for job in missing if job is not None}
    if waited_for and None not in missing:
        x.check_done(next(iter(waited_for)), number - 1)
    if number == x.options.stage:
        failures += [f"{job.title}: not done, {job.log}" for job in waited_for.values()]
    return [[job for job in jobs if job.missing() is None] for jobs in groups]


def job_named(x: Experiment, name: str) -> Job:
    """Returns a job.

    Raises:
        MisuseError: there is none by that name.
    """
    jobs = [job for stage in range(1, 6) for group in jobs_of(x, stage) for job in group]
    for job in jobs:
        if job.name == name:
            return job
    known = ", ".join(job.name for job in jobs)
    raise MisuseError(f"argument --job: {name} is not allowed: choose from {known}")


def training_job(x: Experiment, method: str, seed: int) -> Job:
    """Returns the job that trains a method, or the epochs that all share."""
    shared = method == SHARED
    folder = x.shared_path(seed) if shared else x.path(method, seed)

    def steps() -> Iterable[Step]:
        return x.train_shared(seed) if shared else x.train(method, seed)

    title = f"training {'the shared epochs' if shared else method} with seed {seed}"
    job = _job(x, x.job_name("train", method, seed), title, steps, x.train_log(folder))
    if not shared and (x.options.start_epoch or 1) > 1:
        job.after = training_job(x, SHARED, seed)
    if x.options.nodes > 1 and not x.node:
        watch, signal = job.watch, Path(folder, LAUNCHED)

        def beat(start: int) -> str:
            with contextlib.suppress(OSError):
                os.utime(signal)
            return watch(start)

        job.watch = beat
    return job


def _shared_jobs(x: Experiment) -> List[Job]:
    if (x.options.start_epoch or 1) > 1:
        return [training_job(x, SHARED, seed) for seed in x.options.seeds]
    if not x.recipe.pretraining(x):
        return []
    return [_job(x, "pretrain", "pretraining", x.pretrain, Path(x.out, "pretrain", "train.log"))]


def _score_job(x: Experiment, method: str, seed: int) -> Job:
    title, log = f"scoring {method} with seed {seed}", Path(x.path(method, seed), "score.log")
    name = x.job_name("score", method, seed)
    job = _job(x, name, title, lambda: x.score(method, seed), log)
    job.after = training_job(x, method, seed)
    return job


def _job(
    x: Experiment,
    name: str,
    title: str,
    steps: Callable[[], Iterable[Step]],
    log: Optional[Path] = None,
) -> Job:
    log = log or Path(x.out, f"{name}.log")
    label = title.replace("training ", "").replace(" with", "")
    watch = EpochLines(log, lambda line: x.tell(f"  {label}: {line}")).look
    return Job(name, title, steps, log, x.record(name), watch)
