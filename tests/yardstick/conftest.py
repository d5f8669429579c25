"""Data shared by all cases, made once a session and only when a case needs it."""

import logging
import re
import sys
from pathlib import Path
from typing import Any, Callable, Dict, Iterator

import pytest

from tests.yardstick import made_data
from tests.yardstick.runs import EXAMPLES, Case, Result, import_example, train

ADAM = "--optimizer adam"


@pytest.fixture(scope="session", autouse=True)
def plugin() -> None:
    import fairseq  # noqa: F401

    import fairseq_sam

    fairseq_sam.register()


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """Leaves fairseq's log out: what a test says of a difference is short."""
    logging.disable(logging.WARNING)
    yield
    logging.disable(logging.NOTSET)


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Case], Path]:
    """``made(case)``: the folder of its data."""
    folders: Dict[Callable[[Path], Path], Path] = {}

    def folder(case: Case) -> Path:
        if case.data not in folders:
            folders[case.data] = case.data(tmp_path_factory.mktemp("made"))
        return folders[case.data]

    return folder


@pytest.fixture
def soundfile(monkeypatch: pytest.MonkeyPatch) -> None:
    """A reader of arrays in place of the package ``soundfile``, which few machines have."""
    monkeypatch.setitem(sys.modules, "soundfile", made_data.soundfile())


@pytest.fixture
def adam_and_data(made: Callable[[Case], Path], soundfile: None) -> Callable[..., Any]:
    """``adam_and_data(case)``: plain Adam's run and the data; skips where Adam cannot run it."""

    def run(case: Case) -> "tuple[Result, Path]":
        if case.user_dir:
            if not (EXAMPLES / case.user_dir).exists():
                pytest.skip(f"no examples in {EXAMPLES} (FAIRSEQ_EXAMPLES names another folder)")
            try:
                import_example(case.user_dir)
            except ImportError as error:
                pytest.skip(f"cannot be imported: {error}")
        try:
            data = made(case)
            return train(case, data, ADAM), data
        except Exception as error:
            if case.broken and re.search(case.broken, f"{type(error).__name__}: {error}"):
                pytest.skip(f"plain Adam ends with {type(error).__name__}: {error}"[:200])
            raise

    return run
