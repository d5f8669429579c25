"""Run directories: one training run each, with its log and the scores of its translations."""

from __future__ import annotations

import math
import re
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Dict, List, Optional, Sequence

from fairseq_sam.reporting.scores import Score, read_scores
from fairseq_sam.reporting.train_log import EpochLog, parse_log

_DESCRIBED = re.compile(r"\b(?P<method>\w+): rho (?P<rho>[\d.e+-]+) (?P<parts>\(l.*)$")
"""What the log says of a sharpness-aware optimizer when it is built."""


class RunError(Exception):
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
    """

    name: str
    epochs: List[EpochLog]
    scores: Dict[str, Score]
    radius: Optional[float] = None
    method: str = ""

    def best_valid_loss(self) -> Optional[float]:
        """Returns the lowest validation loss in bits, None if none was logged."""
        losses = [e.valid["loss"] for e in self.epochs if "loss" in e.valid]
        finite = [loss for loss in losses if math.isfinite(loss)]
        return min(finite) if finite else None

    def seconds_per_epoch(self, perturbed: bool) -> Optional[float]:
        """Returns the mean training time of the epochs with (or without) the perturbation on."""
        seconds = [
            e.train["train_wall"]
            for e in self.epochs
            if "train_wall" in e.train and is_perturbed(e) == perturbed
        ]
        return statistics.fmean(seconds) if seconds else None

    def first_perturbed_epoch(self) -> Optional[int]:
        """Returns the first epoch with the perturbation on, None for a run without one."""
        return next((e.epoch for e in self.epochs if is_perturbed(e)), None)


def is_perturbed(epoch: EpochLog) -> bool:
    """Tells whether the weights were perturbed in (a part of) the epoch."""
    return epoch.train.get("perturbation_on", 0.0) > 0


def read_run(directory: Path, name: str) -> Run:
    """Reads a run directory.

    The log is every ``*.log`` in it, in alphabetical order; see ``read_scores`` for the scores.

    Raises:
        RunError: there is no such directory, or neither an epoch nor a score in it.
    """
    if not directory.is_dir():
        raise RunError(f"{directory}: no such directory")
    lines: List[str] = []
    for path in sorted(directory.glob("*.log")):
        lines += path.read_text(encoding="utf-8", errors="replace").splitlines()
    described = [match for match in map(_DESCRIBED.search, lines) if match]
    radius = float(described[-1]["rho"]) if described else 0.0
    method = described[-1]["method"] + described[-1]["parts"] if radius else ""
    run = Run(name, parse_log(lines), read_scores(directory), radius or None, method)
    if not run.epochs and not run.scores:
        raise RunError(f"{directory}: neither a log with an epoch nor a score")
    return run


def group_runs(runs: Sequence[Run], group_by: Optional[str]) -> Dict[str, List[Run]]:
    """Puts together runs whose names differ only in what a regular expression matches.

    Args:
        runs: in the order that groups will have.
        group_by: matches the seed in a name, for instance; without one each run is a group.

    Returns:
        By what is left of their names.
    """
    groups: Dict[str, List[Run]] = {}
    for run in runs:
        name = re.sub(group_by, "", run.name).strip("-_./ ") if group_by else run.name
        groups.setdefault(name or run.name, []).append(run)
    return groups


def run_names(directories: Sequence[Path], root: Optional[Path] = None) -> List[str]:
    """Names directories by their paths within ``root``.

    Without one they are named by their last component, or by as many as tell them apart.

    Raises:
        RunError: a directory is not within ``root``.
    """
    resolved = [path.resolve() for path in directories]
    if root is not None:
        return [_path_within(path, root.resolve()) for path in resolved]
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
