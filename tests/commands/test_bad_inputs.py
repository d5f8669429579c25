"""Hundreds of bad inputs: one line that names flag or file and value, and nothing written."""

import signal
import sys
from pathlib import Path
from typing import Any, Dict, Iterator, List, Tuple

import pytest

from fairseq_sam.commands import main
from tests.commands.bad_inputs import CASES, Case


def test_there_are_hundreds() -> None:
    assert len(CASES) >= 300
    assert len({case.name for case in CASES}) == len(CASES)


@pytest.fixture(autouse=True)
def _never_waits() -> Iterator[None]:
    """Ends a test that waits for a FIFO."""
    previous = signal.signal(signal.SIGALRM, _too_long)
    signal.alarm(60)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, previous)


def _too_long(*_: Any) -> None:
    raise AssertionError("waits")


def content(*folders: Path) -> Dict[Path, Tuple[bool, float, int]]:
    """Returns what tells that something was written."""
    found = {}
    for path in (path for folder in folders for path in folder.rglob("*")):
        state = path.lstat()
        found[path] = (path.is_symlink(), state.st_mtime_ns, state.st_size)
    return found


@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_one_line_says_why(
    case: Case, request: Any, tmp_path: Path, capsys: Any, monkeypatch: Any
) -> None:
    here, data, good = tmp_path / "here", Path("data"), Path("good.pt")
    here.mkdir()
    if "{data}" in str(case) or "{good}" in str(case):
        data = request.getfixturevalue("corpus")
        good = Path(request.getfixturevalue("checkpoint"))
    case.make(here, data, good)
    monkeypatch.chdir(tmp_path)
    unseen: List[Any] = []  # what Python would print with a traceback
    monkeypatch.setattr(sys, "unraisablehook", unseen.append)
    capsys.readouterr()
    before = content(tmp_path, data, good.parent if good.exists() else here)
    places = {"here": here, "data": data, "good": good}
    arguments = [word.format(**places) for word in case.arguments]
    try:
        status = main(arguments)
    except SystemExit as end:
        status = int(end.code or 0)
    printed = capsys.readouterr()
    assert status == case.status, printed.err
    assert printed.err.count("\n") == 1, printed.err
    known = arguments[0] if arguments and arguments[0] != "nonsense" else ""
    assert printed.err.startswith(f"fairseq-sam {known}".rstrip() + ": error: ")
    for part in case.parts:
        assert part.format(**places) in printed.err
    assert "Traceback" not in printed.err
    assert printed.out == ""
    assert not unseen
    assert content(tmp_path, data, good.parent if good.exists() else here) == before
