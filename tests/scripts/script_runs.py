"""Running the experiment scripts from tests."""

import contextlib
import importlib.util
import os
import shutil
import signal
import subprocess
import sys
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
