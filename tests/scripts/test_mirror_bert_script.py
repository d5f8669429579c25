"""Mirror-BERT with and without sharpness-aware training: settings at full size, a small run."""

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
from tests.conftest import REAL_DATA
from tests.conversion.made_encoder import BERT_PIECES, write_encoder
from tests.scripts.made_text import sentences, write_side
from tests.scripts.script_runs import BASH, ROOT, dry_run, flags, run, trainings

pytestmark = [pytest.mark.skipif(BASH is None, reason="there is no bash")]


@pytest.fixture
def places(tmp_path):
    """Returns the options for folders that look right, which is all that a dry run asks for."""

    def make(arch="bert"):
        (tmp_path / "sts").mkdir(exist_ok=True)
        (tmp_path / arch).mkdir()
        (tmp_path / arch / "flags.txt").write_text(f"--arch {arch} --max-positions 512\n")
        return ["--model", tmp_path / arch, "--sts", tmp_path / "sts", "--out", "O"]

    return make


class TestFullSize:
    """What --dry-run prints is compared with δ-SAM's Appendix A and Mirror-BERT's scripts."""

    @pytest.mark.parametrize(
        ("arch", "rho", "noise", "pooling"),
        [("bert", "0.1", "0.1", "mean"), ("roberta", "0.02", "0.2", "cls")],
    )
    def test_methods(self, places, arch, rho, noise, pooling):
        commands = dry_run("mirror_bert", *places(arch))
        wanted = {
            "baseline": ("adam", None, None, None),
            "r3f": ("adam", None, None, noise),
            "sam": ("sam", rho, None, None),
            "sam_noise": ("sam", rho, None, noise),
            "delta_sam": ("delta_sam", rho, "1.0", None),
            "delta_sam_noise": ("delta_sam", rho, "1.0", noise),
        }
        names = ("--optimizer", "--sam-rho", "--delta-sam-eta", "--mirror-noise")
        for method, values in wanted.items():
            found = trainings(commands, f"O/runs/{method}/seed5/checkpoints")
            assert tuple(map(found.get, names)) == values, method
            assert found["--mirror-pooling"] == pooling
        assert len([c for c in commands if "fairseq_cli.train" in c]) == 5 * len(wanted)
        report = flags(commands[-1])
        assert report["--paper"] == f"mirror_{arch}_sts"
        assert not {"--summary", "--plot"} & report.keys()  # means; and there is no validation

    def test_recipe(self, places):
        commands = dry_run("mirror_bert", *places(), "--seeds", 1, "--methods", "baseline")
        found = trainings(commands, "O/runs/baseline/seed1/checkpoints")
        wanted = {
            "--batch-size": "200", "--lr": "2e-5", "--lr-scheduler": "fixed", "--max-epoch": "1",
            "--max-sentence-tokens": "50", "--mirror-temperature": "0.04", "--mirror-span": "2",
            "--mirror-perturb": "one", "--dropout": "0.1", "--attention-dropout": "0.1",
            "--weight-decay": "0.01", "--adam-betas": "(0.9, 0.999)", "--clip-norm": "0.0",
            "--disable-validation": True, "--arch": "bert",
        }  # fmt: skip
        assert {key: found[key] for key in wanted} == wanted
        (fetched,) = [c for c in commands if c[:1] == ["curl"]]
        assert "stsbenchmark_train_10k_sents_random_sampled.txt" in fetched[-1]

    def test_grid(self, places):
        methods = "sam@0.05,delta_sam_eta1e-2@0.01,delta_sam_literal,ga_sam"
        commands = dry_run("mirror_bert", *places(), "--seeds", 1, "--methods", methods)
        sam, eta, literal, ga_sam = (
            trainings(commands, f"O/runs/{method}/seed1/checkpoints")
            for method in methods.split(",")
        )
        assert sam["--sam-rho"] == "0.05"
        assert (eta["--sam-rho"], eta["--delta-sam-eta"]) == ("0.01", "1e-2")
        assert literal["--delta-sam-probe-radius"] == literal["--sam-rho"] == "0.1"
        assert ga_sam["--optimizer"] == "ga_sam"

    def test_scored_is_the_last_checkpoint_on_test_and_development_sets(self, places):
        commands = dry_run("mirror_bert", *places(), "--seeds", 1, "--methods", "baseline")
        test, dev = [c for c in commands if "sts" in c]
        assert test[5] == dev[5] == "O/runs/baseline/seed1/checkpoints/checkpoint_last.pt"
        assert ("--dev" in test, "--dev" in dev) == (False, True)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--model is missing"),
        (["--model", "/"], "--model /: not a folder that fairseq-sam convert wrote"),
        (["--model", "{}"], "--sts is missing"),
        (["--model", "{}", "--sts", "/no/such"], "--sts /no/such: no such directory"),
        (["--model", "{}", "--sts", "/", "--data", "/no/such"], "--data /no/such: no such file"),
        (["--dry-run", "--gpus", "2"], "one GPU a training"),
        (["--batch", "1"], "--batch 1: a whole number of at least 2"),
        (["--lr", "0"], "--lr 0: a number above 0"),
        (["--average", "3"], "--average: training is perturbed from the start"),
        (["--methods", "per_instance_sam"], "--methods per_instance_sam: choose from: baseline"),
        (["--methods", "r3f@0.1"], "r3f has no radius"),
    ],
)
def test_misuse(tmp_path, arguments, message):
    (tmp_path / "flags.txt").write_text("--arch bert\n")
    result = run("mirror_bert", *(argument.format(tmp_path) for argument in arguments))
    assert result.returncode == 2, result.stdout
    assert message in result.stdout


