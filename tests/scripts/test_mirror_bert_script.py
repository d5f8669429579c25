"""Mirror-BERT with and without sharpness-aware training: a small run, and its programs."""

import doctest
import gzip
import importlib
import json
import re
import subprocess
import sys
from string import ascii_lowercase

import pytest

from fairseq_sam.analysis.sts import SUBSETS
from fairseq_sam.commands import main
from tests.analysis.test_sts import write_all, write_sts
from tests.checkpoints.conversion.made_encoder import BERT_PIECES, write_encoder
from tests.conftest import REAL_DATA
from tests.scripts.made_text import sentences, write_side
from tests.scripts.script_runs import BASH, ROOT, run

pytestmark = [pytest.mark.skipif(BASH is None, reason="there is no bash")]


def real_slices(folder):
    """Writes the first pairs of every subset of the real sets, in their layout."""
    source = REAL_DATA / "sts"
    for path in sorted(source.rglob("*")):
        if not re.match(r"STS\.(input|gs)\.|sts-(dev|test)|SICK_test", path.name):
            continue
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        name = path.with_suffix("") if path.suffix == ".gz" else path
        if name.suffix in (".txt", ".csv"):
            slice_of = folder / name.relative_to(source)
            slice_of.parent.mkdir(parents=True, exist_ok=True)
            slice_of.write_bytes(b"".join(content.splitlines(keepends=True)[:100]))


def made_sets(folder):
    """Writes every set, those of several subsets with sentences that can be told apart."""
    write_all(folder)
    texts = [english for _, english in sentences(9, 2)]
    rows = [[str(i), one, other] for i, (one, other) in enumerate(zip(texts, texts[1:]))]
    for name, parts in SUBSETS.items():
        for part in parts:
            write_sts(folder, name, part, rows)


def figures_of(names):
    """What ``fairseq-sam sts --json`` has of a checkpoint, with 0, 10, 20 … for the sets."""
    sets = {}
    for i, name in enumerate(names):
        subsets = dict.fromkeys(SUBSETS.get(name, [name]), 10.0 * i)
        sets[name] = {"all": 10.0 * i, "subsets": subsets}
    return {"pooling": "cls", "sets": sets}


@pytest.mark.slow
def test_small(tmp_path):
    """All of it, on slices of the real data where they are."""
    for name in ("tokenizers", "scipy"):
        pytest.importorskip(name)
    letters = [f"{prefix}{letter}" for letter in ascii_lowercase for prefix in ("", "##")]
    pieces = list(dict.fromkeys([*BERT_PIECES, *letters]))
    write_encoder(tmp_path / "hugging", pieces, max_position_embeddings=512)
    assert (
        main(["convert", str(tmp_path / "hugging"), f"--output={tmp_path}/encoder/model.pt"]) == 0
    )
    data, sts = REAL_DATA / "mirror-bert", tmp_path / "sts"
    sts.mkdir()
    if REAL_DATA.is_dir():
        real_slices(sts)
    else:
        data = tmp_path / "text"
        data.mkdir()
        write_side(data / "sentences.txt.gz", [english for _, english in sentences(120, 1)])
        made_sets(sts)
    out = tmp_path / "out"
    result = run(
        "mirror_bert", "--small", "--model", tmp_path / "encoder", "--data", data, "--sts", sts,
        "--out", out, "--seeds", 1, "--methods", "baseline,delta_sam_noise",
        "--extra", "--max-update 2", "--parallel", 2, "--free-disk",
    )  # fmt: skip
    assert result.returncode == 0, result.stdout
    table = (out / "report.md").read_text()
    number = r"-?\d+\.\d\d"
    for method, average, sts12 in (
        ("baseline", "74.85", "67.87"),
        ("delta_sam_noise", "76.71", "69.73"),
    ):
        row = rf"\| {method} \| 1 \| {number} \| {average} \| {number} \| {sts12} \|"
        assert re.search(row, table), table
    assert "free_lb" not in table  # the paper has it, and nobody asked for it
    folder = out / "runs" / "baseline" / "seed1"
    assert not (folder / "checkpoints").exists()
    scores = {r["name"]: r["score"] for r in json.loads((folder / "scores.json").read_text())}
    (figures,) = json.loads((folder / "sts.json").read_text())["checkpoints"]
    assert len(figures["sets"]) == 7
    mean = sum(found["all"] or 0 for found in figures["sets"].values()) / 7
    assert scores["STS average"] == pytest.approx(mean)
    assert "STS-B dev" in scores


