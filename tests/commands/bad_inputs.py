"""Hundreds of inputs that fairseq-sam cannot use, each with what its one line must say.

``{data}`` stands for binarised data from German to English, ``{good}`` for a model of it, and
``{here}`` for a folder with what the case's ``make`` has put there.
"""

import argparse
import itertools
import os
import pickle
import shutil
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, NamedTuple, Tuple

import torch

from fairseq_sam.commands import build_parser
from fairseq_sam.flags import number_types

NO_NUMBERS = ("1_0", "٣", "inf", "nan", "1e400", "9" * 30, "", " 1", "0x1", "-1", "one", "1,,2")
MODELS = ["gradients", "landscape", "risk", "robustness", "spectrum"]
"""The commands that take DATA CHECKPOINT…"""
POSITIONALS = {
    **{name: ["DATA", "CHECKPOINT"] for name in MODELS},
    "robustness": ["DATA", "CHECKPOINT", "--radii=1"],
    "average": ["a.pt", "--output=b.pt"],
    "convert": ["SOURCE", "--output=b.pt"],
    "report": ["RUN_DIR"],
    "search": ["--out=OUT"],
    "sts": ["DATA", "CHECKPOINT"],
}
MODEL_FLAGS = {"robustness": ["--radii=0.1"]}


class Case(NamedTuple):
    """Arguments, what the line on stderr says, the exit status, and what lies in the folder."""

    name: str
    arguments: List[str]
    parts: List[str]
    status: int = 2
    make: Callable[[Path, Path, Path], Any] = lambda here, data, good: None


def subparsers() -> Dict[str, argparse.ArgumentParser]:
    (action,) = [a for a in build_parser()._actions if isinstance(a, argparse._SubParsersAction)]
    return dict(action.choices)


def _values() -> Iterator[Case]:
    """Every flag with a value that it does not take."""
    texts = itertools.cycle(NO_NUMBERS)
    for command, parser in subparsers().items():
        for action in parser._actions:
            for flag in action.option_strings[-1:]:
                if action.choices is not None:
                    bad = ["nonsense", ""]
                elif getattr(action.type, "__module__", "") == number_types.__name__:
                    bad = [next(texts) for _ in range(4)]
                elif getattr(action.type, "__name__", "") == "plot_file":
                    bad = ["plot.gif", "plot", ""]
                else:
                    continue
                for value in bad:
                    given = [command, *POSITIONALS.get(command, []), f"{flag}={value}"]
                    yield Case(" ".join(given), given, [f"argument {flag}: ", value])


def _grammar() -> Iterator[Case]:
    """What is missing, unknown or without a value."""
    for command, words in POSITIONALS.items():
        if command != "search":  # which takes the flags of fairseq-train after --
            yield Case(f"{command} unknown flag", [command, *words, "--nonsense"], ["--nonsense"])
            needed = "are needed" if command == "gradients" else "required: "
            yield Case(f"{command} nothing", [command], [needed])
        yield Case(f"{command} --json", [command, *words, "--json"], ["--json"])
    yield Case("no command", [], ["COMMAND"])
    yield Case("another command", ["nonsense"], ["nonsense"])
    for words, parts in (
        ("robustness D C", ["--radii"]),
        ("robustness D C --radii 1,1", ["--radii", "1,1"]),
        ("robustness D C --radii 1 --eval-bleu-args [1]", ["--eval-bleu-args", "[1]"]),
        ("robustness D C --radii 1 --eval-bleu-args {{", ["--eval-bleu-args", "{{"]),
        ("report R --group-by (", ["--group-by", "("]),
        ("average a.pt", ["--output"]),
        ("average a.pt a.pt --output b.pt", ["twice"]),
        ("average a.pt --last-epochs 2 --last-updates 2 --output b.pt", ["--last-updates"]),
        ("average a.pt b.pt --last-epochs 2 --output b.pt", ["--last-epochs", "one DIR"]),
        ("average a.pt --upper-bound 2 --output b.pt", ["--upper-bound"]),
        ("average {here} --output b.pt", ["DIR", "--last-epochs"]),
        ("convert S --output model.bin", ["--output", "model.bin"]),
        ("landscape D A B C", ["2 CHECKPOINTs", "3"]),
    ):
        yield Case(words, words.split(), parts)


