"""One recipe with one command line: its folders, and the commands that they make."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, Callable, Dict, Iterable, Iterator, List, Optional

from fairseq_sam.experiments.command_lines import Command, Step, commands, words
from fairseq_sam.experiments.directory import set_aside
from fairseq_sam.experiments.errors import ExperimentError, MisuseError
from fairseq_sam.experiments.options import ARRAY
from fairseq_sam.experiments.recipe import Recipe, perturbs
from fairseq_sam.experiments.resumption import goes_on

ROOT = Path(__file__).resolve().parents[2]
# What -m subword_nmt runs does nothing, and its script may not be on the PATH.
_SUBWORD_NMT = ("-c", "from subword_nmt.subword_nmt import main; main()")

LAUNCHED = "launched"
"""In a run's folder the file whose time goes on while rank 0 of several machines trains it."""

_LOG = "--no-progress-bar --log-format json --log-interval 100"
_TORCHRUN = """torchrun --nnodes {nodes} --node-rank {rank} --nproc-per-node {gpus}
    --master-addr {host} --master-port {port} -m fairseq_cli.train"""
_BRANCH = """
rm -rf {run}/checkpoints.incomplete
mkdir {run}/checkpoints.incomplete
{copies}
cp {shared}/train.log {run}/train.log
mv {run}/checkpoints.incomplete {run}/checkpoints
"""
_COPY = "cp {{shared}}/checkpoints/checkpoint{0}.pt {{run}}/checkpoints.incomplete\n"


