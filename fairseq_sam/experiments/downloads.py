"""Downloads that go on where they were cut off; a file by its name is whole and checked."""

from __future__ import annotations

import gzip
import os
import urllib.error
import urllib.request
import zlib
from http.client import HTTPException
from pathlib import Path
from typing import Callable

from fairseq_sam import FairseqSamError
from fairseq_sam.experiments.command_lines import Download
from fairseq_sam.files.reading import sha256_of

_PIECE = 1 << 20
_TRIES = 3
_SECONDS = 20
_NO_MORE = 416  # the part has all of it, or more


class DownloadError(FairseqSamError):
    """A file that could not be had; the text says where to put it by hand."""


def download(
    wanted: Download, tell: Callable[[str], None], stops: Callable[[], bool] = lambda: False
) -> None:
    """Gets a file unless it is there.

    Args:
        wanted: the file.
        tell: is called with a line where it is there.
        stops: is asked between two pieces; what there is by then is gone on from another time.

    Raises:
        DownloadError: its host cannot be reached, or what it gives is damaged or another file.
    """
    file, part = Path(wanted.file), Path(f"{wanted.file}.part")
    by_hand = f"get it in another way, put it there and run this again: {wanted.url} -> {file}"
    if file.exists():
        tell(f"{file} is there")
    else:
        _get_all(wanted, part, by_hand, stops)
        if stops():
            return
        os.replace(part, file)
    if wanted.sha256:
        found = sha256_of(file)
        if found != wanted.sha256:
            os.replace(file, f"{file}.damaged")
            raise DownloadError(
                f"{file} has the SHA-256 {found}, wanted is {wanted.sha256}; it is {file}.damaged"
                f" now: {by_hand}"
            )


def _get_all(wanted: Download, part: Path, by_hand: str, stops: Callable[[], bool]) -> None:
    # What a part begins with may be of another file: then all of it is got again.
    for attempt in range(_TRIES):
        goes_on = part.exists()
        try:
            _get_rest(wanted.url, part, stops)
        except (OSError, ValueError, HTTPException) as error:
            if isinstance(error, urllib.error.HTTPError) or attempt + 1 == _TRIES:
                reason = " ".join(str(error).split())
                raise DownloadError(
                    f"{wanted.url} could not be downloaded ({reason}): {by_hand}"
                ) from None
            continue
        if stops() or not wanted.file.endswith("gz") or _is_whole(part):
            return
        part.unlink()
        if not goes_on:
            raise DownloadError(f"what {wanted.url} gave is damaged; it was deleted: {by_hand}")
    raise DownloadError(f"{wanted.url} could not be downloaded: {by_hand}")


def _get_rest(url: str, part: Path, stops: Callable[[], bool]) -> None:
    size = part.stat().st_size if part.exists() else 0
    headers = {"Range": f"bytes={size}-"} if size else {}
    try:
        reply = urllib.request.urlopen(urllib.request.Request(url, headers=headers), None, _SECONDS)
    except urllib.error.HTTPError as error:
        if error.code != _NO_MORE:
            raise
        if _is_complete(error, size):
            return
        reply = urllib.request.urlopen(url, None, _SECONDS)
    with reply, open(part, "ab" if reply.status == 206 else "wb") as stream:
        expected = reply.headers.get("Content-Length")
        begin = stream.tell()
        for piece in iter(lambda: reply.read(_PIECE), b""):
            stream.write(piece)
            if stops():
                return
        if expected is not None and stream.tell() - begin != int(expected):
            raise ConnectionError("it broke off")


def _is_complete(error: urllib.error.HTTPError, size: int) -> bool:
    return str(error.headers.get("Content-Range", "")).endswith(f"/{size}")


def _is_whole(path: Path) -> bool:
    try:
        with gzip.open(path) as stream:
            while stream.read(_PIECE):
                pass
    except (OSError, EOFError, zlib.error):
        return False
    return True
