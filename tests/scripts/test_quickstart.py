"""The quickstart from end to end on a corpus of a few sentences, its manners, and its parts."""

import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.scripts.script_runs import kill_all

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


class TestFitLengths:
    def fit(self, folder, lines):
        for split in ("train", "valid", "test"):
            for language in ("de", "en"):
                text = "".join(f"{line}\n" for line in lines[split])
                (folder / f"{split}.bpe.{language}").write_text(text)
        return run_python("data/fit_lengths.py", *f"--dir {folder} --source de --target en".split())

    def test_cuts_what_is_longer_than_the_model(self, tmp_path):
        """One such line ended everything after all trainings."""
        long = " ".join(map(str, range(3000)))
        lines = {"train": ["a", "b " * 175, "c " * 176, ""]}
        lines["valid"] = lines["test"] = ["a b", long, "", "c"]
        result = self.fit(tmp_path, lines)
        assert result.returncode == 0, result.stderr
        assert result.stderr.count("line 2 has 3000 tokens, cut to 1000") == 4
        cut = " ".join(map(str, range(1000)))
        assert (tmp_path / "test.fit.en").read_text() == f"a b\n{cut}\n\nc\n"
        assert (tmp_path / "train.fit.de").read_text().splitlines() == ["a", "b " * 175]

    def test_no_usable_pair(self, tmp_path):
        result = self.fit(tmp_path, {"train": [""], "valid": ["a"], "test": ["a"]})
        assert result.returncode == 1
        assert f"{tmp_path}: no usable training pair" in result.stderr


@needs_bash
class TestManners:
    def test_help(self):
        result = quickstart("--help")
        assert result.returncode == 0
        for option in ("--pair", "--data", "--optimizer", "--stage", "--stop-stage", "--out"):
            assert option in result.stdout

    @pytest.mark.parametrize("arguments", [["--nonsense"], ["word"], ["--pair"], ["--epochs", "0"]])
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
        assert again.stdout.count("done before") == 7
        assert "one seed is no evidence" in again.stdout
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

    def test_killed_while_training_and_run_again(self, tmp_path, small_options):
        out = tmp_path / "out"
        log = out / "runs/ga_sam/train.log"
        command = [BASH, str(SCRIPT), "--no-install", "--python", sys.executable]
        process = subprocess.Popen(
            [*command, *map(str, small_options)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        deadline = time.time() + 600
        while '"epoch": 2, "train_loss"' not in (log.read_text() if log.exists() else ""):
            assert process.poll() is None, "it ended before it could be killed"
            assert time.time() < deadline
            time.sleep(0.05)
        kill_all(process)
        assert not (out / ".done" / "train.ga_sam").exists()
        result = quickstart(*small_options)
        assert result.returncode == 0, result.stdout
        assert "training adam with seed 1: done before" in result.stdout
        assert (out / "report.md").exists()
