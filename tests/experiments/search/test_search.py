"""``fairseq-sam search``: what it trains, finds and writes, interruptions, and bad input."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fairseq_sam.commands import main
from fairseq_sam.experiments.directory import locked
from fairseq_sam.experiments.processes import gpu_slots
from fairseq_sam.experiments.search.trial_jobs import TrialRunner
from tests.experiments.search.made_trainer import write_checkpoint
from tests.fairseq_runs import ROOT, TRAINING, TRANSLATION, split
from tests.scripts.script_runs import compare_after_kills

OPTIMUM = 3e-3
MADE = ROOT / "tests" / "experiments" / "search" / "made_trainer.py"
TRAIN = ["data", "--optimizer", "ga_sam", "--max-epoch", "3", "--cpu"]


def search(out, *flags, options=()):
    return main(["search", "--out", str(out), *map(str, options), "--", *TRAIN, *map(str, flags)])


def starts(out):
    """Returns, for each run's directory, the epoch at which each of its starts began."""
    files = out.glob("rho-*/starts")
    return {f.parent.name: [int(line.split()[0]) for line in f.open()] for f in files}


class TestFinds:
    def test_the_best_radius_and_writes_what_it_found(self, tmp_path, capsys):
        out, found = tmp_path / "a" / "out", tmp_path / "found.json"
        assert search(out, options=["--json", found]) == 0
        printed = capsys.readouterr().out
        figures = json.loads(found.read_text())
        assert figures["rho"] == 2e-3  # as good as 4e-3
        assert figures["baseline"] == 4.0
        assert figures["value"] == pytest.approx(4 + 0.05 * ((2 / 3) ** 2 - 4 / 3), abs=1e-5)
        assert figures["command"][-2:] == ["--sam-rho", "0.002"]
        assert printed.startswith((out / "search.md").read_text())
        assert "| 0.002 | **3.9556** | -0.0444 | 30 | finished |" in printed
        assert "best: --sam-rho 0.002 (loss 3.9556, without perturbation 4)" in printed
        assert printed.splitlines()[-1].startswith("fairseq-train data --optimizer ga_sam")
        assert printed.splitlines()[-1].endswith("--sam-rho 0.002")
        assert (out / "search.png").read_bytes().startswith(b"\x89PNG")
        assert sorted(starts(out)) == [
            *("rho-0", "rho-1e-02", "rho-1e-03", "rho-1e-04", "rho-2e-03", "rho-5e-03"),
            "rho-8e-03",
        ]

    def test_the_best_share(self, tmp_path, capsys):
        out, found = tmp_path / "out", tmp_path / "found.json"
        options = ["--shares", "1%,2.5%,5%,20%", "--json", found]
        assert search(out, "--optimum", "0.03", options=options) == 0
        figures = json.loads(found.read_text())
        assert figures["rho"] == "2.5%"
        assert figures["command"][-2:] == ["--sam-rho", "2.5%"]
        assert [row["rho"] for row in figures["radii"]] == ["0", "1%", "2.5%", "5%", "20%"]
        assert "best: --sam-rho 2.5% (loss" in capsys.readouterr().out
        assert (out / "search.png").exists()

    def test_the_usual_shares(self, tmp_path, capsys):
        assert search(tmp_path / "out", options=["--shares"]) == 0
        assert len(starts(tmp_path / "out")) == 6
        assert "the best share is the smallest" in capsys.readouterr().out

    def test_a_maximised_metric(self, tmp_path):
        metric = ["--best-checkpoint-metric", "accuracy", "--maximize-best-checkpoint-metric"]
        found = tmp_path / "found.json"
        options = ["--json", found, "--margin", 1e-3]
        assert search(tmp_path / "out", *metric, options=options) == 0
        figures = json.loads(found.read_text())
        assert (figures["rho"], figures["metric"], figures["maximise"]) == (2e-3, "accuracy", True)
        assert figures["value"] > figures["baseline"] == 96.0

    def test_means_over_seeds(self, tmp_path, capsys):
        found = tmp_path / "found.json"
        options = ["--seeds", "1,3", "--json", found, "--parallel", 2]
        assert search(tmp_path / "out", options=options) == 0
        figures = json.loads(found.read_text())
        assert figures["rho"] == 2e-3
        assert figures["baseline"] == pytest.approx(4.002)
        assert all(len(row["runs"]) == 2 for row in figures["radii"])
        assert figures["radii"][0]["standard_deviation"] == pytest.approx(0.002**0.5 / 1000**0.5)
        assert "±" in capsys.readouterr().out
        assert (tmp_path / "out" / "rho-2e-03-seed3" / "train.log").exists()

    def test_runs_at_once_find_the_same(self, tmp_path):
        found = tmp_path / "found.json"
        assert search(tmp_path / "out", options=["--json", found, "--parallel", 4]) == 0
        assert json.loads(found.read_text())["rho"] == 2e-3

    def test_another_plot(self, tmp_path):
        plot = tmp_path / "radius.svg"
        assert search(tmp_path / "out", options=["--plot", plot]) == 0
        assert "<svg" in plot.read_text()
        assert not (tmp_path / "out" / "search.png").exists()

    def test_no_radius_better_than_none(self, tmp_path, capsys):
        assert search(tmp_path / "out", "--optimum", "1e-9") == 0
        printed = capsys.readouterr().out
        assert "nothing is better than --sam-rho 0" in printed or "no better" in printed
        assert "should begin lower" in printed


