"""A search from its beginning, or from where it was interrupted, to its end."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Callable, Dict, Iterator, List, Optional, Sequence

from fairseq_sam.experiments.directory import (
    SETTINGS_NAME,
    Settings,
    check_settings,
    locked,
    read_settings,
)
from fairseq_sam.experiments.errors import MisuseError
from fairseq_sam.experiments.search.command_check import check_command
from fairseq_sam.experiments.search.strategy import Strategy, follow, one_by_one, order_then_grid
from fairseq_sam.experiments.search.summary import Summary, rows_of
from fairseq_sam.experiments.search.training_command import TrainingCommand
from fairseq_sam.experiments.search.trial_jobs import (
    CHECKPOINT_NAME,
    START_CONTENT,
    TrialRunner,
    content_of,
)
from fairseq_sam.experiments.search.trials import Result, StopRule, Trial


@dataclass(frozen=True)
class Plan:
    """What to search, and how.

    Attributes:
        directory: where each run has its directory.
        lowest: the least exponent of ten.
        highest: the greatest.
        margin: see :func:`~fairseq_sam.experiments.search.strategy.order_then_grid`.
        seeds: of the runs of each radius; None is the command's own.
        max_runs: the number of runs that may be made, None for no limit.
        rule: when to stop a run early.
        start_from: the checkpoint that every run begins with.
        shares: of the loss, to be tried in place of absolute radii.
        gpus_per_run: the batch grows with them.
    """

    directory: Path
    lowest: int
    highest: int
    margin: float
    seeds: Sequence[Optional[int]]
    max_runs: Optional[int]
    rule: StopRule
    start_from: Optional[Path]
    shares: Sequence[float] = ()
    gpus_per_run: int = 1

    def strategy(self, num_slots: int) -> Strategy:
        """Returns the strategy, for so many runs at once."""
        if self.shares:
            return one_by_one(self.shares)
        width = max(1, num_slots // len(self.seeds))
        return order_then_grid(self.lowest, self.highest, self.margin, width)

    @property
    def max_radii(self) -> Optional[int]:
        """The number of radii that may be tried, None for no limit."""
        return None if self.max_runs is None else self.max_runs // len(self.seeds)

    def trials(self, radii: Sequence[float]) -> List[Trial]:
        """Returns the runs of radii."""
        return [Trial(rho, seed) for rho in radii for seed in self.seeds]


def conduct(
    plan: Plan,
    command: TrainingCommand,
    slots: Sequence[Optional[str]],
    tell: Callable[[str], None],
) -> Summary:
    """Searches.

    The strategy is followed from its beginning each time; runs that have a result give it at once.

    Args:
        plan: see there.
        command: what to train.
        slots: see :class:`~fairseq_sam.experiments.search.trial_jobs.TrialRunner`.
        tell: is called with a line when a run starts and ends.

    Raises:
        ExperimentError: a run failed, or the directory is another search's.
        OSError: the directory cannot be written to.
    """
    plan.directory.mkdir(parents=True, exist_ok=True)
    results: Dict[Trial, Result] = {}
    with locked(plan.directory / ".lock") as lock:
        settings = settings_of(plan, command)
        unknown = _not_noted(plan.directory / SETTINGS_NAME, settings)
        check_settings(plan.directory, settings, tell, "rho-*")
        if unknown:
            noted = f"begun by a version that did not note {unknown}"
            tell(f"{plan.directory}: {noted}; taken to be as now")
        runner = TrialRunner(
            plan.directory, command, slots, plan.rule, tell, lock, plan.start_from, settings
        )

        def costs_of(radii: List[float]) -> Dict[float, float]:
            results.update(runner.run(plan.trials(radii)))
            return {row.rho: row.cost(command.maximise) for row in rows_of(results)}

        remark = follow(plan.strategy(len(slots)), costs_of, plan.max_radii)
    return Summary(command, rows_of(results), remark)


def first_commands(plan: Plan, command: TrainingCommand, num_slots: int) -> Iterator[List[str]]:
    """Yields the commands of the first runs, of which there are so many at once."""
    for trial in plan.trials(next(plan.strategy(num_slots))[: plan.max_radii]):
        folder = plan.directory / trial.name
        if plan.start_from is not None:
            yield ["mkdir", "-p", str(folder)]
            yield ["cp", str(plan.start_from), str(folder / CHECKPOINT_NAME)]
        yield ["fairseq-train", *command.of_run(trial.rho, trial.seed, folder)]


def settings_of(plan: Plan, command: TrainingCommand) -> Settings:
    """Returns what the results of a search depend on."""
    return {
        "arguments of fairseq-train": list(command.arguments),
        "--start-from": None if plan.start_from is None else str(plan.start_from.absolute()),
        START_CONTENT: None if plan.start_from is None else content_of(plan.start_from),
        "--stop-margin": plan.rule.margin,
        "--stop-after": plan.rule.patience,
        "--shares": command.shares,
        "--gpus-per-run": plan.gpus_per_run,
    }


def _not_noted(path: Path, ours: Settings) -> str:
    """Returns the names of those settings that an earlier version did not write down."""
    known = read_settings(path) or ours
    return ", ".join(name for name in ours if name not in known and ours[name] is not None)


def check_before(plan: Plan, command: TrainingCommand) -> None:
    """Checks what every run needs, before anything is written.

    A command that the directory was searched with before has been checked then.

    Raises:
        MisuseError: fairseq does not take the command, or nothing can start from the checkpoint.
    """
    if plan.start_from is not None:
        _check_start(plan.start_from, command.last_update)
    if read_settings(plan.directory / SETTINGS_NAME) != settings_of(plan, command):
        check_command(command.with_radius(plan.shares[0] if plan.shares else 10.0**plan.lowest))


def _check_start(checkpoint: Path, last_update: Optional[int]) -> None:
    from fairseq_sam import host
    from fairseq_sam.checkpoints.checkpoint_files import CheckpointError, read_checkpoint

    host.repair()  # torch's safe loader then knows fairseq's types
    try:
        history = read_checkpoint(checkpoint).get("optimizer_history")
    except CheckpointError as error:
        raise MisuseError(f"argument --start-from: {error}") from None
    newest = history[-1] if isinstance(history, list) and history else None
    done = newest.get("num_updates") if isinstance(newest, dict) else None
    if isinstance(done, int) and last_update is not None and done >= last_update:
        raise MisuseError(
            f"argument --start-from: {checkpoint} has {done} updates already, and --max-update"
            f" {last_update} leaves nothing to train"
        )
