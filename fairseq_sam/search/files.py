"""The lock on a search's directory, and what is set aside there."""

from __future__ import annotations

import contextlib
import fcntl
import os
from pathlib import Path
from typing import Iterator

from fairseq_sam.search.errors import BusyError


def set_aside(path: Path) -> Path:
    """Renames what is in the way, whatever it is, and returns its new name."""
    number = 1
    while os.path.lexists(f"{path}.damaged{number}"):
        number += 1
    aside = Path(f"{path}.damaged{number}")
    os.rename(path, aside)
    return aside


@contextlib.contextmanager
def locked(directory: Path) -> Iterator[int]:
    """Holds a directory's lock.

    Processes that inherit the descriptor hold it as well: training that outlives a killed search
    keeps a second search from training in the same place.

    Yields:
        The file descriptor.

    Raises:
        BusyError: another process holds it.
    """
    lock = directory / ".lock"
    if os.path.lexists(lock) and not lock.is_file():
        set_aside(lock)
    descriptor = os.open(lock, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise BusyError(
            f"{directory}: a search is at work there, or training that one has left behind"
        ) from None
    try:
        yield descriptor
    finally:
        os.close(descriptor)
