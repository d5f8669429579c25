"""The manners of the command fairseq-sam, whatever the subcommand."""

import subprocess
import sys
from pathlib import Path

import pytest

from fairseq_sam import commands
from fairseq_sam.commands import build_parser, main
from tests.commands.help_examples import examples

SUBCOMMANDS = (
    *("average", "convert", "gradients", "landscape", "report", "risk", "robustness", "search"),
    *("shift", "spectrum", "sts", "user-dir"),
)


@pytest.mark.parametrize("name", SUBCOMMANDS)
def test_help_has_examples_that_parse(name, capsys):
    found = examples(name, capsys)
    assert found or name == "user-dir"  # part of other commands
    for example in found:
        build_parser().parse_args(example)


def test_help_names_every_subcommand(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    text = capsys.readouterr().out
    assert all(name in text for name in SUBCOMMANDS)


@pytest.mark.parametrize(
    "arguments", [[], ["nonsense"], ["user-dir", "extra"], ["report"], ["report", "--nonsense"]]
)
def test_misuse_is_one_line_and_status_2(arguments, capsys):
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1
    assert "error:" in captured.err
    assert not captured.out


def test_user_dir(capsys):
    assert main(["user-dir"]) == 0
    path = Path(capsys.readouterr().out.strip())
    assert path.is_absolute()
    assert path == Path(commands.__file__).resolve().parents[1]


def test_start_up_loads_nothing_heavy():
    program = (
        "import sys; from fairseq_sam.commands import main; main(['user-dir']); "
        "sys.exit(any(m in sys.modules for m in ('torch', 'fairseq', 'numpy', 'matplotlib')))"
    )
    assert subprocess.run([sys.executable, "-c", program], cwd=Path.cwd()).returncode == 0


def test_runs_as_a_module():
    command = [sys.executable, "-m", "fairseq_sam.commands", "user-dir"]
    result = subprocess.run(command, capture_output=True, text=True)
    assert (result.returncode, result.stderr) == (0, "")
