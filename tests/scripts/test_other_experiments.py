"""TextCNN, LSTM, GLUE and the ablations: small runs."""

import json
import re
from string import ascii_lowercase

import pytest

from fairseq_sam.commands import main
from tests.conftest import REAL_DATA
from tests.scripts.made_text import write_side
from tests.scripts.script_runs import BASH, needs_text_packages, run

pytestmark = [pytest.mark.skipif(BASH is None, reason="there is no bash")]


def reviews(root):
    """A made aclImdb whose classes can be told apart."""
    words = {"pos": "good fine great", "neg": "bad awful poor"}
    for split in ("train", "test"):
        for label, text in words.items():
            folder = root / split / label
            folder.mkdir(parents=True)
            for i in range(30):
                review = f"A {text.split()[i % 3]} film.<br />{text.split()[i % 2]}, {i} of 30!"
                (folder / f"{i}_{9 if label == 'pos' else 2}.txt").write_text(review)
    return root


@pytest.mark.slow
@needs_text_packages
def test_textcnn_small(tmp_path):
    real = REAL_DATA / "imdb"
    data = real if real.is_dir() else reviews(tmp_path / "aclImdb")
    out = tmp_path / "out"
    result = run(
        "textcnn_imdb", "--small", "--data", data, "--out", out, "--seeds", 1, "--epochs", 1,
        "--methods", "baseline,ga_sam,ga_sam_k2", "--extra", "--max-update 3", "--parallel", 2,
    )  # fmt: skip
    assert result.returncode == 0, result.stdout
    table = (out / "report.md").read_text()
    assert re.search(r"\| baseline \| 1 \| \d+\.\d\d \| 84\.42 ± 0\.12 \|", table)
    assert re.search(r"\| ga_sam \| 1 \| \d+\.\d\d \| 86\.11 ± 0\.22 \| [01]\.\d+", table)


@pytest.mark.slow
@needs_text_packages
def test_mr_small(tmp_path):
    real = REAL_DATA / "mr"
    data = real
    if not real.is_dir():
        data = tmp_path / "mr"
        data.mkdir()
        for name, word in (("pos", "good"), ("neg", "bad")):
            write_side(data / name, [f"a {word} film number {i}" for i in range(60)])
    out = tmp_path / "out"
    result = run(
        "textcnn_imdb", "--dataset", "mr", "--small", "--data", data, "--out", out,
        "--seeds", "1,2", "--epochs", 1, "--methods", "baseline", "--extra", "--max-update 3",
    )  # fmt: skip
    assert result.returncode == 0, result.stdout
    assert re.search(r"\| baseline \| 2 \| .* \| 76\.1 \|", (out / "report.md").read_text())


@pytest.mark.slow
@needs_text_packages
def test_ablation_small(tmp_path):
    """The driver and its plot, by way of the LSTM."""
    real = REAL_DATA / "ptb"
    data = real
    if not real.is_dir():
        data = tmp_path / "ptb"
        data.mkdir()
        for split in ("train", "valid", "test"):
            write_side(data / f"ptb.{split}.txt", ["the cat sat on the <unk> mat"] * 30)
    out = tmp_path / "out"
    result = run(
        "ablation", "--only", "lstm", "--small", "--ptb", data, "--out", out, "--seeds", 1,
        "--epochs", 1, "--width", 8, "--methods", "baseline,ga_sam@1e-5,ga_sam@5%,ga_sam_k2",
        "--extra", "--max-update 3", "--parallel", 2,
    )  # fmt: skip
    assert result.returncode == 0, result.stdout
    table = (out / "lstm" / "report.md").read_text()
    assert re.search(r"\| baseline \| 1 \| \d+\.\d\d \| 86\.70 ± 0\.54", table)
    assert (out / "lstm" / "ablations.png").stat().st_size > 1000


GLUE = {
    "RTE": "index\tsentence1\tsentence2\tlabel\n{i}\tThe cat sat {i}.\tA cat sat.\t{word}\n",
    "STS-B": "index\tsentence1\tsentence2\tscore\n{i}\tThe cat sat {i}.\tA cat sat.\t{number}\n",
}


def glue_folder(root, task):
    real = REAL_DATA / "glue"
    if real.is_dir():
        return real
    header, line = GLUE[task].strip().split("\n")
    (root / task).mkdir(parents=True)
    for split in ("train", "dev"):
        rows = [
            line.format(i=i, word=("entailment", "not_entailment")[i % 2], number=i % 6)
            for i in range(12)
        ]
        write_side(root / task / f"{split}.tsv", [header, *rows])
    return root


@pytest.mark.slow
@needs_text_packages
@pytest.mark.parametrize("task", ["RTE", "STS-B"])
def test_glue_small(tmp_path, task):
    pytest.importorskip("tokenizers")
    from tests.checkpoints.conversion.made_encoder import BERT_PIECES, write_encoder

    letters = [f"{prefix}{letter}" for letter in ascii_lowercase for prefix in ("", "##")]
    pieces = list(dict.fromkeys([*BERT_PIECES, *letters]))
    write_encoder(tmp_path / "hugging", pieces, max_position_embeddings=64)
    assert (
        main(["convert", str(tmp_path / "hugging"), f"--output={tmp_path}/encoder/model.pt"]) == 0
    )
    out = tmp_path / "out"
    result = run(
        "glue", task, "--small", "--model", tmp_path / "encoder",
        "--data", glue_folder(tmp_path / "glue", task), "--out", out, "--seeds", "1,2",
        "--epochs", 1, "--methods", "baseline,r_drop", "--extra", "--max-update 3",
        "--parallel", 2,
    )  # fmt: skip
    assert result.returncode == 0, result.stdout
    table = (out / "report.md").read_text()
    metric = {"RTE": "Accuracy", "STS-B": "Pearson"}[task]
    assert f"{metric} " in table
    assert "best / median" in table
    records = json.loads((out / "runs" / "r_drop" / "seed1" / "scores.json").read_text())
    assert records[0]["name"] == metric
    assert 0 < records[0]["p_value"] <= 1
