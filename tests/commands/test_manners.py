"""The manners of the command fairseq-sam, whatever the subcommand."""

import argparse
import os
import re
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

from fairseq_sam import __version__, commands
from fairseq_sam.commands import build_parser, main, progress
from fairseq_sam.commands.quiet import no_foreign_warnings
from fairseq_sam.flags import number_types
from tests.commands.help_examples import examples
from tests.fairseq_runs import ROOT

SUBCOMMANDS = (
    *("user-dir", "methods", "search", "average", "report", "risk", "robustness", "landscape"),
    *("spectrum", "gradients", "shift", "convert", "sts"),
)


@pytest.mark.parametrize("name", SUBCOMMANDS)
def test_help_has_examples_that_parse(name, capsys):
    found = examples(name, capsys)
    assert found
    for example in found:
        build_parser().parse_args(example)


def test_help_names_every_subcommand(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    listed = re.findall(r"^    (\S+)(  +\S.*)?$", capsys.readouterr().out, re.MULTILINE)
    assert [name for name, _ in listed] == list(SUBCOMMANDS)
    assert all(text for _, text in listed), "a description is on a line of its own"


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_help_on_a_terminal_of_any_encoding(encoding):
    program = (
        "from fairseq_sam.commands import SUBCOMMANDS, build_parser, main\n"
        "for arguments in [['--help'], *([name, '--help'] for name in NAMES)]:\n"
        "    try: main(arguments)\n"
        "    except SystemExit as end: assert end.code == 0, arguments"
    ).replace("NAMES", repr(SUBCOMMANDS))
    result = subprocess.run(
        [sys.executable, "-c", program],
        cwd=Path.cwd(),
        env={**os.environ, "PYTHONIOENCODING": encoding, "LC_ALL": "C"},
        capture_output=True,
    )
    assert (result.returncode, result.stderr) == (0, b"")
    text = result.stdout.decode(encoding)
    assert "fairseq-sam search --out DIR [options] -- DATA --optimizer NAME ..." in text
    assert "mean +- std" in text or encoding == "latin-1"


def test_paths_of_any_bytes_are_printed(tmp_path):
    path = os.fsencode(tmp_path / "caf") + b"\xe9"
    command = [sys.executable, "-m", "fairseq_sam.commands", "report", path]
    result = subprocess.run(command, env={**os.environ, "LC_ALL": "C.UTF-8"}, capture_output=True)
    assert result.returncode == 1
    assert result.stderr.startswith(b"fairseq-sam report: error: ")
    assert result.stderr.count(b"\n") == 1


def test_version(capsys):
    with pytest.raises(SystemExit) as caught:
        main(["--version"])
    assert caught.value.code == 0
    own, host, torch = capsys.readouterr().out.splitlines()
    assert own == f"fairseq_sam {__version__}"
    assert re.match(r"fairseq [0-9]+\.[0-9]+", host)
    assert re.match(r"torch [0-9]+\.[0-9]+", torch)


@pytest.mark.parametrize(
    "arguments",
    ["methods", "risk data model.pt", "spectrum data model.pt", "average a.pt b.pt --output c.pt",
     "convert source --output model.pt", "sts data model.pt",
     "search --out absent/search -- data --optimizer sam --max-epoch 1"],
)  # fmt: skip
def test_without_fairseq_one_line_says_so(arguments, tmp_path):
    (tmp_path / "without.py").write_text(
        "import importlib.util, sys\n"
        "find = importlib.util.find_spec\n"
        "importlib.util.find_spec = lambda name, *rest: find(name) if name != 'fairseq' else None\n"
        "class Nothing:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.split('.')[0] in ('fairseq', 'fairseq_cli'):\n"
        "            raise ModuleNotFoundError(f'No module named {name!r}', name=name)\n"
        "sys.meta_path.insert(0, Nothing())\n"
        "from fairseq_sam.commands import main\n"
        "sys.exit(main(sys.argv[1:]))\n"
    )
    result = subprocess.run(
        [sys.executable, str(tmp_path / "without.py"), *arguments.split()],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert (result.returncode, result.stdout) == (1, "")
    name = arguments.split()[0]
    assert result.stderr.startswith(f"fairseq-sam {name}: error: fairseq is not installed: pip")
    assert result.stderr.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["without.py"]


@pytest.mark.parametrize(
    ("name", "arguments"),
    [("risk", "{} DATA --rho 0.1 A.pt --norm linf B.pt"),
     ("risk", "{} --rho 0.1 -- DATA A.pt B.pt"),
     ("robustness", "{} DATA A.pt --radii 0.1,0.2 B.pt --bleu"),
     ("landscape", "{} DATA A.pt --points 4 B.pt"),
     ("spectrum", "{} --top 3 DATA --density A.pt B.pt"),
     ("gradients", "{} DATA A.pt --tensors B.pt"),
     ("report", "{} DATA --title X A.pt --plot c.png B.pt"),
     ("average", "{} DATA --output x.pt A.pt B.pt --force")],
)  # fmt: skip
def test_flags_stand_anywhere(name, arguments):
    args = vars(build_parser().parse_args(arguments.format(name).split()))
    found = args.get("checkpoints") or (args.get("runs") or args["inputs"])[1:]
    assert found == ["A.pt", "B.pt"]
    assert args.get("data", "DATA") == "DATA"


def test_data_come_before_checkpoints_in_every_command():
    for name in ("risk", "robustness", "landscape", "spectrum", "gradients"):
        flags = ["--radii", "1"] if name == "robustness" else []
        args = build_parser().parse_args([name, "DATA", "A.pt", *flags])
        assert (args.data, args.checkpoints) == ("DATA", ["A.pt"])
    args = build_parser().parse_args(["sts", "DATA", "A.pt"])
    assert (str(args.folder), list(map(str, args.checkpoints))) == ("DATA", ["A.pt"])


def test_output_flags_have_one_meaning():
    """--plot a picture, --json figures, --out a folder, --output a file; nothing else."""
    wanted = {"--plot": "FILE", "--json": "FILE", "--out": "DIR", "--output": "FILE"}
    found = {}
    for name, parser in subparsers().items():
        for action in parser._actions:
            for flag in action.option_strings:
                if flag.startswith(("--out", "--plot", "--json")):
                    found.setdefault(flag, set()).add(name)
                    assert action.metavar == wanted[flag]
    assert found["--out"] == {"search"}
    assert found["--output"] == {"average", "convert", "report"}
    drawing = {
        "gradients",
        "landscape",
        "report",
        "risk",
        "robustness",
        "search",
        "shift",
        "spectrum",
        "sts",
    }
    assert found["--plot"] == drawing
    assert found["--json"] == drawing | {"methods"}


@pytest.mark.parametrize("text", ["1_0", "٣", "inf", "nan", "1e400", "9" * 5000, "", " 1", "0x1"])
def test_every_number_is_checked(text):
    """No flag of a command takes what is no number in ASCII digits, or has no limit."""
    for name, parser in subparsers().items():
        for action in parser._actions:
            if action.type is None or action.type in PATHS or action.type.__name__ in NO_NUMBERS:
                continue
            with pytest.raises(argparse.ArgumentTypeError, match="not allowed"):
                action.type(text)
            assert action.type.__module__ == number_types.__name__, (name, action.dest)


NO_NUMBERS = ("plot_file", "_json_object", "_regular_expression", "_checkpoint_file", "_list")
PATHS = (Path,)


def subparsers():
    (action,) = [a for a in build_parser()._actions if isinstance(a, argparse._SubParsersAction)]
    return action.choices


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
    if arguments and arguments[0] in SUBCOMMANDS:
        assert captured.err.startswith(f"fairseq-sam {arguments[0]}: error: ")
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


@pytest.mark.parametrize("output", ["", ".", "{}"])
def test_average_into_no_file(output, tmp_path, failing):
    output = output.format(tmp_path)
    assert f"--output {output!r}: is no file" in failing("average", "a.pt", "--output", output)


def test_ctrl_c_is_one_line(monkeypatch, capsys):
    def interrupted(args):
        raise KeyboardInterrupt

    monkeypatch.setattr(commands.user_dir, "run", interrupted)
    assert main(["user-dir"]) == 130
    assert capsys.readouterr().err == "fairseq-sam user-dir: stopped\n"


class TestProgress:
    def test_label_and_estimate(self, capsys, monkeypatch):
        monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
        assert progress.progress(iter("abc"), 3, "sentence", "adam/best") == ["a", "b", "c"]
        text = capsys.readouterr().err
        assert "adam/best: 100%" in text
        assert "3/3 [" in text
        assert "<" in text  # time left
        assert "sentence/s" in text

    def test_unknown_total(self, capsys, monkeypatch):
        monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
        with progress.counting("product", "adam/best") as after_each:
            after_each()
        assert "adam/best: 1product" in capsys.readouterr().err

    def test_logs_stay_short(self, capsys):
        progress.progress(iter("abc"), 3, "sentence", "adam/best")
        assert capsys.readouterr().err == ""


def test_warnings_of_other_packages_are_left_out(recwarn):
    with no_foreign_warnings():
        for module in ("torch.nn.modules.transformer", "fairseq.tasks", "fairseq_samples"):
            warnings.warn_explicit("nested tensors", UserWarning, "file.py", 1, module)
    assert not recwarn.list
    with no_foreign_warnings(), pytest.warns(UserWarning, match="mine"):
        warnings.warn_explicit(
            "mine", UserWarning, "file.py", 1, "fairseq_sam.checkpoints.averaging"
        )
