"""Run directories: one training run each, with its log and the scores of its translations."""

from __future__ import annotations

import errno
import math
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Dict, List, Optional, Sequence

from fairseq_sam import FairseqSamError
from fairseq_sam.files.reading import read_lines
from fairseq_sam.reporting.numbers import mean_of, printable
from fairseq_sam.reporting.scores import (
    Remark,
    Score,
    files_like,
    ignore,
    read_scores,
)
from fairseq_sam.reporting.train_log import EpochLog, parse_line, parse_log

_NUMBER = r"[0-9]+(?:\.[0-9]+)?(?:e[-+]?[0-9]{1,3})?"
_DESCRIBED = re.compile(
    rf"\b(?P<method>\w+): rho (?P<share>for )?(?P<rho>{_NUMBER})"
    rf"(?:% of the loss(?:, at most {_NUMBER})?)? (?P<parts>\(l.*)$"
)
"""What the log says of a sharpness-aware optimizer when it is built."""


class RunError(FairseqSamError):
    """A directory that holds no run; the text is one line that names it."""


@dataclass(frozen=True)
class Run:
    """What is known of one run.

    Attributes:
        name: what to call it.
        epochs: its log, by epoch.
        scores: metric to score.
        radius: of the perturbation, None where there is none.
        method: everything else that the log says of the perturbation; empty where there is none.
        is_share: whether the radius is a share of the loss.
    """

    name: str
    epochs: List[EpochLog]
    scores: Dict[str, Score]
    radius: Optional[float] = None
    method: str = ""
    is_share: bool = False

    def best_valid_loss(self) -> Optional[float]:
        """Returns the lowest validation loss in bits, None if none was logged."""
        losses = [loss for e in self.epochs for loss in e.valid_losses.values()]
        losses += [e.valid["loss"] for e in self.epochs if "loss" in e.valid]
        finite = [loss for loss in losses if math.isfinite(loss)]
        return min(finite) if finite else None

    def seconds_per_epoch(self, perturbed: bool) -> Optional[float]:
        """Returns the mean training time of the epochs with (or without) the perturbation on."""
        seconds = [
            e.train["train_wall"]
            for e in self.epochs
            if "train_wall" in e.train and is_perturbed(e) == perturbed
        ]
        return mean_of(seconds) if seconds else None

    def epoch_seconds(self) -> Dict[int, float]:
        """Returns the training time of each epoch, in whole seconds, without validation."""
        return {e.epoch: e.train["train_wall"] for e in self.epochs if "train_wall" in e.train}

    def rough_epoch_seconds(self) -> Dict[int, float]:
        """Returns the same by the updates per second, which count validation and saving in."""
        found, before = {}, 0.0
        for epoch in self.epochs:
            updates, rate = epoch.train.get("num_updates", before), epoch.train.get("ups")
            if rate:
                found[epoch.epoch] = (updates - before) / rate
            before = updates
        return found

    def first_perturbed_epoch(self) -> Optional[int]:
        """Returns the first epoch with the perturbation on, None for a run without one."""
        return next((e.epoch for e in self.epochs if is_perturbed(e)), None)


def is_perturbed(epoch: EpochLog) -> bool:
    """Tells whether the weights were perturbed in (a part of) the epoch."""
    return epoch.train.get("perturbation_on", 0.0) > 0


def read_run(directory: Path, name: str, remark: Remark = ignore) -> Run:
    """Reads a run directory; a file in it that cannot be read is passed over.

    The log is every ``*.log`` in it, in alphabetical order; see ``read_scores`` for the scores.

    Args:
        directory: anything may be in it.
        name: what to call the run.
        remark: is called with a line about each file that was passed over.

    Raises:
        RunError: there is no such directory, or neither an epoch nor a score in it.
    """
    if not os.path.isdir(directory):
        exists = os.path.lexists(directory)
        raise RunError(f"{directory}: {'not a directory' if exists else 'no such directory'}")
    if not os.access(directory, os.R_OK | os.X_OK):
        raise RunError(f"{directory}: {os.strerror(errno.EACCES)}")
    log = _Log()
    for path in files_like(directory, "*.log", remark):
        try:
            log.read(path)
        except OSError as error:
            remark(f"{path}: {error.strerror or error}")
    scores = read_scores(directory, remark)
    radius = log.radius or None
    run = Run(
        printable(name, 200), log.epochs(), scores, radius, log.method(), bool(radius and log.share)
    )
    if not run.epochs and not run.scores:
        raise RunError(f"{directory}: neither a log with an epoch nor a score")
    return run


class _Log:
    """What the logs of a run say, read line by line, for they may be long."""

    def __init__(self) -> None:
        self.radius = 0.0
        self.share = False
        self._described = ""
        self._lines: List[str] = []

    def read(self, path: Path) -> None:
        """Reads one log to its end, or as far as it can be read."""
        for line in read_lines(path):
            described = _DESCRIBED.search(line)
            if described and math.isfinite(float(described["rho"])):
                self.share = described["share"] is not None
                self.radius = float(described["rho"]) / (100 if self.share else 1)
                kind = " share " if self.share else " "
                self._described = described["method"] + kind + described["parts"]
            elif parse_line(line) is not None:
                self._lines.append(line)

    def method(self) -> str:
        """Returns what the log says of the perturbation; empty where there is none."""
        return self._described if self.radius else ""

    def epochs(self) -> List[EpochLog]:
        """Returns the numbers of each epoch."""
        return parse_log(self._lines)


def group_runs(runs: Sequence[Run], group_by: Optional[str]) -> Dict[str, List[Run]]:
    """Puts together runs whose names differ only in what a regular expression matches.

    Args:
        runs: in the order that groups will have.
        group_by: matches the seed in a name, for instance; without one each run is a group.

    Returns:
        By what is left of their names; ``all`` where nothing is.
    """
    groups: Dict[str, List[Run]] = {}
    for run in runs:
        name = re.sub(group_by, "", run.name).strip("-_./ ") if group_by else run.name
        groups.setdefault(name or "all", []).append(run)
    return groups


def run_names(directories: Sequence[Path], root: Optional[Path] = None) -> List[str]:
    """Names directories by their paths within ``root``.

    Without one they are named by their last component, or by as many as tell them apart.

    Raises:
        RunError: a directory is not within ``root``.
    """
    # Path.resolve ends in a traceback at a link that leads to itself.
    resolved = [Path(os.path.realpath(path)) for path in directories]
    if root is not None:
        return [_path_within(path, Path(os.path.realpath(root))) for path in resolved]
    depth = 1
    longest = max((len(path.parts) for path in resolved), default=1)
    while depth < longest:
        names = ["/".join(path.parts[-depth:]) for path in resolved]
        if len(set(names)) == len(names):
            break
        depth += 1
    return ["/".join(path.parts[-depth:]) for path in resolved]


def _path_within(path: Path, root: Path) -> str:
    try:
        return path.relative_to(root).as_posix()
    except ValueError:
        raise RunError(f"{path}: not within {root}") from None
