"""The reproduction scripts from end to end: small runs, interruptions, a script done by hand."""

import fcntl
import gzip
import json
import os
import random
import re
import subprocess
import sys
import time

import pytest
import torch

from tests.conftest import REAL_DATA
from tests.fairseq_runs import trained
from tests.scripts.made_text import (
    pack,
    sentences,
    write_archive,
    write_parallel,
    write_side,
)
from tests.scripts.script_runs import (
    BASH,
    command,
    descendants,
    kill_all,
    needs_text_packages,
    run,
)

pytestmark = [
    pytest.mark.skipif(BASH is None, reason="there is no bash"),
]


def small_de_en(tmp_path, out, *arguments):
    archive = tmp_path / "de-en.tgz"
    if not archive.exists():
        pack(write_archive(tmp_path / "archive"), archive)
    options = ["--small", "--data", archive, "--out", out, "--seeds", 1, "--bpe-size", 100]
    options += ["--methods", "baseline,ga_sam@0.01", "--epochs", 3, "--start-epoch", 2]
    return ["iwslt14_de_en", *options, *arguments]


def scores(out):
    return {
        path.parent.parent.name: json.loads(path.read_text())
        for path in out.glob("runs/*/*/scores.json")
    }


def weights(out, run_name):
    path = out / "runs" / run_name / "seed1" / "average.pt"
    return trained(torch.load(path, weights_only=False)["model"])