class TestPrograms:
    """sentences.py and similarity.py by themselves."""

    @pytest.fixture(autouse=True)
    def on_path(self, monkeypatch):
        for name in ("data", "scoring"):
            monkeypatch.syspath_prepend(str(ROOT / "scripts" / name))

    @pytest.mark.parametrize("name", ["sentences.txt", "sentences.txt.gz"])
    def test_sentences(self, tmp_path, monkeypatch, name):
        program = importlib.import_module("sentences")
        folder = tmp_path / "text"
        folder.mkdir()
        write_side(folder / name, [" One. ", "", "Two\u2028too.\r", "One."])
        for data in (folder, folder / name):
            arguments = ["--data", str(data), "--out", str(tmp_path / "out")]
            monkeypatch.setattr(sys, "argv", ["sentences.py", *arguments])
            assert program.main() == 0
            assert (tmp_path / "out").read_text(encoding="utf-8") == "One.\nTwo\u2028too.\nOne.\n"
        monkeypatch.setattr(sys, "argv", [*sys.argv, "--limit", "1"])
        assert program.main() == 0
        assert (tmp_path / "out").read_text() == "One.\n"

    def test_no_sentences(self, tmp_path, monkeypatch, capsys):
        program = importlib.import_module("sentences")
        damaged, blank = tmp_path / "damaged.gz", tmp_path / "blank"
        damaged.write_bytes(b"no gzip")
        blank.write_text("\n \n")
        empty = tmp_path / "empty"
        empty.mkdir()
        for data, reason in (
            (damaged, "damaged"),
            (blank, "no sentences"),
            (empty, "no *.txt"),
            (tmp_path / "absent", "damaged"),
        ):
            arguments = ["--data", str(data), "--out", str(tmp_path / "out")]
            monkeypatch.setattr(sys, "argv", ["sentences.py", *arguments])
            assert program.main() == 1
            error = capsys.readouterr().err
            assert (error.count("\n"), f"{data}: {reason}" in error) == (1, True)

    def test_similarity(self):
        program = importlib.import_module("similarity")
        figures = figures_of(program.TEST_SETS)
        *sets, average = program.score(figures)
        assert [record["score"] for record in sets] == [0, 10, 20, 30, 40, 50, 60]
        assert (average["name"], average["score"]) == ("STS average", 30)
        assert "cls pooling" in average["signature"]
        del figures["sets"]["SICK-R"]
        assert [record["name"] for record in program.score(figures)] == [*program.TEST_SETS[:6]]

    def test_an_incomplete_set_has_no_score(self, tmp_path, monkeypatch, capsys):
        """Neither has the average, which would be put beside a paper's."""
        program = importlib.import_module("similarity")
        figures = figures_of([*program.TEST_SETS[:5], "SICK-R"])
        del figures["sets"]["STS12"]["subsets"]["MSRvid"]
        dev = {"STS-B dev": {"all": 70.0, "subsets": {"STS-B dev": 70.0}}}
        paths = [tmp_path / "sts.json", tmp_path / "sts-dev.json"]
        for path, content in zip(paths, (figures, {"pooling": "cls", "sets": dev})):
            path.write_text(json.dumps({"missing": [], "checkpoints": [content]}))
        arguments = [*map(str, paths), "--output", str(tmp_path / "scores.json")]
        monkeypatch.setattr(sys, "argv", ["similarity.py", *arguments])
        assert program.main() == 0
        names = [record["name"] for record in json.loads((tmp_path / "scores.json").read_text())]
        assert names == ["STS13", "STS14", "STS15", "STS16", "SICK-R", "STS-B dev"]
        assert capsys.readouterr().err == (
            f"{paths[0]}: no STS average, and no score of STS12 (lacks MSRvid), STS-B (not there)\n"
        )

    def test_examples(self):
        found = doctest.testmod(importlib.import_module("similarity"))
        assert (found.attempted > 0, found.failed) == (True, 0)

    def test_another_file_is_no_evaluation(self, tmp_path):
        (tmp_path / "x.json").write_text('[{"name": "BLEU"}]')
        command = [sys.executable, str(ROOT / "scripts" / "scoring" / "similarity.py")]
        arguments = [str(tmp_path / "x.json"), "--output", str(tmp_path / "scores.json")]
        result = subprocess.run([*command, *arguments], capture_output=True, text=True)
        assert result.returncode == 1
        assert "x.json: not a file of fairseq-sam sts --json" in result.stderr
