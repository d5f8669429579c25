"""The quickstart from end to end on a corpus of a few sentences, its manners, and its parts."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.scripts.script_runs import command, compare_after_kills, predictions_of

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "scripts" / "quickstart.sh"
BASH = shutil.which("bash")

needs_bash = pytest.mark.skipif(BASH is None, reason="there is no bash")


def quickstart(*arguments, **options):
    command = [BASH, str(SCRIPT), "--no-install", "--python", sys.executable, *map(str, arguments)]
    options.setdefault("stdout", subprocess.PIPE)
    options.setdefault("stderr", subprocess.STDOUT)
    return subprocess.run(command, text=True, **options)


def run_python(script, *arguments, **options):
    command = [sys.executable, str(ROOT / "scripts" / script), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, **options)


def make_corpus(directory, *arguments):
    pytest.importorskip("num2words")
    result = run_python("data/number_corpus.py", "--out", directory, *arguments)
    assert result.returncode == 0, result.stderr
    return {path.name: path.read_text(encoding="utf-8") for path in directory.iterdir()}


class TestNumberCorpus:
    SIZES = ("--train", 300, "--valid", 30, "--test", 30)

    def test_same_seed_same_files(self, tmp_path):
        first = make_corpus(tmp_path / "a", *self.SIZES)
        assert first == make_corpus(tmp_path / "b", *self.SIZES)
        assert first != make_corpus(tmp_path / "c", *self.SIZES, "--seed", 2)

    @pytest.mark.parametrize("pair", ["de-en", "en-vi", "fr-es"])
    def test_splits_are_parallel_and_disjoint(self, tmp_path, pair):
        files = make_corpus(tmp_path / "a", *self.SIZES, "--pair", pair)
        for lang in pair.split("-"):
            lines = {s: files[f"{s}.{lang}"].splitlines() for s in ("train", "valid", "test")}
            assert {s: len(v) for s, v in lines.items()} == {"train": 300, "valid": 30, "test": 30}
            assert all(line.strip() for split in lines.values() for line in split)
        source = {s: set(files[f"{s}.{pair[:2]}"].splitlines()) for s in ("train", "valid", "test")}
        assert not source["train"] & (source["valid"] | source["test"])

    def test_values_of_the_test_set_are_unseen(self, tmp_path):
        files = make_corpus(tmp_path / "a", *self.SIZES)
        date = re.compile(r"on the \S+ of [A-Z][a-z]+ .*$", re.MULTILINE)
        assert date.findall(files["test.en"])
        assert not set(date.findall(files["test.en"])) & set(date.findall(files["train.en"]))

    @pytest.mark.parametrize("pair", ["de", "de-de", "de-", "xx-en"])
    def test_misuse(self, tmp_path, pair):
        pytest.importorskip("num2words")
        assert (
            run_python("data/number_corpus.py", "--out", tmp_path, "--pair", pair).returncode == 2
        )


class TestMosesText:
    def test_round_trip(self):
        pytest.importorskip("sacremoses")
        text = "He said: \"It's five o'clock, isn't it?\"\nZwei Männer.\n"
        tokens = run_python("data/moses_text.py", "tokenize", "--lang", "en", input=text).stdout
        assert " , " in tokens
        assert tokens.count("\n") == 2
        back = run_python("data/moses_text.py", "detokenize", "--lang", "en", input=tokens)
        assert back.stdout == text


class TestEpochLines:
    def test_one_line_per_epoch_and_the_whole_log(self, tmp_path):
        log = tmp_path / "train.log"
        text = (
            "2024 | INFO | fairseq_cli.train | {'_name': None, 'common': {}}\n"
            '| INFO | train_inner | {"epoch": 2, "update": 1.5, "loss": "6"}\n'
            '| INFO | valid | {"epoch": 2, "valid_loss": "4.5"}\n'
            '| INFO | train | {"epoch": 2, "train_loss": "5", "train_train_wall": "7", '
            '"train_perturbation_on": "1", "train_sharpness": "0.25"}\n'
            "ValueError: something\n"
        )
        result = run_python("epoch_lines.py", "--log", log, input=text)
        expected = "epoch 2 train loss 5.000 valid loss 4.500 7 s sharpness 0.250"
        assert " ".join(result.stdout.split()) == expected
        assert result.stderr == "ValueError: something\n"
        assert log.read_text() == text


@needs_bash
class TestManners:
    def test_help(self):
        result = quickstart("--help")
        assert result.returncode == 0
        for option in ("--pair", "--data", "--optimizer", "--stage", "--stop-stage", "--out"):
            assert option in result.stdout

    @pytest.mark.parametrize(
        "arguments",
        [
            ["--nonsense"],
            ["word"],
            ["--pair"],
            ["--pair", "german"],
            ["--pair", "de-de"],
            ["--optimizer", "adam"],
            ["--rho", "-1"],
            ["--rho", "nan"],
            ["--rho", "1e400"],
            ["--rho", "1_0"],
            ["--lr", "2e6"],
            ["--epochs", "٣"],
            ["--epochs", "0"],
            ["--epochs", "4", "--start-epoch", "5"],
            ["--steps", "0"],
            ["--stage", "7"],
            ["--stage", "3", "--stop-stage", "2"],
            ["--bpe", "many"],
            ["--model", "huge"],
            ["--label", "a/b"],
            ["--data", "/nonexistent"],
            ["--text", "cooked"],
            ["--extra", "--lr '0.1"],
        ],
    )
    def test_misuse(self, tmp_path, arguments):
        result = quickstart("--out", tmp_path / "out", *arguments)
        assert result.returncode == 2, result.stdout
        assert "error:" in result.stdout
        assert not (tmp_path / "out").exists()

    def test_data_without_a_file(self, tmp_path):
        (tmp_path / "train.de").write_text("eins\n")
        result = quickstart("--data", tmp_path, "--out", tmp_path / "out")
        assert result.returncode == 2
        assert "train.en" in result.stdout

    def test_shellcheck(self):
        shellcheck = shutil.which("shellcheck")
        if shellcheck is None:
            pytest.skip("there is no shellcheck")
        result = subprocess.run(
            [shellcheck, "-x", "scripts/quickstart.sh"], cwd=ROOT, capture_output=True, text=True
        )
        assert result.returncode == 0, result.stdout


@pytest.fixture
def small_options(tmp_path):
    for name in ("fairseq", "num2words", "sacremoses", "sacrebleu", "subword_nmt", "matplotlib"):
        pytest.importorskip(name)
    make_corpus(tmp_path / "numbers", "--train", 80, "--valid", 10, "--test", 10)
    return [
        *("--data", tmp_path / "numbers", "--out", tmp_path / "out", "--model", "tiny"),
        *("--epochs", 3, "--start-epoch", 2, "--average", 2, "--bpe", 60, "--max-tokens", 400),
    ]


@needs_bash
@pytest.mark.slow
class TestEndToEnd:
    def test_all_stages_and_a_rerun(self, tmp_path, small_options):
        out = tmp_path / "out"
        result = quickstart(*small_options)
        assert result.returncode == 0, result.stdout
        report = (out / "report.md").read_text(encoding="utf-8")
        assert report in result.stdout
        assert re.search(r"\| adam (\| [0-9.]+ ){5}\| – \|", report)
        assert re.search(r"\| ga_sam (\| [0-9.]+ ){6}\|", report)
        assert (out / "curves.png").stat().st_size > 10000
        assert len((out / "runs/ga_sam/hypothesis").read_text().splitlines()) == 10
        self.check_shared_epoch(out)

        before = (out / "runs/ga_sam/train.log").stat().st_mtime_ns
        again = quickstart(*small_options)
        assert again.returncode == 0
        assert again.stdout.count("done before") == 6
        assert (out / "runs/ga_sam/train.log").stat().st_mtime_ns == before
        self.check_other_settings(small_options)

    def check_shared_epoch(self, out):
        logs = [(out / "runs" / name / "train.log").read_text() for name in ("adam", "ga_sam")]
        shared = (out / "shared" / "train.log").read_text()
        assert all(log.startswith(shared) for log in logs)
        # Neither branch trained the first epoch again.
        assert all(log.count('"epoch": 1, "train_loss"') == 1 for log in logs)

    def check_other_settings(self, small_options):
        result = quickstart(*small_options, "--rho", "0.5")
        assert result.returncode == 2
        assert "rho=0.5" in result.stdout

    def test_ten_kills_at_random(self, tmp_path, small_options):
        compare_after_kills(
            lambda out: command("quickstart", *small_options, "--out", out),
            tmp_path,
            10,
            predictions_of,
        )
