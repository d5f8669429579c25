"""Jobs: what is done once, several at once, how they end, and what is left when they are killed."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from fairseq_sam.experiments import jobs
from fairseq_sam.experiments.command_lines import Command, commands
from fairseq_sam.experiments.directory import check_settings, locked
from fairseq_sam.experiments.errors import BusyError, JobError, OtherSettingsError
from fairseq_sam.experiments.jobs import Job, Runner
from fairseq_sam.experiments.processes import duration, termination_interrupts


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    monkeypatch.setattr(jobs, "POLL_SECONDS", 0.02)


def job(folder, name, *texts):
    """Returns a job that does commands."""
    steps = [step for text in texts for step in commands(text, out=folder)]
    return Job(name, name, lambda: steps, folder / f"{name}.log", folder / "done" / name)


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "done").mkdir()
    return tmp_path


def shell(text):
    return Command(("sh", "-c", text))


def is_at_work(group):
    """Tells whether a group has processes; those that were just killed have a moment."""
    end = time.monotonic() + 5
    while time.monotonic() < end:
        listed = subprocess.run(["ps", "-eo", "pgid,stat"], capture_output=True, text=True).stdout
        found = [line.split() for line in listed.splitlines()]
        if not [stat for pgid, stat in found if pgid == group and not stat.startswith("Z")]:
            return False
        time.sleep(0.1)
    return True


class TestRunner:
    def test_files_are_whole_or_not_there(self, folder):
        runner = Runner([None], print)
        runner.run([job(folder, "a", "echo one > {out}/one", "cat < {out}/one > {out}/two")])
        assert (folder / "two").read_text() == "one\n"
        broken = job(folder, "b")
        broken.steps = lambda: [
            Command(("sh", "-c", "echo half; exit 3"), stdout=str(folder / "half"))
        ]
        with pytest.raises(JobError, match="status 3"):
            runner.run([broken])
        assert not (folder / "half").exists()
        assert not (folder / "done" / "b").exists()

    def test_records_tell_what_is_done(self, folder):
        records = Runner([None], print).run([job(folder, "a", "true")])
        assert json.loads((folder / "done" / "a").read_text()) == records["a"]
        assert records["a"]["status"] == "finished"

    def test_steps_are_made_one_after_the_other(self, folder):
        def steps():
            yield shell(f"echo 5 > {folder}/number")
            yield shell(f"echo $((1 + {(folder / 'number').read_text()})) > {folder}/sum")

        made = job(folder, "a")
        made.steps = steps
        Runner([None], print).run([made])
        assert (folder / "sum").read_text() == "6\n"

    def test_as_many_at_once_as_there_are_slots(self, folder):
        said = []
        works = [job(folder, str(i)) for i in range(4)]
        for one in works:
            text = f'echo "$CUDA_VISIBLE_DEVICES" $OMP_NUM_THREADS > {folder}/{one.name}; sleep 0.3'
            one.steps = lambda text=text: [shell(text)]
        begin = time.monotonic()
        Runner(["0", "1"], said.append).run(works)
        assert 0.6 <= time.monotonic() - begin < 1.2
        assert {(folder / str(i)).read_text().split()[0] for i in range(4)} == {"0", "1"}
        assert any("run 2 of 4, " in line and "left" in line for line in said)

    def test_the_others_go_on_where_one_fails(self, folder):
        runner = Runner([None], print, keep_going=True, again=lambda job: f"again {job.name}")
        bad = job(folder, "bad")
        bad.steps = lambda: [shell("echo the reason; exit 1")]
        with pytest.raises(JobError) as caught:
            runner.run([bad, job(folder, "good", "true")])
        text = str(caught.value)
        assert text.startswith("1 of 2 failed; a rerun tries them again:")
        assert "bad.log: it ended with status 1: the reason; alone: again bad" in text
        assert (folder / "done" / "good").exists()

    def test_a_full_disk_is_a_failure(self, folder):
        if not os.path.exists("/dev/full"):
            pytest.skip("there is no /dev/full")
        made = job(folder, "a", "true")
        made.log = Path("/dev/full")
        made.steps = lambda: [shell("echo text")]
        with pytest.raises(JobError):
            Runner([None], print).run([made])
        assert not (folder / "done" / "a").exists()

    def test_no_process_is_left_after_an_interruption(self, folder):
        made = job(folder, "a")
        made.steps = lambda: [shell(f"echo $$ > {folder}/pid; sleep 60 & sleep 60")]

        def interrupt():
            while not (folder / "pid").exists():
                time.sleep(0.02)
            os.kill(os.getpid(), signal.SIGINT)

        previous = signal.signal(signal.SIGINT, signal.default_int_handler)
        threading.Thread(target=interrupt).start()
        try:
            with pytest.raises(KeyboardInterrupt):
                Runner([None], print).run([made])
        finally:
            signal.signal(signal.SIGINT, previous)
        assert not is_at_work((folder / "pid").read_text().strip())
        assert not (folder / "done" / "a").exists()

    @pytest.mark.parametrize("error", [BrokenPipeError(32, "Broken pipe"), ValueError("closed")])
    def test_no_process_is_left_that_cannot_be_watched(self, folder, error):
        """Its log was moved away, or nobody reads any more what is told of it."""
        pid = folder / "pid"

        def watch(_):
            if pid.exists() and pid.read_text():
                raise error
            return ""

        made = job(folder, "a")
        made.watch = watch
        script = f"echo $$ > {pid}; sleep 60 & sleep 60"
        made.steps = lambda: [Command(("sh", "-c", script), log=str(made.log))]
        try:
            with pytest.raises((JobError, ValueError), match=r"Broken pipe|closed"):
                Runner([None], print).run([made])
            assert not is_at_work(pid.read_text().strip())
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(int(pid.read_text()), signal.SIGKILL)
        assert not (folder / "done" / "a").exists()

    def test_durations_in_words(self):
        assert [duration(s) for s in (0.4, 89, 90, 3599, 4200)] == [
            *("0 s", "89 s", "2 min", "1 h 0 min", "1 h 10 min"),
        ]


def test_a_lost_terminal_is_nothing_to_nohup():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with termination_interrupts():
            os.kill(os.getpid(), signal.SIGHUP)
    finally:
        assert signal.signal(signal.SIGHUP, before) == signal.SIG_IGN


class TestDirectory:
    def test_one_at_a_time(self, tmp_path):
        lock = tmp_path / ".lock"
        with locked(lock), pytest.raises(BusyError, match="at work there"), locked(lock):
            pass
        share = locked(lock, shared=True)
        with share, locked(lock, shared=True), pytest.raises(BusyError), locked(lock):
            pass

    def test_a_process_that_outlives_the_runner_holds_the_lock(self, tmp_path):
        code = (
            "import os, subprocess, sys; from pathlib import Path;"
            "from fairseq_sam.experiments.directory import locked;"
            "held = locked(Path(sys.argv[1])); lock = held.__enter__();"
            "left = subprocess.Popen(['sleep', '60'], pass_fds=[lock], stdout=subprocess.DEVNULL);"
            "print(left.pid, flush=True);"
            "os.kill(os.getpid(), 9)"
        )
        lock = tmp_path / ".lock"
        done = subprocess.run(
            [sys.executable, "-c", code, str(lock)], stdout=subprocess.PIPE, text=True
        )
        left = int(done.stdout)
        with pytest.raises(BusyError), locked(lock):
            pass
        os.kill(left, signal.SIGKILL)
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            try:
                with locked(lock):
                    return
            except BusyError:
                time.sleep(0.05)
        pytest.fail("the lock is still held")

    def test_other_settings_are_named(self, tmp_path):
        check_settings(tmp_path, {"--epochs": 3, "--data": None}, print)
        check_settings(tmp_path, {"--epochs": 3, "--new": 1}, print)
        with pytest.raises(OtherSettingsError, match=r"other --epochs \(3, now 5\): use another"):
            check_settings(tmp_path, {"--epochs": 5, "--data": None}, print)
