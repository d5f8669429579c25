"""Reads files without waiting for anything.

A directory of runs may hold anything by any name. Opening a FIFO waits for a writer, and reading a
device never ends: what is no regular file is refused here, in one line.
"""

from __future__ import annotations

import errno
import hashlib
import io
import json
import os
import stat
from typing import Any, BinaryIO, Iterator, Union

from fairseq_sam import FairseqSamError

PathLike = Union[str, "os.PathLike[str]"]

MOST_TEXT = 64 << 20
"""Bytes that are read at once; figures and scores take a few thousand."""

MOST_LOG = 1 << 30
_LONGEST_LINE = 1 << 20
_PIECE = 1 << 20


class DataError(FairseqSamError):
    """Data that cannot be used; the text is one line that names the file."""


def open_regular(path: PathLike) -> BinaryIO:
    """Opens a regular file for reading, and never waits for anything.

    Raises:
        OSError: it cannot be opened or is of another kind; ``filename`` and ``strerror`` are set.
    """
    flags = os.O_RDONLY
    for name in ("O_BINARY", "O_CLOEXEC", "O_NOCTTY", "O_NONBLOCK"):
        flags |= getattr(os, name, 0)
    try:
        check_regular(os.stat(path), path)
        descriptor = os.open(path, flags)
    except FileNotFoundError as error:
        if os.path.islink(path):
            raise OSError(errno.ENOENT, "is a link to nothing", os.fspath(path)) from None
        raise error
    except ValueError as error:  # a NUL byte in its name
        raise OSError(errno.EINVAL, str(error), os.fspath(path)) from None
    try:
        check_regular(os.fstat(descriptor), path)  # it may have been exchanged meanwhile
    except OSError:
        os.close(descriptor)
        raise
    return os.fdopen(descriptor, "rb")


def check_regular(status: os.stat_result, path: PathLike) -> None:
    """Refuses what is no regular file.

    Raises:
        OSError: naming the file and what it is.
    """
    if not stat.S_ISREG(status.st_mode):
        raise OSError(errno.EINVAL, f"is {_kind(status.st_mode)}, not a file", os.fspath(path))


def _kind(mode: int) -> str:
    if stat.S_ISDIR(mode):
        return "a directory"
    if stat.S_ISFIFO(mode):
        return "a FIFO"
    return "a socket" if stat.S_ISSOCK(mode) else "a device"


def read_text(path: PathLike) -> str:
    """Returns the text of a file; what is no UTF-8 becomes U+FFFD.

    Raises:
        OSError: it cannot be read, is no regular file, or has more than ``MOST_TEXT`` bytes.
    """
    with open_regular(path) as stream:
        content = stream.read(MOST_TEXT + 1) or b""
    if len(content) > MOST_TEXT:
        raise OSError(errno.EFBIG, f"has more than {MOST_TEXT >> 20} MiB", os.fspath(path))
    return content.decode("utf-8-sig", errors="replace")


def read_lines(path: PathLike) -> Iterator[str]:
    """Yields the lines of a log, without their ends; very long ones come in pieces.

    Raises:
        OSError: as :func:`read_text`, but it may have ``MOST_LOG`` bytes.
    """
    with open_regular(path) as stream:
        if os.fstat(stream.fileno()).st_size > MOST_LOG:
            raise OSError(errno.EFBIG, f"has more than {MOST_LOG >> 30} GiB", os.fspath(path))
        text = io.TextIOWrapper(stream, encoding="utf-8", errors="replace")
        while True:
            line = text.readline(_LONGEST_LINE)
            if not line:
                return
            yield line.rstrip("\n")


def sha256_of(path: PathLike) -> str:
    """Returns the SHA-256 of a file of any size, in hexadecimal digits.

    Raises:
        OSError: it cannot be read or is no regular file.
    """
    digest = hashlib.sha256()
    with open_regular(path) as stream:
        for piece in iter(lambda: stream.read(_PIECE), b""):
            digest.update(piece)
    return digest.hexdigest()


def read_json(path: PathLike) -> Any:
    """Returns the content of a JSON file.

    Raises:
        OSError: as :func:`read_text`.
        ValueError: it is not JSON, or nested too deeply; the text is one line.
    """
    return parse_json(read_text(path))


def parse_json(text: str) -> Any:
    """Returns what JSON says.

    Raises:
        ValueError: the text is not JSON, or nested too deeply; the message is one line.
    """
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("not JSON that can be read (nested too deeply)") from None
    except ValueError as error:
        raise ValueError(f"not JSON ({str(error).splitlines()[0]})") from None