class TestGivesUp:
    def test_hopeless_runs(self, tmp_path, capsys):
        out = tmp_path / "out"
        # Losses fall to 4 at the last of 50 epochs; that of ρ = 0.01 is worse by 5 from the first.
        flags = ["--max-epoch", "50", "--pause", "0.03", "--optimum", "9e-4"]
        options = ["--stop-margin", 0.01, "--stop-after", 2, "--highest", 1e-2, "--lowest", 1e-2]
        assert search(out, *flags, options=options) == 0
        result = json.loads((out / "rho-1e-02" / "result.json").read_text())
        assert result["status"] == "stopped"
        assert "the baseline" in result["reason"]
        assert result["updates"] < 500
        assert not running(out)
        assert "stopped: " in capsys.readouterr().out

    def test_diverging_runs(self, tmp_path, capsys):
        out = tmp_path / "out"
        assert search(out, "--diverge-above", "0.004") == 0
        printed = capsys.readouterr().out
        assert "diverged: FloatingPointError: Minimum loss scale reached" in printed
        assert "best: --sam-rho 0.002" in printed

    def test_a_diverging_run_whose_diagnosis_fails(self, tmp_path, capsys):
        assert search(tmp_path / "out", "--diverge-above", "0.004", "--nan-detector") == 0
        first = capsys.readouterr().out
        assert "diverged: FloatingPointError: gradients are Nan/Inf" in first
        for path in (tmp_path / "out").glob("rho-*/result.json"):
            path.unlink()  # as by a version that took divergence for a failure
        assert search(tmp_path / "out", "--diverge-above", "0.004", "--nan-detector") == 0
        assert capsys.readouterr().out == first

    def test_a_diverging_baseline_is_an_error(self, tmp_path, capsys):
        assert search(tmp_path / "out", "--diverge-above", "-1") == 1
        assert "rho-0/train.log" in capsys.readouterr().err.splitlines()[-1]


