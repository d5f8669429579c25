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


def skip_if_expected(case: Case, error: Exception) -> None:
    """Skips where fairseq cannot run the case itself, for want of a package or by a known fault."""
    text = f"{type(error).__name__}: {error}"
    missing = isinstance(error, ModuleNotFoundError) or "libnat" in text  # a compiled extension
    if missing or (case.broken and re.search(case.broken, text)):
        pytest.skip(f"plain Adam ends with {text}"[:200])
    raise error


def skip_if_unknown(case: Case) -> None:
    """Skips what this version of fairseq does not register."""
    from fairseq.criterions import CRITERION_REGISTRY
    from fairseq.models import ARCH_MODEL_REGISTRY
    from fairseq.tasks import TASK_REGISTRY

    known = {"task": TASK_REGISTRY, "arch": ARCH_MODEL_REGISTRY, "criterion": CRITERION_REGISTRY}
    for flag, name in re.findall(r"--(task|arch|criterion) (\S+)", case.flags):
        if name not in known[flag]:
            pytest.skip(f"this fairseq has no {flag} {name}")


@pytest.fixture
def adam_and_data(made: Callable[[Case], Path], soundfile: None) -> Callable[..., Any]:
    """``adam_and_data(case)``: plain Adam's run and the data; skips where Adam cannot run it."""

    def run(case: Case) -> "tuple[Result, Path]":
        if case.user_dir:
            if not (EXAMPLES / case.user_dir).exists():
                pytest.skip(f"no examples in {EXAMPLES} (FAIRSEQ_EXAMPLES names another folder)")
            try:
                import_example(case.user_dir)
            except Exception as error:
                skip_if_expected(case, error)
        skip_if_unknown(case)
        try:
            data = made(case)
            return train(case, data, ADAM), data
        except Exception as error:
            skip_if_expected(case, error)

    return run
