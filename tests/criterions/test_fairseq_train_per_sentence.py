"""fairseq-train with each stand-in logs the numbers of the stock criterion."""

import json
import os
import pathlib
import random
import subprocess
import sys
from typing import Any, Callable, Dict, List

import pytest

ROOT = pathlib.Path(__file__).parents[2]
CLOCKS = ("wps", "ups", "wall")
ENCODER = (
    "--encoder-embed-dim 8 --encoder-ffn-embed-dim 8 --encoder-layers 1 --encoder-attention-heads 2"
)
DECODER = (
    "--decoder-embed-dim 8 --decoder-ffn-embed-dim 8 --decoder-layers 1 --decoder-attention-heads 2"
)
TRAINING = (
    "--optimizer adam --lr 0.01 --dropout 0.1 --max-epoch 2 --update-freq 2 --log-format json "
    "--log-interval 1 --num-workers 0 --required-batch-size-multiple 1 --seed 3 --cpu"
)


def write_dictionary(path: pathlib.Path, words: List[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{word} 1\n" for word in words))


def write_lines(path: pathlib.Path, words: List[str], longest: int) -> None:
    rng = random.Random(path.name)
    lines = [" ".join(rng.choices(words, k=rng.randint(1, longest))) for _ in range(12)]
    path.write_text("".join(line + "\n" for line in lines))


WORDS = [f"w{i}" for i in range(12)]


def translation(data: pathlib.Path) -> str:
    for language in ("de", "en"):
        write_dictionary(data / f"dict.{language}.txt", WORDS)
        for split in ("train", "valid"):
            write_lines(data / f"{split}.de-en.{language}", WORDS, longest=7)
    return (
        "--task translation -s de -t en --dataset-impl raw --arch transformer "
        f"{ENCODER} {DECODER} --batch-size 4"
    )


def text(data: pathlib.Path) -> str:
    write_dictionary(data / "dict.txt", WORDS)
    for split in ("train", "valid"):
        write_lines(data / split, WORDS, longest=9)
    return (
        "--task masked_lm --sample-break-mode eos --tokens-per-sample 16 --arch roberta_base "
        f"{ENCODER} --batch-size 4"
    )


def labelled(data: pathlib.Path) -> str:
    for part, words, longest in (("input0", WORDS, 7), ("label", ["0", "1", "2"], 1)):
        write_dictionary(data / part / "dict.txt", words)
        for split in ("train", "valid"):
            write_lines(data / part / split, words, longest)
    return (
        "--task sentence_prediction --num-classes 3 --init-token 0 --max-positions 32 "
        f"--arch roberta_base {ENCODER} --batch-size 4"
    )


RUNS = {
    "cross_entropy": (translation, "--sentence-avg"),
    "label_smoothed_cross_entropy": (
        translation,
        "--label-smoothing 0.1 --report-accuracy --ignore-prefix-size 1",
    ),
    "sentence_prediction": (labelled, "--classification-head-name my_head"),
    "masked_lm": (text, ""),
}


def train(arguments: List[str]) -> List[Dict[str, Any]]:
    """Runs fairseq-train, and returns what it logs, without the clocks."""
    command = [sys.executable, "-m", "fairseq_cli.train", *arguments]
    paths = [str(ROOT), os.environ.get("PYTHONPATH", "")]
    environment = dict(os.environ, PYTHONPATH=os.pathsep.join(paths), OMP_NUM_THREADS="1")
    done = subprocess.run(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert done.returncode == 0, done.stdout[-3000:]
    lines = [line[line.index("{") :] for line in done.stdout.splitlines() if '{"epoch"' in line]
    logs = [json.loads(line) for line in lines]
    return [{key: log[key] for key in log if not key.endswith(CLOCKS)} for log in logs]


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
def test_logs_are_those_of_the_stock_criterion(name: str, tmp_path: pathlib.Path) -> None:
    make_data: Callable[[pathlib.Path], str]
    make_data, flags = RUNS[name]
    setup = make_data(tmp_path / "data").split() + flags.split() + TRAINING.split()
    setup += ["--user-dir", str(ROOT / "fairseq_sam"), str(tmp_path / "data")]
    logs = {
        criterion: train(
            [*setup, "--criterion", criterion, "--save-dir", str(tmp_path / criterion)]
        )
        for criterion in (name, "per_sentence_" + name)
    }
    expected = logs[name]
    assert [log for log in expected if "valid_loss" in log]
    assert [log for log in expected if "loss" in log]
    assert logs["per_sentence_" + name] == expected


@pytest.mark.slow
def test_a_checkpoint_of_the_stock_criterion_can_be_continued(tmp_path: pathlib.Path) -> None:
    setup = translation(tmp_path / "data").split() + TRAINING.split()
    setup += ["--user-dir", str(ROOT / "fairseq_sam"), str(tmp_path / "data")]
    setup += ["--save-dir", str(tmp_path / "checkpoints")]
    train([*setup, "--criterion", "cross_entropy", "--max-epoch", "1"])
    continued = train([*setup, "--criterion", "per_sentence_cross_entropy"])
    assert {log["epoch"] for log in continued} == {2}
