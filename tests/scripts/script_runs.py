"""Running the experiment scripts from tests."""

import importlib.util
import shlex
import shutil
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


def dry_run(name, *arguments):
    """Returns the commands of a dry run as lists of words."""
    result = run(name, "--dry-run", *arguments, stderr=subprocess.PIPE)
    assert result.returncode == 0, result.stderr
    return [shlex.split(line, comments=True) for line in result.stdout.splitlines() if line]


def trainings(commands, save_dir):
    """Returns the flags of the fairseq-train that saves into a directory ending so."""
    found = [c for c in commands if "fairseq_cli.train" in c and flags(c)["--save-dir"] == save_dir]
    assert len(found) == 1
    return flags(found[0])


def flags(words):
    """Reads --name value pairs; a flag without a value has True."""
    found = {}
    for word, following in zip(words, [*words[1:], "--"]):
        if word.startswith("--"):
            found[word] = True if following.startswith("--") else following
    return found
