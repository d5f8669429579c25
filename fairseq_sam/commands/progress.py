"""Progress bars on stderr: with a label, and an estimate where the number of steps is known."""

from __future__ import annotations

import contextlib
import sys
from typing import Any, Callable, Iterable, Iterator, List, Optional


def progress(steps: Iterable[Any], total: int, unit: str, label: str) -> List[Any]:
    """Goes through all steps with a progress bar, and returns them.

    Args:
        steps: what yields after each.
        total: how many there will be.
        unit: what one is called.
        label: what the bar is of, such as the checkpoint.
    """
    found = []
    with counting(unit, label, total) as after_each:
        for step in steps:
            found.append(step)
            after_each()
    return found


@contextlib.contextmanager
def counting(unit: str, label: str, total: Optional[int] = None) -> Iterator[Callable[[], object]]:
    """Shows a progress bar; yields what to call after each step.

    Args:
        unit: as for :func:`progress`.
        label: as there.
        total: as there; None where it is not known.
    """
    from tqdm import tqdm

    quiet = 0 if sys.stderr.isatty() else 30  # in a log, a line each half minute is enough
    with tqdm(
        total=total,
        desc=label,
        unit=unit,
        file=sys.stderr,
        delay=quiet,
        mininterval=quiet or 0.1,
        dynamic_ncols=True,
    ) as bar:
        yield bar.update