class TestLimits:
    def test_runs(self, tmp_path, capsys):
        assert search(tmp_path / "out", options=["--max-runs", 4]) == 0
        assert len(starts(tmp_path / "out")) == 4
        assert "limit on runs" in capsys.readouterr().out

    def test_range(self, tmp_path):
        assert search(tmp_path / "out", options=["--lowest", "1e-2", "--highest", "0.1"]) == 0
        assert set(starts(tmp_path / "out")) <= {
            *("rho-0", "rho-1e-01", "rho-1e-02", "rho-2e-02", "rho-5e-02", "rho-8e-02"),
        }

    def test_dry_run(self, tmp_path, capsys):
        assert search(tmp_path / "out", options=["--dry-run", "--seeds", "1,2"]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert len(lines) == 4
        assert all(line.startswith("fairseq-train data --optimizer ga_sam") for line in lines)
        assert "--sam-rho 0 --seed 2" in lines[1]
        assert "--sam-rho 0.01 --seed 1" in lines[2]
        assert not (tmp_path / "out").exists()

    @pytest.mark.parametrize(
        "options",
        [
            ["--parallel", "2", "--max-runs", "3"],
            ["--seeds", "1,2", "--parallel", "4", "--max-runs", "4"],
            ["--shares", "--max-runs", "3"],
        ],
    )
    def test_dry_run_prints_what_is_run(self, tmp_path, capsys, options):
        assert search(tmp_path / "out", options=[*options, "--dry-run"]) == 0
        lines = capsys.readouterr().out.splitlines()
        printed = [line.rpartition("--save-dir ")[2] for line in lines]
        assert search(tmp_path / "out", options=options) == 0
        assert {Path(folder).name for folder in printed} == set(starts(tmp_path / "out"))

    def test_dry_run_begins_where_the_search_does(self, tmp_path, capsys):
        write_checkpoint(tmp_path / "first.pt", 1)
        options = ["--start-from", tmp_path / "first.pt", "--dry-run"]
        assert search(tmp_path / "out put", options=options) == 0
        lines = capsys.readouterr().out.splitlines()
        folder = tmp_path / "out put" / "rho-0"
        assert lines[:2] == [
            f"mkdir -p '{folder}'",
            f"cp {tmp_path / 'first.pt'} '{folder}/checkpoint_last.pt'",
        ]
        assert lines[2].startswith("fairseq-train ")
        assert len(lines) == 6


def running(out):
    """Returns the process ids of runs in a directory that are still there."""
    ids = [int(line.split()[2]) for f in out.glob("rho-*/starts") for line in f.open()]
    return [number for number in ids if alive(number)]


def alive(number):
    try:
        os.kill(number, 0)
    except ProcessLookupError:
        return False
    stat = Path(f"/proc/{number}/stat")
    return not (stat.exists() and stat.read_text().rsplit(")", 1)[1].split()[0] == "Z")


def searching_command(out, *flags):
    """Returns the command line of a search in a process of its own."""
    program = (
        # A shell that starts the tests in the background has them ignore Ctrl-C.
        "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler);"
        "from fairseq_sam.commands import main;"
        "from fairseq_sam.experiments.search import command_check, trial_jobs;"
        "from fairseq_sam.experiments import jobs;"
        "command_check.CHECKER = (sys.executable, '-S', '-c', '');"
        f"trial_jobs.TRAINER = (sys.executable, '-S', {str(MADE)!r}); jobs.POLL_SECONDS = 0.02;"
        "sys.exit(main(sys.argv[1:]))"
    )
    return [sys.executable, "-c", program, "search", "--out", str(out), "--", *TRAIN, *flags]


def searching(out, *flags):
    """Starts a search in a process of its own."""
    command = searching_command(out, *flags)
    pipe = subprocess.PIPE
    return subprocess.Popen(command, cwd=ROOT, text=True, stdout=pipe, stderr=pipe)


def wait_until(condition, seconds=30):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


class TestGoesOn:
    def test_nothing_finished_is_trained_again(self, tmp_path, capsys):
        assert search(tmp_path) == 0
        first, found = capsys.readouterr().out, starts(tmp_path)
        assert search(tmp_path) == 0
        assert capsys.readouterr().out == first
        assert starts(tmp_path) == found

    def test_more_seeds_later(self, tmp_path):
        assert search(tmp_path, options=["--seeds", "1"]) == 0
        assert search(tmp_path, options=["--seeds", "1,2"]) == 0
        assert set(map(len, starts(tmp_path).values())) == {1}

    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
    def test_after_an_interruption(self, tmp_path, number):
        flags = ["--pause", "0.2"]
        process = searching(tmp_path, *flags)
        wait_until(lambda: (tmp_path / "rho-0" / "checkpoint_last.pt").exists())
        process.send_signal(number)
        _, messages = process.communicate(timeout=30)
        assert process.returncode == 130
        assert messages.splitlines()[-1] == "fairseq-sam search: stopped; the same command goes on"
        assert "Traceback" not in messages
        assert not running(tmp_path)
        assert search(tmp_path, *flags, options=["--max-runs", 2]) == 0
        before, after = starts(tmp_path)["rho-0"]
        assert before == 0 < after

    def test_not_while_runs_of_a_killed_search_are_alive(self, tmp_path, capsys):
        flags = ["--pause", "1"]
        process = searching(tmp_path, *flags)
        wait_until(lambda: running(tmp_path))
        process.kill()
        process.communicate()
        (left,) = running(tmp_path)
        assert search(tmp_path, *flags) == 1
        assert f"{tmp_path}: another command is at work there" in capsys.readouterr().err
        os.kill(left, signal.SIGKILL)

    @pytest.mark.slow
    def test_after_thirty_kills_at_random(self, tmp_path):
        flags = ["--pause", "0.05"]

        def result_of(out):
            runs = {p.parent.name: json.loads(p.read_text()) for p in out.glob("*/result.json")}
            for result in runs.values():
                del result["seconds"]
            return (out / "search.md").read_text(), runs

        compare_after_kills(lambda out: searching_command(out, *flags), tmp_path, 30, result_of)

    def test_after_a_failure(self, tmp_path, capsys):
        out = tmp_path / "out"
        assert search(out, "--fail-at", "1e-4") == 1
        message = capsys.readouterr().err.splitlines()[-1]
        assert f"{out}/rho-1e-04/train.log" in message
        assert message.endswith("status 1: RuntimeError: CUDA out of memory")
        assert search(out, "--fail-at", "1e-4") == 1
        found = starts(out)
        assert found.pop("rho-1e-04") == [0, 0]
        assert set(map(len, found.values())) == {1}

    def test_a_failure_ends_the_other_runs(self, tmp_path):
        out, slow = tmp_path / "out", ["--pause", "60", "--fail-at", "1e-3"]
        assert search(out, *slow, options=["--parallel", 4]) == 1
        assert len(starts(out)) > 1
        assert not running(out)

    def test_all_runs_begin_with_a_checkpoint(self, tmp_path):
        checkpoint = tmp_path / "checkpoint2.pt"
        write_checkpoint(checkpoint, 2)
        content = checkpoint.read_bytes()
        options = ["--start-from", checkpoint]
        assert search(tmp_path / "out", options=options) == 0
        assert {tuple(epochs) for epochs in starts(tmp_path / "out").values()} == {(2,)}
        assert checkpoint.read_bytes() == content


class TestWhatRunsBeginWith:
    """Runs from other weights, or with another batch, are not comparable."""

    @pytest.fixture
    def checkpoint(self, tmp_path):
        write_checkpoint(tmp_path / "start.pt", 1)
        return tmp_path / "start.pt"

    def test_a_checkpoint_that_was_written_over(self, tmp_path, capsys, checkpoint):
        out, options = tmp_path / "out", ["--start-from", checkpoint, "--max-runs"]
        assert search(out, options=[*options, 2]) == 0
        write_checkpoint(checkpoint, 2)
        before = starts(out)
        capsys.readouterr()
        assert search(out, options=[*options, 3]) == 1
        error = capsys.readouterr().err
        refusal = f"{out}: was made with other content of --start-from: use another --out"
        assert (refusal in error, error.count("\n")) == (True, 1)
        assert starts(out) == before
        write_checkpoint(checkpoint, 1)
        assert search(out, options=[*options, 3]) == 0
        assert len(starts(out)) == 3

    def test_one_that_is_written_over_meanwhile(self, tmp_path, capsys, checkpoint, monkeypatch):
        out, begin = tmp_path / "out", TrialRunner._begin

        def begin_and_go_on(runner, trial):
            said = begin(runner, trial)
            write_checkpoint(checkpoint, 2)
            return said

        monkeypatch.setattr(TrialRunner, "_begin", begin_and_go_on)
        assert search(out, options=["--start-from", checkpoint]) == 1
        last = capsys.readouterr().err.splitlines()[-1]
        assert f"{checkpoint}: has changed since the search began" in last
        assert starts(out) == {"rho-0": [1]}
        assert not list(out.glob("*/.*incomplete"))

    def test_gpus_of_each_run(self, tmp_path, capsys, monkeypatch):
        monkeypatch.setattr("fairseq_sam.experiments.processes.visible_gpus", lambda: list("0123"))
        command = ["search", "--out", str(tmp_path), "--max-runs", "2", "--gpus-per-run"]
        assert main([*command, "2", "--", *TRAIN[:-1]]) == 0
        assert main([*command, "1", "--", *TRAIN[:-1]]) == 1
        refusal = "was made with other --gpus-per-run (2, now 1): use another --out"
        assert refusal in capsys.readouterr().err
        assert main([*command, "2", "--", *TRAIN[:-1]]) == 0

    def test_a_search_of_an_earlier_version_goes_on(self, tmp_path, capsys, checkpoint):
        out, options = tmp_path / "out", ["--start-from", checkpoint, "--max-runs"]
        assert search(out, options=[*options, 2]) == 0
        for path in out.glob("**/settings.json"):
            known = json.loads(path.read_text())
            del known["content of --start-from"], known["--gpus-per-run"]
            path.write_text(json.dumps(known))
        capsys.readouterr()
        told = "did not note content of --start-from, --gpus-per-run; taken to be as now"
        assert search(out, options=[*options, 3]) == 0
        assert told in capsys.readouterr().err
        assert search(out, options=[*options, 4]) == 0
        assert told not in capsys.readouterr().err
        write_checkpoint(checkpoint, 2)
        assert search(out, options=[*options, 4]) == 1


class TestGpus:
    def test_each_run_sees_its_own(self, tmp_path, monkeypatch):
        monkeypatch.setattr("fairseq_sam.experiments.processes.visible_gpus", lambda: list("4567"))
        command = ["search", "--out", str(tmp_path), "--gpus-per-run", "2", "--", *TRAIN[:-1]]
        assert main(command) == 0
        seen = {line.split()[1] for f in tmp_path.glob("rho-*/starts") for line in f.open()}
        assert seen == {"4,5", "6,7"}

    def test_more_than_there_are(self, tmp_path, monkeypatch, capsys):
        monkeypatch.setattr("fairseq_sam.experiments.processes.visible_gpus", lambda: ["0"])
        command = ["search", "--out", str(tmp_path), "--gpus-per-run", "2", "--", *TRAIN[:-1]]
        with pytest.raises(SystemExit):
            main(command)
        assert "--gpus-per-run" in capsys.readouterr().err

    def test_slots(self):
        assert gpu_slots("012", 2, None) == ["0,1"]
        assert gpu_slots("01", 1, 1) == ["0"]
        assert gpu_slots("", 1, 3) == [None, None, None]


class TestRefuses:
    @pytest.mark.parametrize(
        ("options", "flags", "named"),
        [
            ([], ["--sam-rho", "0.1"], "--sam-rho"),
            ([], ["--save-dir", "x"], "--save-dir"),
            ([], ["--restore-file=x"], "--restore-file"),
            ([], ["--optimizer", "adam"], "--optimizer"),
            (["--seeds", "1,2"], ["--seed", "1"], "--seed"),
            (["--seeds", "1,1"], [], "--seeds"),
            (["--lowest", "2e-3"], [], "--lowest"),
            (["--lowest", "-1"], [], "--lowest"),
            (["--highest", "1e-9"], [], "--lowest: 1e-6 is above --highest 1e-9"),
            (["--margin", "nan"], [], "--margin"),
            (["--max-runs", "1"], [], "--max-runs"),
            (["--max-runs", "3", "--seeds", "1,2"], [], "--max-runs"),
            (["--parallel", "0"], [], "--parallel"),
            (["--start-from", "missing.pt"], [], "--start-from"),
            (["--json", "missing/found.json"], [], "--json"),
            (["--plot", "plot.txt"], [], "--plot"),
        ],
    )
    def test_misuse_before_anything_runs(self, tmp_path, capsys, options, flags, named):
        out = tmp_path / "out"
        with pytest.raises(SystemExit) as caught:
            search(out, *flags, options=options)
        assert caught.value.code == 2
        message = capsys.readouterr().err
        assert named in message
        assert message.count("\n") == 1
        assert not out.exists()

    def test_no_training_command(self, tmp_path, capsys):
        with pytest.raises(SystemExit) as caught:
            main(["search", "--out", str(tmp_path)])
        assert caught.value.code == 2
        assert capsys.readouterr().err.count("\n") == 1

    def test_another_command_in_the_same_directory(self, tmp_path, capsys):
        assert search(tmp_path) == 0
        capsys.readouterr()
        assert search(tmp_path, "--optimum", "1") == 1
        assert "other arguments of fairseq-train: use another --out" in capsys.readouterr().err
        assert search(tmp_path, options=["--stop-after", 9]) == 1
        assert "--stop-after" in capsys.readouterr().err

    def test_two_searches_at_once(self, tmp_path, capsys):
        with locked(tmp_path / ".lock"):
            assert search(tmp_path) == 1
        assert "is at work" in capsys.readouterr().err
        assert not starts(tmp_path)

    def test_a_metric_that_is_not_validated(self, tmp_path, capsys):
        assert search(tmp_path, "--best-checkpoint-metric", "bleu") == 1
        assert "no finite bleu on valid was logged" in capsys.readouterr().err

    def test_a_directory_that_cannot_be_made(self, tmp_path, capsys):
        (tmp_path / "file").write_text("")
        assert search(tmp_path / "file" / "out") == 1
        assert capsys.readouterr().err.count("\n") == 1

    def test_help_has_examples(self, capsys):
        with pytest.raises(SystemExit):
            main(["search", "--help"])
        assert "fairseq-sam search --out runs/search -- data-bin" in capsys.readouterr().out


class TestFairseq:
    FLAGS = "--optimizer sam --max-epoch 2 --save-interval 1 --no-epoch-checkpoints"

    @pytest.mark.slow
    def test_end_to_end(self, corpus, tmp_path, capsys):
        found = tmp_path / "found.json"
        flags = split(corpus, TRANSLATION, TRAINING, self.FLAGS)
        options = ["--json", found, "--lowest", "0.1", "--highest", "0.1", "--max-runs", 2]
        options += ["--out", tmp_path / "out", "--parallel", 2]
        assert main(["search", *map(str, options), "--", *flags]) == 0
        figures = json.loads(found.read_text())
        assert figures["rho"] == 0.1
        assert 0 < figures["value"] < 10
        assert figures["value"] != figures["baseline"]
        best = tmp_path / "out" / "rho-1e-01" / "checkpoint_best.pt"
        assert best.exists()
        assert "0.1" in capsys.readouterr().out
