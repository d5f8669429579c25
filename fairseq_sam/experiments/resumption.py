"""What a training that was cut off goes on from; what it cannot go on from is set aside."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Callable, Optional, Sequence

from fairseq_sam.experiments.directory import set_aside


def goes_on(
    last: Path, log: Path, tell: Callable[[str], None], others: Sequence[Path] = ()
) -> bool:
    """Tells whether a training has a checkpoint to go on from.

    Args:
        last: its last checkpoint.
        log: of how that came about; without it a checkpoint is worth nothing.
        tell: is called with a line about what was set aside.
        others: more files of the training, which may be missing.
    """

    def aside(path: Path, reason: str) -> None:
        tell(f"{path.parent.name}/{path.name}: {reason}; now {set_aside(path).name}")

    for path in (log, last, *others):
        if os.path.lexists(path) and not path.is_file():
            aside(path, "not a file")
    if not last.exists():
        return False
    if not log.exists() or log.stat().st_size == 0:
        aside(last, "the log of how it came about is lost")
        return False
    fault = fault_of(last)
    if fault is not None:
        aside(last, fault)
        aside(log, "it is of the damaged checkpoint")
    return fault is None


def fault_of(checkpoint: Path) -> Optional[str]:
    """Returns why a training cannot go on from a checkpoint, None if it can."""
    from fairseq_sam import host
    from fairseq_sam.checkpoints.checkpoint_files import CheckpointError, read_checkpoint

    host.repair()  # torch's safe loader then knows fairseq's types
    try:
        read_checkpoint(checkpoint)
    except CheckpointError as error:
        return str(error).partition(": ")[2] or str(error)
    return None
