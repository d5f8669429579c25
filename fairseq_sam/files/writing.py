"""Writes files whole or not at all.

A writer that is killed leaves the old file or none; a device (``/dev/full``) or a FIFO is written
to, and never replaced by a file.
"""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
import stat
from pathlib import Path
from typing import Any, Iterator

from fairseq_sam.files.reading import PathLike


@contextlib.contextmanager
def replaced(path: PathLike) -> Iterator[Path]:
    """Yields a name to write to, which takes the place of ``path`` once all went well.

    A link stays a link.  A device or a FIFO is written to as it is, for it must not be replaced.

    Raises:
        OSError: ``path`` cannot be written; ``filename`` and ``strerror`` are set.
    """
    name = os.fspath(path)
    if name in ("", ".") or os.path.isdir(name):
        kind = errno.EISDIR if name else errno.ENOENT
        raise OSError(kind, os.strerror(kind), name)
    target = Path(os.path.realpath(name))
    temporary = target.with_name(f".{target.name}.{os.getpid()}.incomplete")
    if target.exists() and not target.is_file():
        temporary = target
    try:
        if temporary == target:
            with _reader(target):
                yield target
        else:
            yield temporary
            os.replace(temporary, target)
    except OSError as error:
        if error.filename is None or str(error.filename) == str(temporary):
            reason = error.strerror or str(error) or type(error).__name__
            raise OSError(error.errno, reason, name) from error
        raise
    finally:
        if temporary != target:
            with contextlib.suppress(OSError):
                temporary.unlink()


@contextlib.contextmanager
def _reader(path: Path) -> Iterator[None]:
    """Holds a FIFO open, so that its reader stays; one that nobody reads is refused at once."""
    if not stat.S_ISFIFO(path.stat().st_mode):
        yield
        return
    descriptor = os.open(path, os.O_WRONLY | os.O_NONBLOCK)
    try:
        yield
    finally:
        os.close(descriptor)


def may_write(path: PathLike) -> bool:
    """Tells whether permissions allow what :func:`replaced` does, before there is work to lose."""
    target = os.path.realpath(path)
    is_file = os.path.isfile(target) or not os.path.exists(target)
    return os.access(os.path.dirname(target) if is_file else target, os.W_OK)


def write_text(path: PathLike, text: str) -> None:
    """Writes a text file so that it is never there by half.

    Raises:
        OSError: as :func:`replaced`.
    """
    with replaced(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(content: Any, path: PathLike) -> None:
    """Writes JSON so that it is never there by half; a number that is not finite becomes null.

    Raises:
        OSError: as :func:`replaced`.
    """
    write_text(path, json.dumps(_finite(content), indent=2, allow_nan=False) + "\n")


def _finite(content: Any) -> Any:
    """JSON has neither NaN nor infinity."""
    if isinstance(content, dict):
        return {key: _finite(value) for key, value in content.items()}
    if isinstance(content, (list, tuple)):
        return [_finite(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content