class Experiment:
    """A recipe's commands.

    Args:
        recipe: what the table is made of.
        options: see :mod:`fairseq_sam.experiments.options`.
        tell: is called with lines about what goes on.

    Raises:
        MisuseError: an option's value is not allowed.
    """

    def __init__(
        self, recipe: Recipe, options: argparse.Namespace, tell: Callable[[str], None]
    ) -> None:
        self.recipe, self.options, self.tell = recipe, options, tell
        self.dry = bool(options.dry_run)
        self.python = "python" if self.dry else sys.executable
        folder = recipe.folder(options) + ("-small" if options.small else "")
        self.out = os.path.abspath(options.out or ROOT / "runs" / folder)
        self._check_data()
        self.shares = options.nodes * max(options.gpus, 1)
        self.node = options.node_rank
        small = bool(options.small)
        for name, sizes in recipe.sizes.items():
            if getattr(options, name) is None:
                setattr(options, name, sizes[small])
        self._values = {name: words(texts[small]) for name, texts in recipe.settings.items()}
        own = [name for name in recipe.remembered if name not in ("data", "extra", "small")]
        self._values.update({name: getattr(options, name) for name in own})
        self._values.update(recipe.choose(self))
        for name in ("start_epoch", "average"):
            if (getattr(options, name) or 0) > (options.epochs or getattr(options, name) or 0):
                raise MisuseError(
                    f"argument --{name.replace('_', '-')}: {getattr(options, name)} is not allowed:"
                    f" there are {options.epochs} epochs"
                )

    def _check_data(self) -> None:
        """Refuses data in the folder that holds what is made of them.

        Raises:
            MisuseError: they are there.
        """
        data, prepared = self.options.data, Path(self.out, "prepared")
        if data is None or not os.path.exists(data) or not prepared.exists():
            return
        found, place = Path(os.path.realpath(data)), Path(os.path.realpath(prepared))
        if place == found or place in found.parents:
            raise MisuseError(
                f"argument --data: {data} is not allowed: it is in the prepared of --out {self.out}"
            )

    # ---- texts ----------------------------------------------------------------------------------

    def values(self, **more: Any) -> Dict[str, Any]:
        """Returns what the recipe's texts name."""
        prepared = f"{self.out}/prepared"
        return {
            "root": str(ROOT),
            "out": self.out,
            "python": self.python,
            "prepared": prepared,
            "bin": f"{prepared}/bin",
            "data": self.options.data or f"{self.out}/download",
            "subword_nmt": [self.python, *_SUBWORD_NMT],
            **self._values,
            **more,
        }

    def per_worker(self, batch: int) -> int:
        """Returns what each GPU takes of a batch."""
        return -(-batch // self.shares)

    def path(self, method: str, seed: int) -> str:
        """Returns the folder of a run."""
        return f"{self.out}/runs/{method}{self.seeded('/', seed)}"

    def seeded(self, sign: str, seed: int) -> str:
        """Returns what names a seed, nothing where there is one only."""
        return "" if self.recipe.one_seed else f"{sign}seed{seed}"

    def shared_path(self, seed: int) -> str:
        """Returns the folder of the epochs that all methods share."""
        return f"{self.out}/shared{self.seeded('/', seed)}"

    def job_name(self, kind: str, method: str, seed: int) -> str:
        """Returns the name of the job that trains or scores a run."""
        return f"{kind}.{method}{self.seeded('.', seed)}"

    def done(self, name: str) -> bool:
        """Tells whether a job is done; in a dry run none is."""
        return not self.dry and self.record(name).exists()

    def record(self, name: str) -> Path:
        """Returns the file that tells that a job is done."""
        return Path(self.out, ".done", name)

    # ---- one training ---------------------------------------------------------------------------

    def training(self, folder: str, seed: int, flags: Iterable[str]) -> Command:
        """Returns the command that trains, from ``folder``'s last checkpoint if there is one."""
        options, gpus = self.options, self.options.gpus
        values = self.values(seed=seed, **self.recipe.flags(self, seed))
        world = words("--cpu --distributed-world-size 1")
        if gpus:
            world = words("--distributed-world-size {n}", n=options.nodes * gpus)
        program = [self.python, "-m", "fairseq_cli.train"]
        if options.nodes > 1:
            host, port = options.master.split(":")
            numbers = {"nodes": options.nodes, "rank": self.node, "gpus": gpus}
            program = words(_TORCHRUN, **numbers, host=host, port=port)
        return Command(
            (
                *program,
                values["bin"],
                *words(self.recipe.shared, **values),
                *words("--seed {seed}", seed=seed),
                *flags,
                *words("--save-dir {folder}/checkpoints", folder=folder),
                *words(_LOG),
                *world,
                *shlex.split(options.extra),
            ),
            log=str(self.train_log(folder)),
        )

    def train_log(self, folder: str) -> Path:
        """Returns the log of a training."""
        return Path(folder, f"train.node{self.node}.log" if self.node else "train.log")

    def _check_checkpoints(self, folder: str) -> None:
        """Sets aside checkpoints that a training cannot go on from."""
        checkpoints = Path(folder, "checkpoints")
        last = checkpoints / "checkpoint_last.pt"
        if self.dry or self.node or not os.path.lexists(last):
            return
        if not goes_on(last, self.train_log(folder), self.tell):
            self.tell(f"{checkpoints}: now {set_aside(checkpoints).name}")

    def _launch(self, folder: str, seed: int, flags: Iterable[str]) -> Iterator[Step]:
        """Trains; where others are to join, a file is there as long as it takes."""
        signal = Path(folder, LAUNCHED)
        together = self.options.nodes > 1 and not self.node and not self.dry
        if together:
            signal.touch()
        try:
            yield self._behind(self.training(folder, seed, flags))
        finally:
            if together:
                signal.unlink()

    def train_shared(self, seed: int) -> Iterator[Step]:
        """Yields the first epochs, which are the same for all methods."""
        folder = self.shared_path(seed)
        self._check_checkpoints(folder)
        yield from commands("mkdir -p {folder}", folder=folder)
        flags = words(self.recipe.methods[self.recipe.first], **self.values())
        last = self.options.start_epoch - 1
        yield from self._launch(folder, seed, [*flags, "--max-epoch", str(last)])

    def train(self, method: str, seed: int) -> Iterator[Step]:
        """Yields a run's training; it begins with a copy of the shared epochs."""
        folder, start = self.path(method, seed), self.options.start_epoch or 1
        self._check_checkpoints(folder)
        yield from commands("mkdir -p {folder}", folder=folder)
        if start > 1:
            shared = self.shared_path(seed)
            copies = "".join(map(_COPY.format, ["_last", *self._wanted_of_shared(start)]))
            text = _BRANCH.replace("{copies}", copies)
            for command in commands(text, run=folder, shared=shared):
                yield replace(command, unless=f"{folder}/checkpoints")
        yield from self._launch(folder, seed, self.method_flags(method, seed))

    def _wanted_of_shared(self, start: int) -> Iterable[object]:
        """Returns those of the shared checkpoints that may be averaged, or be the best."""
        if self.options.average is None:
            return ["_best"]
        return range(self.options.epochs - self.options.average + 1, start)

    def method_flags(self, method: str, seed: int) -> List[str]:
        """Returns the flags of a method, which may name a radius behind an @."""
        name, _, radius = method.partition("@")
        text = self.recipe.methods[name]
        flags = words(text, **self.values(**self.recipe.flags(self, seed)))
        if radius:
            flags += ["--sam-rho", radius]
            if "--delta-sam-probe-radius" in flags:
                flags += ["--delta-sam-probe-radius", radius]
        # A regulariser begins there because the shared epochs are without it.
        # A method may have a start of its own.
        starts = perturbs(text) and "--sam-start" not in text
        if self.options.start_epoch is not None and starts:
            flags += ["--sam-start-epoch", str(self.options.start_epoch)]
        if self.options.epochs is not None and self.recipe.has_epochs:
            flags += ["--max-epoch", str(self.recipe.length(self, name))]
        return flags

    def _behind(self, command: Command) -> Command:
        launcher = self.options.launcher
        small = command.words[0] in ("mkdir", "rm", "mv", "cp", "cat", "touch")
        return command if small or launcher in ("", ARRAY) else command.behind(launcher)

    # ---- scores and report ----------------------------------------------------------------------

    def score(self, method: str, seed: int) -> Iterator[Step]:
        """Yields what scores a run."""
        folder = self.path(method, seed)
        first = self.recipe.first
        other = f"{self.path(first, seed)}/hypothesis"
        there = first in self.options.methods if self.dry else os.path.exists(other)
        baseline = ["--baseline", other] if method != first and there else []
        run = {"run": folder, "baseline": baseline, "seed": seed}
        free = "touch {run}/scored\nrm -rf {run}/checkpoints"
        if self.options.free_disk and not self.dry and os.path.exists(f"{folder}/scored"):
            yield from commands(free, **run)  # it was killed while it deleted
            return
        for step in self.recipe.scoring(self, {**run, **self.recipe.flags(self, seed)}):
            yield self._behind(step) if isinstance(step, Command) else step
        if self.options.free_disk:
            yield from commands(free, **run)

    def report(self) -> List[Command]:
        """Returns the commands that tabulate all runs."""
        options, title = self.options, self.recipe.heading(self)
        flags = self.recipe.report_flags(self)
        if self.recipe.curves:
            flags += words("--plot {out}/curves.png", out=self.out)
        if options.small:
            title += ", small"
            other = ", other data" if options.data else ""
            flags += ["--paper-remark", f"not comparable: small model{other}"]
        elif options.data:
            flags += ["--paper-remark", "comparable only if --data is the paper's"]
        table, runs = self.recipe.table(self), self.recipe.reported(self)
        values = self.values(runs=runs, table=table, title=title, flags=flags)
        return commands(self.recipe.report_text(self), **values)

    # ---- what there is to do --------------------------------------------------------------------

    def runs(self, method: Optional[bool] = None) -> List[tuple]:
        """Returns methods with seeds; with ``method`` only the baseline's, or only the others'."""
        options = self.options
        pairs = [(name, seed) for seed in options.seeds for name in options.methods]
        return [
            pair for pair in pairs if method is None or (pair[0] == self.recipe.first) is method
        ]

    def scored(self) -> List[tuple]:
        """Returns the runs that have been scored, all of them where none has."""
        runs = self.runs()
        return [run for run in runs if self.done(self.job_name("score", *run))] or runs

    def download(self) -> Iterator[Step]:
        """Yields what gets the data."""
        yield from commands("mkdir -p {out}/download", out=self.out)
        yield from self.recipe.downloads(self)

    def prepare(self) -> Iterator[Step]:
        """Yields what prepares the data; they are there when all of it is done."""
        folder, prepared = f"{self.out}/prepared.incomplete", Path(self.out, "prepared")
        if not self.dry and os.path.lexists(prepared):  # it may be the user's
            self.tell(f"{prepared}: in the way; now {set_aside(prepared).name}")
        yield from commands(
            "rm -rf {folder} {prepared}\nmkdir -p {folder}", **self.values(folder=folder)
        )
        yield from self.recipe.prepare(self, folder)
        yield from commands("mv {folder} {prepared}", **self.values(folder=folder))

    def pretrain(self) -> Iterator[Step]:
        """Yields what is trained once before all."""
        for command in self.recipe.pretraining(self):
            trains = "fairseq_cli.train" in command.words
            log = f"{self.out}/pretrain/train.log" if trains else ""
            yield self._behind(replace(command, log=log))

    def check_done(self, name: str, number: int) -> None:
        """Refuses to go on where an earlier stage has not been done.

        Raises:
            ExperimentError: it has not.
        """
        if not self.dry and not self.done(name):
            raise ExperimentError(
                f"stage {number} has not been done in {self.out}: start with --stage {number}"
            )
