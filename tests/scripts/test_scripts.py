"""The command line of scripts/test.sh, and what the shell library asks of Python."""

import doctest
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = ROOT / "scripts"


def run(*arguments, **options):
    return subprocess.run(
        ["bash", *map(str, arguments)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        **options,
    )


def library(code, *arguments, **options):
    """Run shell code with scripts/lib.sh loaded."""
    return run("-c", f'source "{SCRIPTS}/lib.sh"; {code}', "script", *arguments, **options)


@pytest.fixture(scope="module")
def environment():
    """The functions of scripts/environment.py."""
    return runpy.run_path(str(SCRIPTS / "environment.py"))


@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_help(flag):
    result = run(SCRIPTS / "test.sh", flag)
    assert result.returncode == 0
    assert result.stderr == ""
    for option in ["--only", "--slow", "--no-install", "--venv", "--python", "TORCH_SPEC"]:
        assert option in result.stdout


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--bogus"], "unknown argument: --bogus"),
        (["tests/test_scripts.py"], "unknown argument: tests/test_scripts.py"),
        (["--only", "lint,typos"], "unknown check typos"),
        (["--only="], "--only needs"),
        (["--only"], "--only needs a value"),
        (["--workers", "many"], "--workers many"),
        (["--venv"], "--venv needs a value"),
        (["--python"], "--python needs a value"),
    ],
)
def test_misuse_ends_with_2_and_says_why(arguments, complaint):
    result = run(SCRIPTS / "test.sh", *arguments)
    assert result.returncode == 2
    assert complaint in result.stderr
    assert "--help" in result.stderr


def test_no_install_without_an_environment(tmp_path):
    result = run(SCRIPTS / "test.sh", "--no-install", "--venv", tmp_path / "absent")
    assert result.returncode == 1
    assert "there is no environment" in result.stderr
    assert not (tmp_path / "absent").exists()


def test_interpreter_that_does_not_run_is_refused(tmp_path):
    shim = tmp_path / "python3.8"
    shim.write_text("#!/bin/sh\nexit 127\n", encoding="utf-8")
    shim.chmod(0o755)
    result = run(SCRIPTS / "test.sh", "--python", shim)
    assert result.returncode == 1
    assert "not a Python 3.8 to 3.13 that runs" in result.stderr


def test_finder_passes_over_shims_that_do_not_run(tmp_path):
    for name, body in [("python3.11", "exit 127"), ("python3", f'exec "{sys.executable}" "$@"')]:
        shim = tmp_path / name
        shim.write_text(f"#!/bin/sh\n{body}\n", encoding="utf-8")
        shim.chmod(0o755)
    hidden = " ".join(f"python3.{minor}" for minor in range(8, 14))
    code = f"""
        command() {{ case " {hidden} " in *" $2 "*) [[ "$2" == python3.11 ]] || return 1 ;; esac
                     builtin command "$@"; }}
        PATH="{tmp_path}:$PATH"
        find_python"""
    result = library(code)
    assert result.stdout.strip() == str(tmp_path / "python3"), result.stderr


def test_timed_shows_the_end_of_a_failing_command(tmp_path):
    result = library('timed "a step" "$1" bash -c "seq 100; exit 3"', tmp_path / "log")
    assert result.returncode == 3
    assert "| 100" in result.stderr
    assert "| 50\n" not in result.stderr
    assert str(tmp_path / "log") in result.stderr


def test_active_environment_is_used(tmp_path):
    code = 'choose_environment; printf "%s" "$VENV"'
    prefix = Path(sys.prefix)
    result = library(code, env={"PATH": "/usr/bin:/bin", "VIRTUAL_ENV": str(prefix)})
    assert result.stdout == str(prefix), result.stderr
    result = library(code, env={"PATH": "/usr/bin:/bin", "VIRTUAL_ENV": str(tmp_path)})
    assert result.returncode == 1
    assert "VIRTUAL_ENV" in result.stderr


def test_doctests_of_environment_helper(environment):
    functions = {name: value for name, value in environment.items() if callable(value)}
    finder = doctest.DocTestFinder()
    runner = doctest.DocTestRunner()
    for name in ["normalise", "required_name", "torchaudio_for"]:
        for test in finder.find(functions[name], name, globs=dict(environment)):
            runner.run(test)
    assert runner.tries >= 3
    assert runner.failures == 0


class TestApplicableConstraints:
    lines = ("# comment", "", "torch==2.13.0", "torchaudio==2.11.0", "numpy==2.4.6", "ruff==0.17.5")

    def chosen(self, environment, installed, owned=False, overridden=False):
        apply = environment["applicable_constraints"]
        return apply(self.lines, installed, owned, overridden)

    def test_fresh_environment_follows_the_file(self, environment):
        assert self.chosen(environment, {}, owned=True) == list(self.lines[2:])

    def test_brought_environment_keeps_what_it_has(self, environment):
        installed = {"torch": "2.5.1+cu121", "numpy": "1.26.4", "ruff": "0.9.0"}
        assert self.chosen(environment, installed) == [
            "torch==2.5.1+cu121",
            "torchaudio==2.5.1",
            "numpy==1.26.4",
        ]

    def test_installed_torch_stays_in_an_environment_of_ours(self, environment):
        installed = {"torch": "2.8.0", "torchaudio": "2.8.0", "ruff": "0.9.0"}
        chosen = self.chosen(environment, installed, owned=True)
        assert chosen == ["numpy==2.4.6", "ruff==0.17.5", "torch==2.8.0"]

    def test_torch_that_the_user_chose(self, environment):
        chosen = self.chosen(environment, {}, owned=True, overridden=True)
        assert chosen == ["numpy==2.4.6", "ruff==0.17.5"]


def test_half_installed_distributions_are_forgotten(environment, tmp_path, monkeypatch):
    whole, half = tmp_path / "whole-1.0.dist-info", tmp_path / "half-1.0.dist-info"
    for folder in (whole, half):
        folder.mkdir()
        name = folder.name.split("-")[0]
        (folder / "METADATA").write_text(f"Name: {name}\nVersion: 1.0\n", encoding="utf-8")
    (whole / "RECORD").write_text("", encoding="utf-8")
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    assert environment["forget_half_installed"]() == [half.name]
    assert whole.exists()
    assert not half.exists()
