"""The lock on a search's directory, and what is set aside there."""

from __future__ import annotations

import contextlib
import fcntl
import os
from pathlib import Path
from typing import Iterator

from fairseq_sam.search.errors import BusyError


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
    descriptor = os.open(directory / ".lock", os.O_RDWR | os.O_CREAT, 0o666)
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
