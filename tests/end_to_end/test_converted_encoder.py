"""Converted encoders in fairseq-train: as a classifier, and with ``mirror_bert``."""

import math
from pathlib import Path
from typing import Any, Callable, Tuple

import pytest
import torch

from fairseq_sam.commands import main
from tests.checkpoints.conversion.made_encoder import ROBERTA, WORDS, write_encoder
from tests.fairseq_runs import Run

SENTENCES = ["a man play ##s the guitar .", "the guitar", "a man .", "un ##known man", "the a ."]


def convert(folder: Path, **settings: Any) -> Path:
    made = write_encoder(folder / "source", **settings)
    (made.folder / "tokenizer.json").write_text("{}")
    assert main(["convert", str(made.folder), "--output", str(folder / "out" / "model.pt")]) == 0
    return folder / "out"


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return convert(tmp_path_factory.mktemp("bert"))


def binarise(preprocess: Any, text: Path, dictionary: Path, data: Path) -> None:
    preprocess("--only-source --trainpref", text, "--srcdict", dictionary, "--destdir", data)


@pytest.fixture(scope="module")
def sentences(tmp_path_factory: pytest.TempPathFactory, preprocess: Any, bert: Path) -> Path:
    """Unlabelled sentences, binarised with the converted dictionary."""
    folder = tmp_path_factory.mktemp("sentences")
    (folder / "train").write_text("".join(f"{line}\n" for line in SENTENCES * 2))
    binarise(preprocess, folder / "train", bert / "dict.txt", folder / "data")
    return folder / "data"


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory, preprocess: Any, bert: Path) -> Path:
    """Labelled pairs of sentences."""
    folder = tmp_path_factory.mktemp("pairs")
    for name, lines in (("one", SENTENCES), ("two", SENTENCES[::-1]), ("label", list("01010"))):
        (folder / name).write_text("".join(f"{line}\n" for line in lines))
    for name, part in (("one", "input0"), ("two", "input1")):
        binarise(preprocess, folder / name, bert / "dict.txt", folder / "data" / part)
    preprocess("--only-source --trainpref", folder / "label", "--destdir", folder / "data/label")
    return folder / "data"


def start(bert: Path) -> str:
    flags = (bert / "flags.txt").read_text()
    model = f"--finetune-from-model {bert / 'model.pt'} --dropout 0.1"
    # fairseq 0.12.2 loads a validation set even where it is not to validate.
    return f"{flags} {model} --max-update 1 --valid-subset train"


def assert_started_from(run: Run, bert: Path) -> None:
    """Hardly a step was taken: the weights are still the converted ones."""
    converted = torch.load(bert / "model.pt", weights_only=False)["model"]
    found = run.checkpoint()["model"]
    for name, value in converted.items():
        if name in found:
            torch.testing.assert_close(found[name], value, rtol=0, atol=1e-5)


@pytest.mark.parametrize("optimizer", ["adam", "sam --sam-rho 0.01"])
def test_classifier(
    fairseq_train: Callable[..., Run], bert: Path, pairs: Path, optimizer: str
) -> None:
    task = "--task sentence_prediction --num-classes 2 --init-token 0 --max-positions 16"
    criterion = "--criterion sentence_prediction --classification-head-name mine --batch-size 2"
    flags = f"--optimizer {optimizer} --lr 1e-9 --lr-scheduler fixed"
    run = fairseq_train(start(bert), flags, task=(pairs, f"{task} {criterion}"))
    assert_started_from(run, bert)
    converted = torch.load(bert / "model.pt", weights_only=False)["model"]
    head = run.checkpoint()["model"]["classification_heads.mine.dense.weight"]
    torch.testing.assert_close(head, converted["pooler.weight"], rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "flags",
    ["--optimizer adam", "--optimizer delta_sam --sam-rho 0.05 --fp16 --fp16-no-flatten-grads"],
)
def test_mirror_bert_then_sts(
    fairseq_train: Callable[..., Run], bert: Path, sentences: Path, tmp_path: Path, flags: str
) -> None:
    task = "--task sentence_similarity --criterion mirror_bert --mirror-pooling cls --batch-size 5"
    run = fairseq_train(start(bert), flags, "--lr 1e-9", task=(sentences, task))
    assert all(math.isfinite(loss) for loss in run.values("loss"))
    if "fp16" not in flags:
        assert_started_from(run, bert)
    where = tmp_path / "STS" / "STS12-en-test"
    where.mkdir(parents=True)
    rows = [f"{one}\t{other}\n" for one, other in zip(SENTENCES, SENTENCES[1:])]
    (where / "STS.input.MSRpar.txt").write_text("".join(rows))
    (where / "STS.gs.MSRpar.txt").write_text("1\n2\n3\n4\n")
    written = tmp_path / "sts.json"
    last = str(run.save_dir / "checkpoint_last.pt")
    arguments = ["--data", str(sentences), "--tokenizer", "none", "--json", str(written), "--cpu"]
    assert main(["sts", str(tmp_path), last, *arguments]) == 0
    assert '"pooling": "cls"' in written.read_text()


def test_roberta_in_the_stock_tasks(
    fairseq_train: Callable[..., Run], preprocess: Any, tmp_path: Path
) -> None:
    out = convert(tmp_path, **ROBERTA)
    (tmp_path / "train").write_text("a Ġman Ġplays\nĠthe a\n" * 2, encoding="utf-8")
    binarise(preprocess, tmp_path / "train", out / "dict.txt", tmp_path / "data")
    task = "--task masked_lm --criterion masked_lm --tokens-per-sample 14 --batch-size 2"
    run = fairseq_train(
        start(out), "--optimizer adam --lr 1e-9", task=(tmp_path / "data", task)
    )  # fmt: skip
    assert_started_from(run, out)


def test_no_word_of_the_text_is_unknown(bert: Path, sentences: Path) -> None:
    from fairseq.data import Dictionary, data_utils

    dictionary = Dictionary.load(str(bert / "dict.txt"))
    data = data_utils.load_indexed_dataset(str(sentences / "train"), dictionary)
    words: Tuple[str, ...] = tuple(dictionary.string(data[i]) for i in range(len(SENTENCES)))
    assert list(words) == SENTENCES
    assert {word for line in words for word in line.split()} <= set(WORDS)