def _half(path: Path, good: Path) -> None:
    path.write_bytes(good.read_bytes()[: good.stat().st_size // 2])


def _changed(change: Callable[[Dict[str, Any]], Any]) -> Callable[[Path, Path], None]:
    def make(path: Path, good: Path) -> None:
        state = torch.load(good, weights_only=False)
        change(state)
        torch.save(state, path)

    return make


def _other_architecture(state: Dict[str, Any]) -> None:
    state["cfg"]["model"]._name = state["cfg"]["model"].arch = "nobodys"


BAD_CHECKPOINTS: Dict[str, Callable[[Path, Path], Any]] = {
    "absent": lambda path, good: None,
    "directory": lambda path, good: path.mkdir(),
    "fifo": lambda path, good: os.mkfifo(path),
    "dangling": lambda path, good: path.symlink_to("nowhere"),
    "empty": lambda path, good: path.write_bytes(b""),
    "text": lambda path, good: path.write_text("not a checkpoint\n"),
    "zeros": lambda path, good: path.write_bytes(bytes(10_000)),
    "half": _half,
    "list": lambda path, good: torch.save([1, 2], path),
    "tensor": lambda path, good: torch.save(torch.ones(2), path),
    "no model": lambda path, good: torch.save({"args": None, "cfg": {}}, path),
    "code": lambda path, good: path.write_bytes(pickle.dumps(os.system)),
}
"""What average reads as well."""
BAD_MODELS: Dict[str, Callable[[Path, Path], Any]] = {
    **BAD_CHECKPOINTS,
    "no configuration": _changed(lambda state: state.pop("cfg")),
    "configuration of text": _changed(lambda state: state.update(cfg="text")),
    "other architecture": _changed(_other_architecture),
    "a weight less": _changed(lambda state: state["model"].popitem()),
    "weights of text": _changed(lambda state: state.update(model="text")),
}


def _checkpoints() -> Iterator[Case]:
    """Bad checkpoints, each for some of the commands, which load them in one way."""
    commands = itertools.cycle(MODELS)
    for name, make in BAD_MODELS.items():
        for command in itertools.islice(commands, 3):
            yield Case(
                f"{command} {name}",
                [command, "{data}", "{here}/bad.pt", *MODEL_FLAGS.get(command, []), "--cpu"],
                ["bad.pt: " if name not in ("a weight less", "weights of text") else "bad.pt"],
                1,
                lambda here, data, good, make=make: make(here / "bad.pt", good),
            )
    for name, make in BAD_CHECKPOINTS.items():
        if name == "directory":
            continue  # --last-epochs takes some
        yield Case(
            f"average {name}",
            ["average", "{good}", "{here}/bad.pt", "--output", "{here}/mean.pt"],
            ["bad.pt: "],
            1,
            lambda here, data, good, make=make: make(here / "bad.pt", good),
        )
    for command in MODELS:
        flags = MODEL_FLAGS.get(command, [])
        yield Case(
            f"{command} a second one that is absent",
            [command, "{data}", "{good}", "{here}/absent.pt", *flags, "--max-sentences=1", "--cpu"],
            ["absent.pt: no such file"],
            1,
        )


def _renamed(here: Path, data: Path, good: Path) -> None:
    for path in data.iterdir():
        shutil.copy(path, here / path.name.replace("de", "fr"))


def _spoilt(name: str, content: "bytes | None") -> Callable[[Path, Path, Path], None]:
    def make(here: Path, data: Path, good: Path) -> None:
        shutil.copytree(data, here, dirs_exist_ok=True)
        (here / name).unlink()
        if content is not None:
            (here / name).write_bytes(content)

    return make


BAD_DATA: Dict[str, Tuple[Callable[[Path, Path, Path], Any], List[str]]] = {
    "empty": (lambda here, data, good: None, ["{here}: ", "no dict.de.txt"]),
    "another pair": (_renamed, ["{here}: ", "no dict.de.txt but dict.en.txt, dict.fr.txt"]),
    "no dictionary": (_spoilt("dict.en.txt", None), ["{here}: ", "no dict.en.txt"]),
    "another size": (_spoilt("dict.en.txt", b"a 1\nb 1\n"), ["{here}: ", "embeddings"]),
    "a bad dictionary": (_spoilt("dict.de.txt", b"a b c\n"), ["{here}: "]),
    "a binary dictionary": (_spoilt("dict.de.txt", b"\xff\xfe"), ["dict.de.txt"]),
    "no index": (_spoilt("valid.de-en.de.idx", None), ["{here}: ", "valid"]),
    "a bad index": (_spoilt("valid.de-en.de.idx", b"junk"), ["{here}: ", "valid"]),
    "no sentences": (_spoilt("valid.de-en.de.bin", b""), ["{here}: ", "valid"]),
    "a sentence": (_spoilt("valid.de-en.de.bin", bytes(10)), ["{here}: ", "valid"]),
}


def _data() -> Iterator[Case]:
    commands = itertools.cycle(MODELS)
    for name, (make, parts) in BAD_DATA.items():
        for command in itertools.islice(commands, 3):
            given = [command, "{here}", "{good}", *MODEL_FLAGS.get(command, []), "--cpu"]
            yield Case(f"{command} data: {name}", given, parts, 1, make)
    for command in MODELS:
        flags = [*MODEL_FLAGS.get(command, []), "--cpu"]
        for flag, value, part in (
            ("--subset", "absent", "subset absent"),
            ("--criterion", "nonsense", "nonsense"),
            ("--user-dir", "nowhere", "nowhere: no such directory"),
            ("--json", "/absent/x.json", "/absent/x.json: its directory does not exist"),
            ("--json", "{here}", "{here}: is a directory"),
            ("--json", "{good}", "{good}: is a checkpoint to read"),
            ("--plot", "/absent/x.png", "/absent/x.png: its directory does not exist"),
        ):
            given = [command, "{data}", "{good}", *flags, flag, value]
            yield Case(f"{command} {flag} {value}", given, [part], 1)
        given = [command, "nowhere", "{good}", *flags]
        yield Case(f"{command} nowhere", given, ["nowhere: no such file or directory"], 1)


TRAIN = ["{data}", "--optimizer", "sam", "--max-epoch", "1"]


def _searches() -> Iterator[Case]:
    """What a search refuses before it writes anything."""
    for words, part in (
        ("D", "--optimizer"),
        ("D --optimizer adam --max-epoch 1", "'adam' has no radius"),
        ("D --optimizer sam", "nothing ends a run"),
        ("D --optimizer sam --max-epoch 1 --sam-rho 1", "--sam-rho"),
        ("D --optimizer sam --max-epoch 1 --save-dir x", "--save-dir"),
        ("D --optimizer sam --max-epoch 1 --restore-file x", "--restore-file"),
        ("D --optimizer sam --max-epoch 1 --reset-optimizer", "--reset-optimizer"),
        ("D --optimizer sam --max-epoch 1 --disable-validation", "--disable-validation"),
    ):
        given = ["search", "--out", "{here}/out", "--", *words.split()]
        yield Case(f"search -- {words}", given, [part])
    for words, part in (
        ("--lowest 1e-1 --highest 1e-3", "--lowest: 1e-1"),
        ("--lowest 3e-1", "--lowest: 3e-1"),
        ("--shares 5", "--shares: 5"),
        ("--shares 0%", "--shares: 0%"),
        ("--shares 5%,5%", "--shares: 5%,5%"),
        ("--shares 5% --lowest 1e-3", "--lowest: it is for absolute radii"),
        ("--max-runs 1", "--max-runs: 1"),
        ("--seeds 1,2 --max-runs 3", "--max-runs: 3"),
        ("--seeds 1,1", "--seeds: 1,1"),
        ("--start-from absent.pt", "--start-from: absent.pt"),
        ("--start-from {here}", "--start-from: {here}"),
        ("--json /absent/x.json", "--json: "),
        ("--plot /absent/x.png", "--plot: "),
    ):
        given = ["search", "--out", "{here}/out", *words.split(), "--", *TRAIN]
        yield Case(f"search {words}", given, [part])


def _files() -> Iterator[Case]:
    """Files and folders of the other commands."""
    for words, parts in (
        ("average {good} --output {good}", ["{good}: exists"]),
        ("average {good} --output /absent/x.pt", ["/absent/x.pt: its directory"]),
        ("average {good} --output {here}", ["{here}"]),
        ("average {here} --last-epochs 2 --output {here}/x.pt", ["{here}: "]),
        ("convert {here}/none --output {here}/model.pt", ["{here}/none"]),
        ("convert {here} --output {here}/model.pt", ["{here}", "config.json"]),
        ("convert {data} --output {good}", ["{good}: exists"]),
        ("report {here}", ["{here}: "]),
        ("report {here}/none", ["{here}/none: "]),
        ("report {good}", ["{good}: "]),
        ("report {here} --output /absent/x.md", ["/absent/x.md: its directory"]),
        ("report {here} --json {here}", ["{here}: is a directory"]),
        ("gradients --run {here}", ["{here}: "]),
        ("gradients --run {here}/none", ["{here}/none: "]),
        ("shift --data {here}", ["{here}"]),
        ("shift --data {here}/none", ["{here}/none"]),
        ("shift --json /absent/x.json", ["/absent/x.json: its directory"]),
        ("methods --json /absent/x.json", ["/absent/x.json: its directory"]),
        ("sts {here} {good}", ["{here}"]),
        ("sts {here}/none {good}", ["{here}/none"]),
        ("landscape {data} {good} --dimensions 0", ["--dimensions 0", "--m-sharpness"]),
    ):
        yield Case(words, words.split(), parts, 1)


CASES = [
    *_values(),
    *_grammar(),
    *_checkpoints(),
    *_data(),
    *_searches(),
    *_files(),
]
