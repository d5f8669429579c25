"""The stages of a table: in order, once, to the end, by others, and from where they stopped."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from fairseq_sam.experiments import ablation, conduct
from fairseq_sam.experiments.errors import ExperimentError, JobError
from fairseq_sam.experiments.experiment import Experiment
from fairseq_sam.experiments.jobs import Job, Runner
from fairseq_sam.experiments.options import parse
from fairseq_sam.experiments.stages import possible_jobs, training_job
from tests.experiments.made_table import Made, training
from tests.fairseq_runs import ROOT

TABLE = ROOT / "tests" / "experiments" / "made_table.py"
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT)}
DONE = [
    *("download", "prepare", "report", "score.baseline.seed1", "score.baseline.seed2"),
    *("score.sam.seed1", "score.sam.seed2", "train.baseline.seed1", "train.baseline.seed2"),
    *("train.sam.seed1", "train.sam.seed2"),
]


def start(out, *options, **more):
    """Starts the table in a process of its own."""
    command = [sys.executable, TABLE, "--out", out, "--gpus", 0, *options]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen(list(map(str, command)), env=ENVIRONMENT, **pipes, **more)


def run(out, *options, status=0):
    process = start(out, *options)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == status, output
    return output


def done(out):
    return sorted(p.name for p in (out / ".done").iterdir() if not p.name.endswith(".lock"))


def starts(out):
    """Returns the lines that each training wrote."""
    files = sorted(out.glob("runs/*/*/starts"))
    return {str(f.parent.relative_to(out / "runs")): f.read_text().splitlines() for f in files}


def both_ranks(out, *options):
    """Starts the table on two machines with a GPU each."""
    code = f"import sys; sys.argv[0] = '{TABLE}'; import runpy;"
    code += "from fairseq_sam.experiments import conduct; conduct.visible_gpus = lambda: ['0'];"
    code += f"runpy.run_path('{TABLE}', run_name='__main__')"
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    command = [sys.executable, "-c", code, "--out", out, "--gpus", 1, "--launcher", "", *options]
    return [
        subprocess.Popen(list(map(str, [*command, *rank])), env=ENVIRONMENT, **pipes)
        for rank in ([], ["--node-rank", 1])
    ]


def wait_until(condition):
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)


class TestStages:
    def test_all_of_them_and_none_again(self, tmp_path):
        output = run(tmp_path)
        assert done(tmp_path) == DONE
        assert (tmp_path / "report.md").read_text() == "1\n" * 4
        assert "run 2 of 4, " in output
        assert "begin" not in output
        first = starts(tmp_path)
        assert first == {
            f"{name}/seed{seed}": [f" {flags} 0"]
            for name, flags in (
                ("baseline", "--optimizer adam"),
                ("sam", "--optimizer sam --base-optimizer adam --sam-rho 1"),
            )
            for seed in (1, 2)
        }
        again = run(tmp_path)
        assert again.count("done before") == 10
        assert starts(tmp_path) == first

    def test_a_part(self, tmp_path):
        assert "stage 2 has not been done" in run(tmp_path, "--stage", 4, status=1)
        run(tmp_path, "--stop-stage", 2)
        assert done(tmp_path) == ["download", "prepare"]
        output = run(tmp_path, "--stage", 5, status=1)
        assert f"stage 4 has not been done in {tmp_path}: start with --stage 4" in output
        run(tmp_path, "--stage", 3)
        assert done(tmp_path) == DONE

    def test_methods_and_seeds_are_added_other_settings_are_not(self, tmp_path):
        run(tmp_path, "--seeds", 1, "--methods", "baseline")
        run(tmp_path, "--seeds", "1,2", "--methods", "baseline,sam@5%")
        assert {len(lines) for lines in starts(tmp_path).values()} == {1}
        assert starts(tmp_path)["sam@5%/seed2"][0].endswith("--sam-rho 1 --sam-rho 5% 0")
        output = run(tmp_path, "--epochs", 5, status=2)
        assert "was made with other --epochs (None, now 5): use another --out" in output

    def test_a_folder_of_the_users_is_not_deleted(self, tmp_path):
        (tmp_path / "prepared").mkdir()
        (tmp_path / "prepared" / "thesis").write_text("years of work")
        output = run(tmp_path, "--stop-stage", 2)
        assert f"{tmp_path / 'prepared'}: in the way; now prepared.damaged1" in output
        assert (tmp_path / "prepared.damaged1" / "thesis").read_text() == "years of work"
        assert (tmp_path / "prepared" / "text").exists()

    def test_data_in_the_folder_of_what_is_made_of_them_are_refused(self, tmp_path):
        data = tmp_path / "prepared" / "de-en"
        data.mkdir(parents=True)
        output = run(tmp_path, "--data", data, status=2)
        assert f"argument --data: {data} is not allowed" in output
        assert data.exists()

    def test_what_failed_and_the_command_that_repeats_it(self, tmp_path):
        output = run(tmp_path, "--methods", "bad,baseline", "--seeds", 1, status=1)
        assert "1 of 2 failed; a rerun tries them again:" in output
        (line,) = (line for line in output.splitlines() if "alone: " in line)
        assert f"{tmp_path}/runs/bad/seed1/train.log: it ended with status 1: begin" in line
        assert "train.baseline.seed1" in done(tmp_path)
        command = line.split("alone: ")[1]
        again = subprocess.run(
            ["bash", "-c", command], env=ENVIRONMENT, capture_output=True, text=True
        )
        assert again.returncode == 1
        assert len(starts(tmp_path)["bad/seed1"]) == 2
        assert len(starts(tmp_path)["baseline/seed1"]) == 1

    def test_what_failed_takes_along_only_what_goes_on_from_it(self, tmp_path):
        options = ["--methods", "baseline,bad,sam", "--seeds", 1]
        log = f"{tmp_path}/runs/bad/seed1/train.log"
        for number in (1, 2):
            output = run(tmp_path, *options, status=1)
            assert (tmp_path / "report.md").read_text() == "1\n" * 2
            assert f"table: {tmp_path}/report.md" in output
            errors = output[output.rindex("\nerror: ") :]
            assert errors.count(f"{log}: it ended with status 1: begin") == 1
            assert "finished in" not in output
            assert {name: len(lines) for name, lines in starts(tmp_path).items()} == {
                **{"baseline/seed1": 1, "bad/seed1": number, "sam/seed1": 1},
            }
            assert {"score.baseline.seed1", "score.sam.seed1"} < set(done(tmp_path))
        assert not {"train.bad.seed1", "score.bad.seed1"} & set(done(tmp_path))

    def test_what_failed_before_is_named_in_later_stages(self, tmp_path):
        options = ["--methods", "baseline,bad", "--seeds", 1]
        run(tmp_path, *options, "--stop-stage", 4, status=1)
        output = run(tmp_path, *options, "--stage", 5, status=1)
        last = output.splitlines()[-1]
        assert last.startswith("error: training bad with seed 1: not done, ")
        assert last.endswith("/runs/bad/seed1/train.log")
        (tmp_path / "report.md").unlink()
        output = run(tmp_path, *options, "--stage", 6, status=1)
        assert output.splitlines()[-1].endswith("/runs/bad/seed1: not scored, not in the table")
        assert (tmp_path / "report.md").read_text() == "1\n"
        assert len(starts(tmp_path)["bad/seed1"]) == 1
        run(tmp_path, "--methods", "baseline", "--seeds", 1, "--stage", 6)

    def test_where_all_fail_nothing_follows(self, tmp_path):
        output = run(tmp_path, "--methods", "bad", status=1)
        assert "2 of 2 failed; a rerun tries them again:" in output
        assert "scoring" not in output
        assert done(tmp_path) == ["download", "prepare"]

    def test_a_seed_without_its_shared_epochs_is_left_out(self, tmp_path):
        options = parse(Made(), "made", ["--out", str(tmp_path), "--gpus", "0", "--stage", "4"])
        options.start_epoch = 2
        x = Experiment(Made(), options, print)
        with pytest.raises(ExperimentError, match="stage 3 has not been done"):
            possible_jobs(x, 4, [])
        x.record("train.shared.seed1").parent.mkdir()
        x.record("train.shared.seed1").touch()
        failures = []
        ((*jobs,),) = possible_jobs(x, 4, failures)
        assert [job.name for job in jobs] == ["train.baseline.seed1", "train.sam.seed1"]
        log = f"{tmp_path}/shared/seed2/train.log"
        assert failures == [f"training the shared epochs with seed 2: not done, {log}"]

    def test_a_job_that_is_not_there(self, tmp_path):
        output = run(tmp_path, "--job", "train.asam.seed1", status=2)
        assert "--job: train.asam.seed1 is not allowed: choose from download, prepare" in output


class TestInterruptions:
    @pytest.mark.parametrize(
        "numbers", [[signal.SIGINT], [signal.SIGTERM], [signal.SIGHUP, signal.SIGHUP]]
    )
    def test_stopped(self, tmp_path, numbers):
        code = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler);"
        code += "signal.signal(signal.SIGHUP, signal.SIG_DFL);"  # whatever started the tests
        code += f"import runpy, sys; sys.argv[0] = '{TABLE}'; sys.path.insert(0, '{ROOT}');"
        code += f"runpy.run_path('{TABLE}', run_name='__main__')"
        options = ["--out", tmp_path, "--gpus", 0, "--pause", 30, "--parallel", 2]
        process = subprocess.Popen(
            [sys.executable, "-c", code, *map(str, options)],
            env=ENVIRONMENT,
            stderr=subprocess.PIPE,
            text=True,
        )
        wait_until(lambda: len(starts(tmp_path)) == 2)
        for number in numbers:  # kernel and shell both tell of a lost terminal
            process.send_signal(number)
            time.sleep(0.2)
        _, messages = process.communicate(timeout=30)
        assert process.returncode == 130
        assert messages.splitlines()[-1] == "stopped; the same command goes on"
        assert done(tmp_path) == ["download", "prepare"]
        run(tmp_path)
        assert done(tmp_path) == DONE

    def test_nobody_reads_what_it_tells(self, tmp_path):
        """As behind ``2>&1 | head``."""
        process = start(tmp_path)
        process.stdout.readline()
        process.stdout.close()
        process.wait(120)
        assert done(tmp_path) == DONE
        assert (tmp_path / "report.md").read_text() == "1\n" * 4

    @pytest.mark.parametrize("moment", [0.2, 0.6, 1.0, 1.4, 1.8])
    def test_killed(self, tmp_path, moment):
        process = start(tmp_path, "--pause", "0.1", "--parallel", 2)
        time.sleep(moment)
        process.kill()
        process.communicate()
        time.sleep(0.5)  # what it left behind holds the lock
        run(tmp_path)
        assert done(tmp_path) == DONE
        assert not list(tmp_path.glob("**/*.incomplete"))

    def test_not_while_what_a_killed_one_left_is_at_work(self, tmp_path):
        process = start(tmp_path, "--pause", "60", "--seeds", 1, "--methods", "baseline")
        wait_until(lambda: starts(tmp_path))
        process.kill()
        process.wait()
        listed = subprocess.run(["ps", "-eo", "pid,args"], capture_output=True, text=True).stdout
        left = [line.split()[0] for line in listed.splitlines() if str(tmp_path) in line]
        try:
            assert "another command is at work there" in run(tmp_path, status=1)
        finally:
            for pid in left:
                os.kill(int(pid), signal.SIGKILL)


class TestClusters:
    def test_a_launcher(self, tmp_path):
        launcher = tmp_path / "fake srun"
        launcher.write_text('#!/bin/sh\necho "$@" >> "$CALLS"\nshift 2\nFAKE=srun exec "$@"\n')
        launcher.chmod(0o755)
        out = tmp_path / "out"
        os.environ["CALLS"] = ENVIRONMENT["CALLS"] = str(tmp_path / "calls")
        run(out, "--launcher", f"'{launcher}' --gpus 1", "--parallel", 2)
        assert done(out) == DONE
        assert all(line.startswith("srun --optimizer") for (line,) in starts(out).values())
        calls = (tmp_path / "calls").read_text().splitlines()
        assert [call.split()[:2] for call in calls if call.startswith("--gpus")] == [
            ["--gpus", "1"]
        ] * 8

    @pytest.mark.parametrize("extra", ["", "--lr 1\n  --clip-norm 2"])
    def test_the_commands_of_an_array_job(self, tmp_path, extra):
        run(tmp_path, "--stop-stage", 2)
        output = run(tmp_path, "--launcher", "array", "--stage", 3, "--extra", extra)
        (submit,) = (line for line in output.splitlines() if line.startswith("sbatch "))
        assert "--array=1-4 " in submit
        fake = tmp_path / "bin"
        fake.mkdir()
        (fake / "sbatch").write_text(
            "#!/bin/sh\nfor SLURM_ARRAY_TASK_ID in 1 2 3 4; do\n"
            '    export SLURM_ARRAY_TASK_ID\n    sh -c "$3" &\ndone\nwait\n'
        )
        (fake / "sbatch").chmod(0o755)
        environment = {**ENVIRONMENT, "PATH": f"{fake}:{os.environ['PATH']}"}
        subprocess.run(["bash", "-c", submit], env=environment, check=True)
        assert {len(lines) for lines in starts(tmp_path).values()} == {1}
        assert len(starts(tmp_path)) == 4
        run(tmp_path, "--launcher", "array")
        assert done(tmp_path) == DONE

    def test_one_job_is_done_by_one(self, tmp_path):
        run(tmp_path, "--stop-stage", 2)
        one = start(tmp_path, "--job", "train.sam.seed1", "--pause", 3)
        wait_until(lambda: starts(tmp_path))
        assert "is at work there" in run(tmp_path, "--job", "train.sam.seed1", status=1)
        run(tmp_path, "--job", "train.sam.seed2")
        assert one.wait(60) == 0
        one.communicate()
        assert {len(lines) for lines in starts(tmp_path).values()} == {1}

    def test_other_machines_take_part(self, tmp_path):
        ranks = both_ranks(tmp_path, "--nodes", 2, "--seeds", 1, "--pause", 4)
        outputs = [rank.communicate(timeout=120)[0] for rank in ranks]
        assert [rank.returncode for rank in ranks] == [0, 0], outputs
        for lines in starts(tmp_path).values():
            assert sorted(line[-1] for line in lines) == ["0", "1"]
        assert len(list(tmp_path.glob("runs/*/*/train.node1.log"))) == 2
        assert not list(tmp_path.glob("**/launched"))


class TestMachines:
    """What rank 0 leaves for the others."""

    @pytest.fixture
    def job(self, tmp_path):
        (tmp_path / "run").mkdir()
        return Job("a", "a", list, tmp_path / "run" / "train.log", tmp_path / "record")

    def test_a_file_of_a_killed_rank_0_is_no_signal(self, job):
        (job.log.parent / "launched").touch()
        threading.Timer(3, job.record.touch).start()
        assert conduct._launched([job], lambda: False) is None

    def test_they_end_with_rank_0_whatever_it_did_not_do(self, job):
        begin = time.monotonic()
        assert conduct._launched([job], lambda: time.monotonic() > begin + 2) is None

    def test_a_file_whose_time_goes_on_is(self, job):
        signal = job.log.parent / "launched"
        over = threading.Event()

        def beat():
            while not over.wait(0.2):
                signal.touch()

        threading.Thread(target=beat).start()
        failed = Job("b", "b", list, job.log.parent / "b" / "log", job.record.with_name("other"))
        try:
            assert conduct._launched([failed, job], lambda: False) is job
        finally:
            over.set()

    def test_a_training_that_fails_at_once_does_not_hold_them_up(self, tmp_path):
        options = ["--nodes", 2, "--seeds", 1, "--pause", 4, "--methods", "bad,sam"]
        ranks = both_ranks(tmp_path, *options)
        outputs = [rank.communicate(timeout=120)[0] for rank in ranks]
        assert ranks[0].returncode == 1, outputs  # of the one that failed
        (lines,) = [lines for name, lines in starts(tmp_path).items() if "sam" in name]
        assert sorted(line[-1] for line in lines) == ["0", "1"], outputs

    def test_a_training_that_fails_leaves_none(self, tmp_path, monkeypatch):
        monkeypatch.setattr(Experiment, "training", training)
        options = parse(Made(), "made", ["--out", str(tmp_path), "--nodes", "2", "--gpus", "1"])
        x = Experiment(Made(), options, print)
        job = training_job(x, "bad", 1)
        runner = Runner([None], print, keep_going=True)
        with pytest.raises(JobError):
            runner.run([job, training_job(x, "bad", 2)])
        assert not list(tmp_path.glob("**/launched"))


@pytest.mark.parametrize(
    ("statuses", "expected"), [([0, 0], 0), ([1, 0], 1), ([0, 1], 1), ([2], 2), ([130], 130)]
)
def test_the_second_of_two_tables_after_failures_in_the_first(monkeypatch, statuses, expected):
    left = [*statuses]
    monkeypatch.setattr(conduct, "main", lambda *_: left.pop(0))
    assert ablation.main("scripts/ablation.sh", ["--small"]) == expected
    assert left == []


@pytest.mark.parametrize("deleted", ["nothing", "half", "all"])
def test_what_was_scored_and_deleted_is_not_scored_again(tmp_path, deleted):
    """Killed after the scores and before the record."""
    run(tmp_path, "--stop-stage", 4)
    for folder in tmp_path.glob("runs/*/*"):
        (folder / "checkpoints" / "a").mkdir(parents=True)
    run(tmp_path, "--stop-stage", 5, "--free-disk")
    assert not list(tmp_path.glob("runs/*/*/checkpoints"))
    (tmp_path / ".done" / "score.sam.seed1").unlink()
    folder = tmp_path / "runs" / "sam" / "seed1"
    (folder / "starts").unlink()  # what scoring reads
    if deleted != "all":
        (folder / "checkpoints").mkdir()
    run(tmp_path, "--free-disk")
    assert not list(tmp_path.glob("runs/*/*/checkpoints"))
    assert done(tmp_path) == DONE


def test_the_script_may_be_run_again(tmp_path):
    """Of the evidence, with a program in place of python that trains nothing."""
    (tmp_path / "bin").mkdir()
    python = tmp_path / "bin" / "python"
    python.write_text(
        "#!/bin/bash\necho trained\n"
        'while [ "$1" != --save-dir ]; do shift; done\n'
        'mkdir -p "$2"; touch "$2/checkpoint_last.pt" "$2/checkpoint_best.pt"\n'
    )
    python.chmod(0o755)
    arguments = ["--task", "mr", "--data", tmp_path, "--seeds", 1, "--methods", "baseline,sam"]
    arguments += ["--stage", 3, "--stop-stage", 4, "--dry-run", "--out", tmp_path / "out"]
    command = [sys.executable, "-m", "fairseq_sam.experiments", "evidence", *map(str, arguments)]
    script = subprocess.run(command, capture_output=True, text=True, check=True, env=ENVIRONMENT)
    environment = {**ENVIRONMENT, "PATH": f"{tmp_path}/bin:{os.environ['PATH']}"}
    for number in (1, 2, 3):
        subprocess.run(["bash"], input=script.stdout, text=True, check=True, env=environment)
        log = (tmp_path / "out" / "runs" / "sam" / "seed1" / "train.log").read_text()
        assert log == "trained\n" * (1 + number)  # the shared epochs', and its own


@pytest.mark.parametrize("extra", ["", "--lr 1\n  --clip-norm 2"])
def test_the_script_of_a_dry_run_does_the_same(tmp_path, extra):
    script = run(tmp_path / "by_hand", "--dry-run", "--extra", extra)
    assert not (tmp_path / "by_hand").exists()
    subprocess.run(["bash"], input=script, text=True, check=True, env=ENVIRONMENT)
    run(tmp_path / "out")
    for name in ("report.md", "runs/sam/seed2/starts", "runs/sam/seed2/train.log"):
        assert (tmp_path / "by_hand" / name).read_text() == (tmp_path / "out" / name).read_text()
    assert Path(tmp_path, "by_hand", "prepared", "text").exists()
