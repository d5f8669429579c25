"""What tests of whole runs share: a made corpus, real data where it is there, and fairseq-train."""

import gzip
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any, Callable, List

os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest

from tests.fairseq_runs import (
    ROOT,
    TRAINING,
    TRANSLATION,
    USER_DIR,
    Run,
    parse_log,
    run_in_process,
    split,
)

REAL_DATA = Path(os.environ.get("FAIRSEQ_SAM_TEST_DATA", ROOT.parent / "shared" / "data"))

WORDS = [f"w{i}" for i in range(20)]
NUM_PAIRS = 48


@pytest.fixture(scope="session")
def preprocess() -> Callable[..., None]:
    """``preprocess(flags…)``: fairseq-preprocess."""
    from fairseq_cli.preprocess import cli_main

    def run(*flags: Any) -> None:
        run_in_process(cli_main, split(*flags, "--workers 1"))

    return run


def write_sentences(path: Path, rng: random.Random, words: List[str], count: int) -> None:
    lines = [" ".join(rng.choices(words, k=rng.randint(2, 7))) for _ in range(count)]
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory, preprocess: Callable[..., None]) -> Path:
    """A made parallel corpus of 48 short pairs, binarised."""
    text = tmp_path_factory.mktemp("text")
    rng = random.Random(1)
    for part, count in (("train", NUM_PAIRS), ("valid", 8)):
        for language in ("de", "en"):
            write_sentences(text / f"{part}.{language}", rng, WORDS, count)
    data = tmp_path_factory.mktemp("binarised")
    preprocess(
        "-s de -t en --trainpref", text / "train", "--validpref", text / "valid", "--destdir", data
    )
    return data


def _in_process_trainer(corpus: Path, folder: Path) -> Callable[..., Run]:
    import fairseq  # noqa: F401
    from fairseq_cli.train import cli_main

    import fairseq_sam

    fairseq_sam.register()
    numbers = iter(range(1000))

    def train(*flags: Any, save_dir: Any = None, task: Any = None, validate: bool = False) -> Run:
        save_dir = Path(save_dir or folder / f"run{next(numbers)}")
        arguments = split(
            *((corpus, TRANSLATION) if task is None else task),
            TRAINING,
            *(() if validate else ("--disable-validation",)),
            *("--save-dir", save_dir),
            *flags,
        )
        return parse_log(Run(save_dir), run_in_process(cli_main, arguments))

    return train


@pytest.fixture
def fairseq_train(corpus: Path, tmp_path: Path) -> Callable[..., Run]:
    """``fairseq_train(flags…)``: trains in this process with the plugin loaded; fast.

    Keyword arguments:
        save_dir: default a fresh folder.
        task: flags of data, task and model; default translation of the made corpus.
        validate: whether to.
    """
    return _in_process_trainer(corpus, tmp_path)


@pytest.fixture(scope="session")
def shared_fairseq_train(
    corpus: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., Run]:
    """The same for runs that several tests look at."""
    return _in_process_trainer(corpus, tmp_path_factory.mktemp("shared_runs"))


@pytest.fixture
def fairseq_train_alone(corpus: Path, tmp_path: Path) -> Callable[..., Run]:
    """``fairseq_train_alone(flags…)``: trains in a process of its own, with ``--user-dir``.

    Keyword arguments:
        save_dir: default a fresh folder.
        user_dir: False leaves the plugin out.
        command: the Python code to run.
    """
    numbers = iter(range(1000))

    def train(
        *flags: Any,
        save_dir: Any = None,
        user_dir: bool = True,
        command: str = "from fairseq_cli.train import cli_main; cli_main()",
    ) -> Run:
        save_dir = Path(save_dir or tmp_path / f"alone{next(numbers)}")
        plugin = ("--user-dir", USER_DIR) if user_dir else ()
        arguments = split(
            corpus,
            TRANSLATION,
            TRAINING,
            "--disable-validation --save-dir",
            save_dir,
            *plugin,
            *flags,
        )
        done = subprocess.run(
            [sys.executable, "-c", command, *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=str(tmp_path),
            timeout=300,
        )
        return parse_log(Run(save_dir, status=done.returncode), done.stdout.splitlines())

    return train


@pytest.fixture(scope="session")
def real_lines() -> Callable[..., List[str]]:
    """``real_lines(path, count)``: the first lines of a file of real text; skips without it."""

    def read(path: str, count: int) -> List[str]:
        for name, opener in ((path, open), (f"{path}.gz", gzip.open)):
            if (REAL_DATA / name).exists():
                with opener(REAL_DATA / name, "rt", encoding="utf-8") as lines:
                    return [line.rstrip("\n") for _, line in zip(range(count), lines)]
        return pytest.skip(
            f"no {path} in {REAL_DATA} (the environment variable FAIRSEQ_SAM_TEST_DATA names "
            "another folder)"
        )

    return read