def test_help():
    result = run("mirror_bert", "--help")
    assert result.returncode == 0
    assert re.search(r"Examples:\n  bash scripts/", result.stdout)


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
    def test_sentences(self, tmp_path, name):
        program = importlib.import_module("sentences")
        folder = tmp_path / "text"
        folder.mkdir()
        write_side(folder / name, [" One. ", "", "Two\u2028too.\r", "One."])
        for data in (folder, folder / name):
            assert program.main(["--data", str(data), "--out", str(tmp_path / "out")]) == 0
            assert (tmp_path / "out").read_text(encoding="utf-8") == "One.\nTwo\u2028too.\nOne.\n"
        limited = ["--data", str(folder), "--limit", "1", "--out", str(tmp_path / "out")]
        assert program.main(limited) == 0
        assert (tmp_path / "out").read_text() == "One.\n"

    def test_no_sentences(self, tmp_path, capsys):
        program = importlib.import_module("sentences")
        damaged, blank = tmp_path / "damaged.gz", tmp_path / "blank"
        damaged.write_bytes(b"no gzip")
        blank.write_text("\n \n")
        empty = tmp_path / "empty"
        empty.mkdir()
        for data, reason in (
            (damaged, "cannot be read"),
            (blank, "no sentences"),
            (empty, "no *.txt"),
            (tmp_path / "absent", "cannot be read"),
        ):
            assert program.main(["--data", str(data), "--out", str(tmp_path / "out")]) == 1
            error = capsys.readouterr().err
            assert (error.count("\n"), f"{data}: {reason}" in error) == (1, True)

    def test_similarity(self):
        program = importlib.import_module("similarity")
        figures = {
            "pooling": "cls",
            "sets": {name: {"all": 10.0 * i} for i, name in enumerate(program.TEST_SETS)},
        }
        *sets, average = program.score(figures)
        assert [record["score"] for record in sets] == [0, 10, 20, 30, 40, 50, 60]
        assert (average["name"], average["score"]) == ("STS average", 30)
        assert "cls pooling" in average["signature"]
        del figures["sets"]["SICK-R"]
        assert [record["name"] for record in program.score(figures)] == [*program.TEST_SETS[:6]]

    def test_another_file_is_no_evaluation(self, tmp_path):
        (tmp_path / "x.json").write_text('[{"name": "BLEU"}]')
        command = [sys.executable, str(ROOT / "scripts" / "scoring" / "similarity.py")]
        arguments = [str(tmp_path / "x.json"), "--output", str(tmp_path / "scores.json")]
        result = subprocess.run([*command, *arguments], capture_output=True, text=True)
        assert result.returncode == 1
        assert "x.json: not a file of fairseq-sam sts --json" in result.stderr