@needs_text_packages
class TestDeEn:
    @pytest.fixture(scope="class")
    def finished(self, tmp_path_factory):
        """A run that was killed at a random point, and resumed; and its last output."""
        tmp_path = tmp_path_factory.mktemp("killed")
        out = tmp_path / "out"
        rng = random.Random(int(os.environ.get("FAIRSEQ_SAM_TEST_SEED", "1")))
        log = tmp_path / "log"
        with open(log, "w") as file:
            process = subprocess.Popen(
                command(*small_de_en(tmp_path, out)),
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                start_new_session=True,
            )
            time.sleep(rng.uniform(2, 15))
            kill_all(process)
        result = run(*small_de_en(tmp_path, out))
        assert result.returncode == 0, result.stdout
        return tmp_path, out, result.stdout

    @pytest.mark.slow
    def test_killed_and_resumed_equals_uninterrupted(self, finished):
        tmp_path, out, _ = finished
        other = tmp_path / "uninterrupted"
        result = run(*small_de_en(tmp_path, other))
        assert result.returncode == 0, result.stdout
        assert scores(out) == scores(other) != {}
        for name in ("baseline", "ga_sam@0.01"):
            expected = weights(other, name)
            found = weights(out, name)
            assert all(torch.equal(found[key], expected[key]) for key in expected)

    def test_report(self, finished):
        _, out, _ = finished
        table = (out / "report.md").read_text()
        rows = [line for line in table.splitlines() if line.startswith("| ")]
        header = [cell.strip() for cell in rows[0].split("|")]
        remark = "not comparable: small model, other data"
        assert {
            "BLEU (of 100) ↑",
            "BLEU (tokenised) (of 100) ↑",
            f"BLEU (tokenised) in the paper ({remark})",
        } <= set(header)
        baseline = next(row for row in rows if row.startswith("| baseline"))
        assert "35.41 ± 0.13" in baseline
        assert any(row.startswith("| ga_sam@0.01") for row in rows)
        assert (out / "curves.png").stat().st_size > 0

    def test_branches_share_the_first_epochs(self, finished):
        _, out, _ = finished
        logs = [
            (out / "runs" / name / "seed1" / "train.log").read_text()
            for name in ("baseline", "ga_sam@0.01")
        ]
        first = [re.search(r'"epoch": 1, "train_loss": "([0-9.]+)"', log).group(1) for log in logs]
        assert first[0] == first[1]
        averages = [weights(out, name) for name in ("baseline", "ga_sam@0.01")]
        assert any(not torch.equal(averages[0][key], averages[1][key]) for key in averages[0])

    def test_a_rerun_does_nothing_again(self, finished):
        tmp_path, out, _ = finished
        before = {path: path.stat().st_mtime_ns for path in out.glob("runs/*/*/average.pt")}
        result = run(*small_de_en(tmp_path, out))
        assert result.returncode == 0
        assert result.stdout.count("done before") >= 6
        assert before == {path: path.stat().st_mtime_ns for path in before}

    def test_two_at_a_time_in_one_folder(self, finished):
        tmp_path, out, _ = finished

        with open(out / ".lock") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            result = run(*small_de_en(tmp_path, out))
        assert result.returncode == 1
        assert "another command is at work" in result.stdout

    @pytest.mark.slow
    def test_a_failing_training_is_reported_and_the_others_go_on(self, finished):
        tmp_path, out, _ = finished
        methods = ["--methods", "baseline,sam@1e-5,asam@1e-5", "--stop-stage", 4]
        blocked = out / "runs" / "sam@1e-5"
        blocked.mkdir()
        (blocked / "seed1").write_text("in the way")
        result = run(*small_de_en(tmp_path, out), *methods, "--parallel", 2)
        assert result.returncode == 1
        assert "1 of 2 failed" in result.stdout
        assert "--job train.sam@1e-5.seed1" in result.stdout
        assert (out / ".done" / "train.asam@1e-5.seed1").exists()
        assert not (out / ".done" / "train.sam@1e-5.seed1").exists()

    @pytest.mark.slow
    def test_regularisers_go_on_from_the_shared_epochs(self, finished):
        tmp_path, out, _ = finished
        methods = ["--methods", "baseline,free_lb,smart", "--stop-stage", 4]
        result = run(*small_de_en(tmp_path, out), *methods, "--parallel", 2)
        assert result.returncode == 0, result.stdout
        assert "free_lb seed 1: epoch   2" in result.stdout
        assert "smart seed 1: epoch   2" in result.stdout

    @pytest.mark.slow
    def test_stopping_the_script_stops_its_trainings(self, finished):
        tmp_path, out, _ = finished
        options = ["--methods", "layer_sam@1e-6", "--stop-stage", 4, "--extra", ""]
        process = subprocess.Popen(
            command(*small_de_en(tmp_path, out), *options),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        log = out / "runs" / "layer_sam@1e-6" / "seed1" / "train.log"
        deadline = time.monotonic() + 60
        while "layer_sam: rho" not in (log.read_text() if log.exists() else ""):
            assert time.monotonic() < deadline
            time.sleep(0.1)
        started = descendants(process.pid)
        assert started
        process.terminate()
        assert process.wait(timeout=30) == 130
        listed = subprocess.run(["ps", "-eo", "pid,args"], capture_output=True, text=True).stdout
        alive = [line for line in listed.splitlines()[1:] if int(line.split()[0]) in started]
        assert [line for line in alive if "defunct" not in line] == []

    @pytest.mark.slow
    def test_a_damaged_checkpoint_begins_with_the_shared_epochs_again(self, finished):
        tmp_path, out, _ = finished
        folder = out / "runs" / "baseline" / "seed1"
        before = weights(out, "baseline")
        (folder / "checkpoints" / "checkpoint_last.pt").write_bytes(b"half")
        for name in ("train", "score"):
            (out / ".done" / f"{name}.baseline.seed1").unlink()
        result = run(*small_de_en(tmp_path, out))
        assert result.returncode == 0, result.stdout
        assert "damaged1" in result.stdout
        after = weights(out, "baseline")
        assert all(torch.equal(after[key], before[key]) for key in before)

    @pytest.mark.slow
    def test_the_script_of_a_dry_run_does_the_same(self, finished):
        tmp_path, out, _ = finished
        other = tmp_path / "by hand"
        printed = run(*small_de_en(tmp_path, other), "--dry-run", "--gpus", 0)
        assert printed.returncode == 0
        assert not other.exists()
        folder = tmp_path / "bin"
        folder.mkdir()
        (folder / "python").write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
        (folder / "python").chmod(0o755)
        environment = {**os.environ, "PATH": f"{folder}:{os.environ['PATH']}"}
        result = subprocess.run(
            [BASH], input=printed.stdout, env=environment, capture_output=True, text=True
        )
        assert result.returncode == 0, result.stderr[-3000:]
        assert scores(other) == scores(out)
        rows = [(o / "report.md").read_text().count("| ga_sam@0.01 |") for o in (out, other)]
        assert rows == [1, 1]


def cut(source, target, count):
    """Writes the first lines of a .gz or plain file."""
    packed = source.with_name(f"{source.name}.gz")
    text = gzip.decompress(packed.read_bytes()) if packed.exists() else source.read_bytes()
    lines = text.split(b"\n")[:count]
    target.write_bytes(b"".join(line + b"\n" for line in lines))


@pytest.fixture
def en_vi(tmp_path):
    """A slice of the real text where it is there, made text elsewhere."""
    sizes = {"train": 150, "tst2012": 4, "tst2013": 6}
    real = REAL_DATA / "iwslt15-en-vi"
    if not real.is_dir():
        return write_parallel(tmp_path / "in", list(sizes), ("en", "vi"), sizes.values(), ".gz")
    (tmp_path / "in").mkdir()
    for name, (split, size) in zip(("train", "valid", "test"), sizes.items()):
        for language in ("en", "vi"):
            cut(real / f"{name}.{language}", tmp_path / "in" / f"{split}.{language}", size)
    return tmp_path / "in"


@pytest.mark.slow
@needs_text_packages
def test_en_vi_small(tmp_path, en_vi):
    out = tmp_path / "out"
    result = run(
        "iwslt15_en_vi", "--small", "--data", en_vi, "--out", out, "--seeds", "1,2",
        "--methods", "baseline,sam@1e-4", "--epochs", 2, "--start-epoch", 2, "--average", 1,
        "--free-disk",
    )  # fmt: skip
    assert result.returncode == 0, result.stdout
    table = (out / "report.md").read_text()
    assert re.search(r"\| baseline \| 2 \|.*30\.60 ± 0\.21", table)
    assert re.search(r"\| sam@1e-4 \| 2 \|", table)
    assert not list(out.glob("runs/*/*/checkpoints"))
    assert len(list(out.glob("runs/*/*/average.pt"))) == 4


def byte_bpe(root):
    """Files of a GPT-2 BPE without merges."""
    from fairseq.data.encoders.gpt2_bpe_utils import bytes_to_unicode

    symbols = list(bytes_to_unicode().values())
    (root / "encoder.json").write_text(json.dumps({s: i for i, s in enumerate(symbols)}))
    (root / "vocab.bpe").write_text("#version: 0.2\n\n")
    write_side(root / "dict.txt", [f"{i} 1" for i in range(len(symbols))])


@pytest.fixture
def summaries(tmp_path):
    """Options that name a corpus of summaries and its BPE, real where they are there."""
    data, bpe = tmp_path / "in", tmp_path / "bpe"
    data.mkdir()
    bpe.mkdir()
    sizes = {"train": 12, "val": 2, "test": 3}
    real = REAL_DATA / "scitldr"
    for name, size in sizes.items():
        pairs = [(f"{source} {target}", target) for source, target in sentences(size, size)]
        for side, suffix in enumerate(("source", "target")):
            if real.is_dir():
                cut(real / f"{name}.{suffix}", data / f"{name}.{suffix}", size)
            else:
                write_side(data / f"{name}.{suffix}.gz", [pair[side] for pair in pairs])
    if real.is_dir():
        for name in ("encoder.json", "vocab.bpe", "dict.txt"):
            cut(REAL_DATA / "gpt2-bpe" / name, bpe / name, None)
    else:
        byte_bpe(bpe)
    (data / "test.target.gz").unlink(missing_ok=True)
    # A model has positions for 1024 tokens; a summary may have more.
    write_side(data / "test.target", ["a b c.", "word " * 2000, "d e f."])
    return ["--data", data, "--gpt2-bpe", bpe]


@pytest.mark.slow
@needs_text_packages
def test_bart_small(tmp_path, summaries):
    out = tmp_path / "out"
    options = ["--small", *summaries, "--out", out, "--seeds", 1, "--updates", 10]
    options += ["--pretrain-updates", 10, "--methods", "baseline,delta_sam"]
    result = run("bart_cnn_dm", *options)
    assert result.returncode == 0, result.stdout
    table = (out / "report.md").read_text()
    assert re.search(r"\| baseline \| 1 \| .*44\.16.*40\.90", table)
    assert re.search(r"\| delta_sam \| 1 \| .*44\.70.*41\.81", table)
    assert "ROUGE-Lsum" in table
    hypotheses = (out / "runs" / "delta_sam" / "seed1" / "hypothesis").read_text().splitlines()
    assert len(hypotheses) == 3
    log = (out / "runs" / "baseline" / "seed1" / "train.log").read_text()
    assert "loading pretrained model from" in log
