"""What tests of whole runs share: a made corpus, real data where it is there, and fairseq-train."""

import contextlib
import gzip
import json
import logging
import os
import random
import shlex
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, Sequence

os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
USER_DIR = ROOT / "fairseq_sam"
REAL_DATA = Path(os.environ.get("FAIRSEQ_SAM_TEST_DATA", ROOT.parent / "shared" / "data"))

WORDS = [f"w{i}" for i in range(20)]
NUM_PAIRS = 48

SMALL = "--{0}-embed-dim 8 --{0}-ffn-embed-dim 8 --{0}-layers 1 --{0}-attention-heads 2"
TRANSLATION = (
    f"--task translation -s de -t en --arch transformer {SMALL.format('encoder')} "
    f"{SMALL.format('decoder')} --dropout 0.1 --batch-size 8"
)
TRAINING = (
    "--cpu --seed 7 --lr 0.01 --num-workers 0 --required-batch-size-multiple 1 "
    "--log-format json --log-interval 1 --save-interval 100 --disable-validation"
)


@dataclass
class Run:
    """A finished fairseq-train.

    Attributes:
        save_dir: where its checkpoints are.
        records: the JSON log, by tag: ``train_inner``, ``train``, ``valid``.
        output: everything else that it printed.
        status: exit status.
    """

    save_dir: Path
    records: Dict[str, List[Dict[str, str]]] = field(default_factory=dict)
    output: str = ""
    status: int = 0

    def checkpoint(self, name: str = "checkpoint_last.pt") -> Dict[str, Any]:
        """Returns what a checkpoint of the run holds."""
        return torch.load(self.save_dir / name, map_location="cpu", weights_only=False)

    def weights(self, name: str = "checkpoint_last.pt") -> Dict[str, torch.Tensor]:
        """Returns the model's weights."""
        return self.checkpoint(name)["model"]

    def updates(self) -> int:
        """Returns the number of updates that the last checkpoint has seen."""
        return self.checkpoint()["optimizer_history"][-1]["num_updates"]

    def values(self, key: str, tag: str = "train_inner") -> List[float]:
        """Returns what was logged under a key (without the tag's prefix), in order."""
        prefix = "" if tag == "train_inner" else f"{tag}_"
        return [float(record[prefix + key]) for record in self.records[tag]]

    def assert_same_training(self, other: "Run", name: str = "checkpoint_last.pt") -> None:
        """Asserts that weights and optimizer states are the same bit for bit."""
        ours, theirs = self.checkpoint(name), other.checkpoint(name)
        for part in ("model", "last_optimizer_state"):
            assert_identical(ours[part], theirs[part], part)
        assert (
            ours["optimizer_history"][-1]["optimizer_name"]
            == theirs["optimizer_history"][-1]["optimizer_name"]
        )
        assert ours["extra_state"]["train_iterator"] == theirs["extra_state"]["train_iterator"]

    def differs_from(self, other: "Run", name: str = "checkpoint_last.pt") -> bool:
        """Returns whether any weight is another."""
        ours, theirs = self.weights(name), other.weights(name)
        return any(not torch.equal(ours[key], theirs[key]) for key in ours)


def assert_identical(one: Any, other: Any, where: str) -> None:
    assert type(one) is type(other), where
    if torch.is_tensor(one):
        assert one.dtype == other.dtype, where
        assert torch.equal(one, other), where
    elif isinstance(one, dict):
        assert list(one) == list(other), where
        for key in one:
            assert_identical(one[key], other[key], f"{where}/{key}")
    elif isinstance(one, (list, tuple)):
        assert len(one) == len(other), where
        for i, (left, right) in enumerate(zip(one, other)):
            assert_identical(left, right, f"{where}/{i}")
    else:
        assert one == other, where


def parse_log(run: Run, lines: Sequence[str]) -> Run:
    """Sorts log lines of fairseq's format into JSON records and the rest."""
    rest = []
    for line in lines:
        parts = line.split(" | ", 3)
        if len(parts) == 4 and parts[3].startswith("{"):
            with contextlib.suppress(ValueError):
                run.records.setdefault(parts[2], []).append(json.loads(parts[3]))
                continue
        rest.append(line)
    run.output = "\n".join(rest)
    return run


class _Collector(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.lines: List[str] = []
        self.setFormatter(logging.Formatter("%(asctime)s | %(levelname)s | %(name)s | %(message)s"))

    def emit(self, record: logging.LogRecord) -> None:
        self.lines += self.format(record).splitlines()


@contextlib.contextmanager
def collected_log() -> Iterator[List[str]]:
    root, collector = logging.getLogger(), _Collector()
    level = root.level
    root.addHandler(collector)
    root.setLevel(logging.INFO)
    try:
        yield collector.lines
    finally:
        root.removeHandler(collector)
        root.setLevel(level)


def run_in_process(main: Callable[[], Any], arguments: Sequence[str]) -> List[str]:
    """Calls a command's entry point with arguments; returns its log."""
    outer = sys.argv
    with collected_log() as lines:
        sys.argv = ["fairseq-command", *arguments]
        try:
            main()
        finally:
            sys.argv = outer
    return lines


def split(*flags: Any) -> List[str]:
    """Splits flags given as text the way a shell does; paths are taken as they are."""
    return [
        part for flag in flags for part in (shlex.split(flag) if " " in str(flag) else [str(flag)])
    ]


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

    def train(*flags: Any, save_dir: Any = None, task: Any = None) -> Run:
        save_dir = Path(save_dir or folder / f"run{next(numbers)}")
        arguments = split(
            *((corpus, TRANSLATION) if task is None else task),
            TRAINING,
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
        arguments = split(corpus, TRANSLATION, TRAINING, "--save-dir", save_dir, *plugin, *flags)
        done = subprocess.run(
            [sys.executable, "-c", command, *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            universal_newlines=True,
            cwd=str(tmp_path),
            timeout=300,
        )
        return parse_log(Run(save_dir, status=done.returncode), done.stdout.splitlines())

    return train


@pytest.fixture(scope="session")
def real_lines() -> Callable[..., List[str]]:
    """``real_lines(path, count)``: the first lines of a file of real text; skips without it."""

    def read(path: str, count: int) -> List[str]:
        for name in (path, f"{path}.gz"):
            file = REAL_DATA / name
            if file.exists():
                opened = (
                    gzip.open(file, "rt", encoding="utf-8")
                    if name != path
                    else file.open(encoding="utf-8")
                )
                with opened as lines:
                    return [line.rstrip("\n") for _, line in zip(range(count), lines)]
        return pytest.skip(
            f"no {path} in {REAL_DATA} (the environment variable FAIRSEQ_SAM_TEST_DATA names "
            "another folder)"
        )

    return read
