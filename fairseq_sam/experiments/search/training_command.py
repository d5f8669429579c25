"""Reads the ``fairseq-train`` arguments whose radius is searched for, and completes them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Collection, List, Optional, Sequence, Tuple

from fairseq_sam.experiments.errors import MisuseError

_STARTS_OVER = "a run that goes on after an interruption would obey it again"
_SHARED = "all runs would write there"
_NOT_ALLOWED = {
    "--sam-rho": "it is what is searched for",
    "--save-dir": "each run gets its own",
    "--log-file": _SHARED,
    "--tensorboard-logdir": _SHARED,
    "--restore-file": f"{_STARTS_OVER} (--start-from of fairseq-sam search is for this)",
    "--reset-dataloader": _STARTS_OVER,
    "--reset-lr-scheduler": _STARTS_OVER,
    "--reset-meters": _STARTS_OVER,
    "--reset-optimizer": _STARTS_OVER,
    "--disable-validation": "radii are compared on the validation set",
}
_ENDS = ("--max-epoch", "--max-update", "--stop-time-hours", "--stop-min-lr", "--patience")


@dataclass(frozen=True)
class TrainingCommand:
    """What the arguments of ``fairseq-train`` say about the search.

    Attributes:
        arguments: the arguments.
        metric: what is validated, as fairseq's logs name it.
        maximise: whether more of it is better.
        subset: the part of the data that it is validated on.
        on_cpu: whether ``--cpu`` is among them.
        last_update: the value of ``--max-update``, None if there is none.
        shares: whether radii are shares of the loss.
    """

    arguments: Tuple[str, ...]
    metric: str
    maximise: bool
    subset: str
    on_cpu: bool
    last_update: Optional[int] = None
    shares: bool = False

    def radius(self, rho: float) -> str:
        """Returns a radius as ``--sam-rho`` takes it."""
        return f"{rho * 100:g}%" if self.shares and rho > 0 else f"{rho:g}"

    def with_radius(self, rho: float) -> List[str]:
        """Returns the arguments and a radius."""
        return [*self.arguments, "--sam-rho", self.radius(rho)]

    def of_run(self, rho: float, seed: Optional[int], save_dir: Path) -> List[str]:
        """Returns all arguments of one run; ``seed`` None is the command's own.

        Of a flag that is given twice the last counts: the search reads the log, so it must be JSON.
        """
        seeded = [] if seed is None else ["--seed", str(seed)]
        log = ["--log-format", "json", "--no-progress-bar"]
        return [*self.with_radius(rho), *seeded, *log, "--save-dir", str(save_dir)]


def read_training_command(
    arguments: Sequence[str],
    methods: Collection[str],
    user_dir: Path,
    seeds_given: bool = False,
    shares: bool = False,
) -> TrainingCommand:
    """Checks arguments of ``fairseq-train`` and reads what the search needs to know.

    Args:
        arguments: as on the command line.
        methods: the optimizers that have a radius.
        user_dir: the plugin's, added if they name none.
        seeds_given: whether the search sets ``--seed``.
        shares: whether radii are shares of the loss.

    Raises:
        MisuseError: for a flag that the search would contradict, or one that is missing.
    """
    given = [argument.split("=", 1)[0] for argument in arguments]
    reasons = dict(_NOT_ALLOWED)
    if seeds_given:
        reasons["--seed"] = "--seeds of fairseq-sam search sets it"
    for flag, reason in reasons.items():
        if flag in given:
            raise MisuseError(f"argument {flag} of fairseq-train is not allowed here: {reason}")
    optimizer = _value(arguments, "--optimizer", None)
    if optimizer not in methods:
        has = "is missing" if optimizer is None else f"{optimizer!r} has no radius"
        names = ", ".join(sorted(methods))
        raise MisuseError(f"argument --optimizer of fairseq-train: {has} (choose from {names})")
    if not any(flag in given for flag in _ENDS):
        raise MisuseError(
            f"arguments of fairseq-train: nothing ends a run (give one of {', '.join(_ENDS)})"
        )
    last = _value(arguments, "--max-update", None) or ""
    plugin = () if "--user-dir" in given else ("--user-dir", str(user_dir))
    return TrainingCommand(
        arguments=(*arguments, *plugin),
        metric=_value(arguments, "--best-checkpoint-metric", "loss") or "loss",
        maximise="--maximize-best-checkpoint-metric" in given,
        subset=(_value(arguments, "--valid-subset", "valid") or "valid").split(",")[0],
        on_cpu="--cpu" in given,
        shares=shares,
        last_update=int(last) or None if re.fullmatch("[0-9]{1,18}", last) else None,
    )


def _value(arguments: Sequence[str], flag: str, default: Optional[str]) -> Optional[str]:
    """Returns the value of a flag as argparse would: the last one, after a space or ``=``."""
    value = default
    for index, argument in enumerate(arguments):
        if argument == flag and index + 1 < len(arguments):
            value = arguments[index + 1]
        elif argument.startswith(f"{flag}="):
            value = argument.split("=", 1)[1]
    return value
