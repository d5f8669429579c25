"""A folder of runs: its lock, what it was made with, and what is set aside there.

The settings are written down for the whole folder, and again beside each run of a search: where
the one is damaged, the others tell.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, Optional

from fairseq_sam.experiments.errors import BusyError, OtherSettingsError
from fairseq_sam.files.reading import read_json
from fairseq_sam.files.writing import write_json

SETTINGS_NAME = "settings.json"

Settings = Dict[str, Any]


def set_aside(path: Path) -> Path:
    """Renames what is in the way, whatever it is, and returns its new name."""
    number = 1
    while os.path.lexists(f"{path}.damaged{number}"):
        number += 1
    aside = Path(f"{path}.damaged{number}")
    os.rename(path, aside)
    return aside


@contextlib.contextmanager
def locked(lock: Path, shared: bool = False) -> Iterator[int]:
    """Holds a lock.

    Processes that inherit the descriptor hold it as well: training that outlives a killed runner
    keeps a second one from training in the same place. On a file system without locks it is up to
    the user.

    Args:
        lock: the file.
        shared: holds it together with others that share it.

    Yields:
        The file descriptor.

    Raises:
        BusyError: another process holds it.
    """
    if os.path.lexists(lock) and not lock.is_file():
        set_aside(lock)
    descriptor = os.open(lock, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise BusyError(
            f"{lock.parent}: another command is at work there, or training that one left behind"
        ) from None
    except OSError:
        pass
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def check_settings(
    directory: Path,
    ours: Settings,
    tell: Callable[[str], None],
    runs: str = "",
) -> None:
    """Refuses to go on with runs that would not be comparable with those to come.

    Settings that cannot be read are set aside and written anew.

    Args:
        directory: of the runs.
        ours: by what users know them by.
        tell: is called with a line about what was set aside.
        runs: the pattern of those runs' folders that have settings of their own.

    Raises:
        OtherSettingsError: other settings are known for the directory or for a run in it.
    """
    path = directory / SETTINGS_NAME
    theirs = read_settings(path)
    if theirs is None and os.path.lexists(path):
        aside = set_aside(path)
        known = map(
            read_settings, sorted(directory.glob(f"{runs}/{SETTINGS_NAME}")) if runs else []
        )
        theirs = next((settings for settings in known if settings is not None), None)
        source = "are taken from its runs" if theirs else "are taken to be these"
        tell(f"{path}: damaged, now {aside.name}; the settings {source}")
    # A setting that another version did not know has its default there.
    differ = {name for name in ours if theirs is not None and name in theirs}
    differ = {name for name in differ if theirs is not None and theirs[name] != ours[name]}
    if differ and theirs is not None:
        raise OtherSettingsError(_refusal(directory, ours, theirs, sorted(differ)))
    if theirs is None or not path.exists() or ours.keys() - theirs.keys():
        write_json({**(theirs or {}), **ours}, path)


def _refusal(directory: Path, ours: Settings, theirs: Settings, differ: list) -> str:
    short = [
        f"{name} ({theirs[name]}, now {ours[name]})"
        if isinstance(ours[name], (str, int, float, type(None)))
        else name
        for name in differ
    ]
    return f"{directory}: was made with other {', other '.join(short)}: use another --out"


def read_settings(path: Path) -> Optional[Settings]:
    """Returns settings, None where there are none that can be understood."""
    try:
        content = read_json(path)
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) and content else None
