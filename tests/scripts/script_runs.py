"""Running the experiment scripts from tests."""

import contextlib
import importlib.util
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
BASH = shutil.which("bash")

needs_text_packages = pytest.mark.skipif(
    any(
        importlib.util.find_spec(name) is None
        for name in ("sacremoses", "subword_nmt", "sacrebleu", "rouge_score", "sklearn")
    ),
    reason="the packages of the extra 'reproduce' are not there",
)


def command(name, *arguments):
    install = ["--no-install", "--python", sys.executable]
    return [BASH, str(ROOT / "scripts" / f"{name}.sh"), *install, *map(str, arguments)]


def run(name, *arguments, **options):
    options.setdefault("stdout", subprocess.PIPE)
    options.setdefault("stderr", subprocess.STDOUT)
    return subprocess.run(command(name, *arguments), stdin=subprocess.DEVNULL, text=True, **options)


def descendants(pid):
    """Returns the processes that a process has started, and those have."""
    listed = subprocess.run(["ps", "-eo", "pid,ppid"], capture_output=True, text=True).stdout
    children = {}
    for child, parent in (line.split() for line in listed.splitlines()[1:]):
        children.setdefault(int(parent), []).append(int(child))
    found = [pid]
    for parent in found:
        found += children.get(parent, [])
    return found[1:]


def kill_all(process):
    """Kills a script and all it started, as a machine that goes down does."""
    process.send_signal(signal.SIGSTOP)
    for pid in [process.pid, *descendants(process.pid)]:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    process.wait()


def compare_after_kills(words, folder, kills, result_of):
    """Kills a script at random moments until it is done, and compares with a run left alone.

    Args:
        words: from the folder to write into to the whole command line.
        folder: where those folders go; one finished before the last kill makes way for another.
        kills: how many in all.
        result_of: from a finished folder to what must be the same.
    """
    rng = random.Random(int(os.environ.get("FAIRSEQ_SAM_TEST_SEED", "1")))
    begin = time.monotonic()
    expected = _finished(words, folder / "alone", result_of)
    assert expected
    longest = 0.7 * (time.monotonic() - begin)
    number, left = 0, kills
    while left:
        out = folder / f"killed{number}"
        process = subprocess.Popen(
            words(out),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            process.wait(timeout=rng.uniform(0, longest))
        except subprocess.TimeoutExpired:
            kill_all(process)
            left -= 1
        else:
            assert _finished(words, out, result_of) == expected
            shutil.rmtree(out)
            number += 1
    assert _finished(words, folder / f"killed{number}", result_of) == expected


def _finished(words, out, result_of):
    """Lets the script come to its end."""
    done = subprocess.run(
        words(out),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert done.returncode == 0, (done.returncode, done.stdout)
    return result_of(out)


def predictions_of(out):
    """Returns scores and predictions of every run of an experiment."""
    found = sorted((*out.glob("runs/**/scores.json"), *out.glob("runs/**/hypothesis")))
    return {str(path.relative_to(out)): path.read_text(encoding="utf-8") for path in found}
