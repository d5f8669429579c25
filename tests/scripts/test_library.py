"""The shell library: installations into one environment wait for each other."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"
HOLD = f'source "{SCRIPTS}/lib.sh"; PYTHON="{sys.executable}"; exec 9>>"$1"; lock_descriptor 9'

pytestmark = pytest.mark.skipif(shutil.which("bash") is None, reason="no bash")


@pytest.fixture
def without_flock(tmp_path):
    """A PATH with all that the library needs but the command flock."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in ("bash", "cat", "dirname", "env"):
        (folder / name).symlink_to(shutil.which(name))
    return {**os.environ, "PATH": str(folder)}


def test_one_installation_at_a_time_without_flock(tmp_path, without_flock):
    lock = [shutil.which("bash"), "-c", f"{HOLD} && echo ok && read -r _", "x", str(tmp_path / "l")]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    holder = subprocess.Popen(lock, env=without_flock, **pipes)
    try:
        assert holder.stdout.readline() == "ok\n"
        second = subprocess.run(
            lock, env=without_flock, input="", stdout=subprocess.PIPE, text=True
        )
        assert (second.returncode, second.stdout) == (1, "")
    finally:
        holder.communicate("\n", timeout=30)
    third = subprocess.run(lock, env=without_flock, input="\n", stdout=subprocess.PIPE, text=True)
    assert (third.returncode, third.stdout) == (0, "ok\n")
