"""Files that an interruption leaves whole, and the lock on a search's directory."""

from __future__ import annotations

import contextlib
import fcntl
import os
from pathlib import Path
from typing import Iterator

from fairseq_sam.search.errors import BusyError


@contextlib.contextmanager
def replaced(path: Path) -> Iterator[Path]:
    """Yields a name to write to, which takes the place of ``path`` once all went well."""
    temporary = path.with_name(f".{path.stem}.{os.getpid()}.incomplete{path.suffix}")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        with contextlib.suppress(FileNotFoundError):
            temporary.unlink()


def write_text(path: Path, text: str) -> None:
    """Writes a file so that it is never there by half."""
    with replaced(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


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
