"""Running fairseq's commands from tests, in this process or in one of their own."""

import contextlib
import json
import logging
import re
import shlex
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, Sequence

import torch

ROOT = Path(__file__).resolve().parents[1]
USER_DIR = ROOT / "fairseq_sam"

SMALL = "--{0}-embed-dim 8 --{0}-ffn-embed-dim 8 --{0}-layers 1 --{0}-attention-heads 2"
TRANSLATION = (
    f"--task translation -s de -t en --arch transformer {SMALL.format('encoder')} "
    f"{SMALL.format('decoder')} --dropout 0.1 --batch-size 8"
)
TRAINING = (
    "--cpu --seed 7 --lr 0.01 --num-workers 0 --required-batch-size-multiple 1 "
    "--log-format json --log-interval 1 --save-interval 100"
)


UNTRAINED = re.compile(
    r"_float_tensor$|\.version$"  # buffers, one of which some fairseqs never fill
    r"|layers\.\d+\.(in_proj|out_proj|fc1|fc2)_(weight|bias)$"  # fairseq 0.12.2's second copies
)


def trained(state_dict: Dict[str, torch.Tensor]) -> Dict[str, torch.Tensor]:
    """Returns what training changes of a model's state."""
    return {key: value for key, value in state_dict.items() if not UNTRAINED.search(key)}


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
        return trained(self.checkpoint(name)["model"])

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
        assert_identical(trained(ours["model"]), trained(theirs["model"]), "model")
        assert_identical(ours["last_optimizer_state"], theirs["last_optimizer_state"], "optimizer")
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
    level, handlers = root.level, list(root.handlers)
    root.addHandler(collector)
    root.setLevel(logging.INFO)
    try:
        yield collector.lines
    finally:
        root.handlers[:] = handlers  # some commands set up logging anew
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
    parts: List[str] = []
    for flag in flags:
        parts += shlex.split(flag) if isinstance(flag, str) else [str(flag)]
    return parts
