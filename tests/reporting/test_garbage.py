"""Readers of run directories: whatever lies there, the good runs are shown, and nothing waits."""

import json
import os
import signal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fairseq_sam.commands import main
from fairseq_sam.reporting.runs import RunError, read_run
from fairseq_sam.reporting.runs_plot import write_plot
from fairseq_sam.reporting.runs_table import markdown_table
from fairseq_sam.reporting.scores import read_scores
from fairseq_sam.reporting.train_log import parse_line, parse_log
from tests.reporting.garbage import GARBAGE

GOOD_LINE = (
    '| INFO | train | {"epoch": 1, "train_loss": "4", "train_gnorm": "2"}\n'
    '| INFO | valid | {"epoch": 1, "valid_loss": "3"}\n'
)


@pytest.fixture(autouse=True)
def _never_waits():
    """Ends a test that waits for a FIFO or reads a device."""
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    previous = signal.signal(signal.SIGALRM, _too_long)
    signal.alarm(60)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, previous)


def _too_long(*_):
    raise AssertionError("waits")


def good_run(directory):
    directory.mkdir()
    (directory / "train.log").write_text(GOOD_LINE, encoding="utf-8")
    (directory / "scores.json").write_text('[{"name": "chrF2", "score": 55.0}]', encoding="utf-8")
    return directory


class TestGarbage:
    @pytest.mark.parametrize("name", GARBAGE)
    def test_beside_good_files_of_a_run(self, name, tmp_path, capsys):
        spoil, told = GARBAGE[name]
        run = good_run(tmp_path / "run")
        spoil(run)
        assert main(["report", str(run)]) == 0
        printed = capsys.readouterr()
        assert "| 55.00 |" in printed.out
        lines = printed.err.splitlines()
        assert len(lines) == told
        for line in lines:
            assert line.startswith(f"fairseq-sam report: passed over: {run}{os.sep}")
        assert main(["gradients", "--run", str(run)]) == 0

    @pytest.mark.parametrize("name", GARBAGE)
    def test_alone_beside_a_good_run(self, name, tmp_path, capsys):
        bad, good = tmp_path / "bad", good_run(tmp_path / "good")
        bad.mkdir()
        GARBAGE[name][0](bad)
        status = main(["report", str(bad), str(good), "--relative-to", str(tmp_path)])
        printed = capsys.readouterr()
        assert "| good |" in printed.out
        assert status == int("| bad |" not in printed.out)
        assert "Traceback" not in printed.err
        # The same directory by itself.
        assert main(["report", str(bad)]) == status
        if status:
            assert (
                capsys.readouterr().err.splitlines()[-1].startswith("fairseq-sam report: error: ")
            )

    def test_all_at_once_with_a_plot(self, tmp_path, capsys):
        pytest.importorskip("matplotlib")
        runs = []
        for index, (spoil, _) in enumerate(GARBAGE.values()):
            runs.append(good_run(tmp_path / f"run{index}"))
            spoil(runs[-1])
        for flags in (
            [],
            ["--group-by", "[0-9]+"],
            ["--paper", "lstm_ptb", "--summary", "best-median"],
        ):
            plot = ["--plot", str(tmp_path / "plot.png")]
            main(["report", *map(str, runs), *flags, *plot])
            assert "| run" in capsys.readouterr().out


class TestDirectories:
    def made(self, tmp_path):
        (tmp_path / "file").write_text("")
        (tmp_path / "empty").mkdir()
        os.mkfifo(tmp_path / "fifo")
        (tmp_path / "dangling").symlink_to("nowhere")
        (tmp_path / "circular").symlink_to("circular")
        names = ["file", "empty", "fifo", "dangling", "circular", "nowhere", "x" * 300]
        return [tmp_path / name for name in names]

    def test_one_that_is_none_does_not_hide_the_good_one(self, tmp_path, capsys):
        good = good_run(tmp_path / "good")
        bad = self.made(tmp_path)
        assert main(["report", *map(str, bad), str(good)]) == 1
        printed = capsys.readouterr()
        assert "good |" in printed.out
        lines = printed.err.splitlines()
        assert len(lines) == len(bad)
        for line, path in zip(lines, bad):
            assert line.startswith(f"fairseq-sam report: passed over: {path}: ")

    def test_by_themselves(self, tmp_path, capsys):
        for path in self.made(tmp_path):
            for command in (["report", str(path)], ["gradients", "--run", str(path)]):
                assert main(command) == 1
                error = capsys.readouterr().err
                assert error.count("\n") == 1
                assert str(path) in error

    def test_a_name_that_is_no_text(self, tmp_path, capsys):
        good = tmp_path / os.fsdecode(b"run\xff|\n")
        try:
            good_run(good)
        except OSError:
            pytest.skip("the file system takes no such name")
        assert main(["report", str(good)]) == 0
        out = capsys.readouterr().out
        out.encode("utf-8")
        assert "| run?\\|? | 55.00 |" in out

    @pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root reads all")
    def test_files_without_permission(self, tmp_path, capsys):
        run = good_run(tmp_path / "run")
        (run / "x.json").write_text("{}")
        (run / "x.json").chmod(0)
        assert main(["report", str(run)]) == 0
        assert "x.json: Permission denied" in capsys.readouterr().err


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=6,
)
names = st.sampled_from(["BLEU", "chrF2", "Perplexity", "Accuracy", ""]) | json_values
records = st.fixed_dictionaries(
    {"name": names, "score": json_values},
    optional={"signature": json_values, "p_value": json_values, "chance": json_values},
)
keys = st.sampled_from(
    ["epoch", "train_loss", "valid_loss", "train_train_wall", "train_perturbation_on",
     "train_sharpness", "train_gnorm", "train_gnorm_a", "valid_num_updates"]
)  # fmt: skip
numbers = st.integers(0, 3) | st.floats().map(str)
lines = st.one_of(
    st.text(max_size=60),
    st.dictionaries(keys, numbers | json_values, max_size=6).map(
        lambda r: f"| x | {json.dumps(r)}"
    ),
    st.builds("epoch {} | valid on '{}' subset | loss {}".format, numbers, keys, numbers),
    st.builds("x | sam: rho {} (layer)".format, numbers | st.text("0123456789.e+-", max_size=8)),
)


class TestAnything:
    @given(lines)
    def test_lines(self, line):
        parsed = parse_line(line)
        if parsed is not None:
            epoch, split, values = parsed
            assert isinstance(epoch, int)
            assert split in ("train", "valid")
            assert all(type(value) is float for value in values.values())

    @given(st.binary(max_size=200), st.integers(0, 200))
    def test_lines_cut_anywhere(self, noise, where):
        whole = GOOD_LINE.encode() + noise + GOOD_LINE.encode()
        parse_log((whole[:where] + whole[where + 1 :]).decode("utf-8", "replace").splitlines())

    @settings(max_examples=150, deadline=None)
    @given(
        st.lists(records | json_values, max_size=4),
        st.lists(lines, max_size=6),
        st.binary(max_size=50),
    )
    def test_directories(self, tmp_path_factory, content, log, noise):
        runs = []
        for name in ("run-a", "run-b"):
            directory = tmp_path_factory.mktemp("run")
            (directory / "scores.json").write_text(json.dumps(content), encoding="utf-8")
            (directory / "noise.json").write_bytes(noise)
            (directory / "noise.log").write_bytes(noise)
            (directory / "train.log").write_text("\n".join(log), encoding="utf-8", errors="replace")
            remarks = []
            try:
                runs.append(read_run(directory, name, remarks.append))
            except RunError as error:
                remarks.append(str(error))
            assert all("\n" not in remark for remark in remarks)
            assert read_scores(directory).keys() == (runs[-1].scores.keys() if runs else set())
        if runs:
            for group_by in (None, "[ab]$"):
                table = markdown_table(runs, group_by=group_by)
                assert table.count("\n| ") + 1 == 2 + (1 if group_by else 2)
                table.encode("utf-8")

    @settings(max_examples=25, deadline=None)
    @given(st.lists(lines, min_size=1, max_size=6))
    def test_plots(self, tmp_path_factory, log):
        pytest.importorskip("matplotlib")
        directory = good_run(tmp_path_factory.mktemp("runs") / "run")
        (directory / "z.log").write_text("\n".join(log), encoding="utf-8", errors="replace")
        run = read_run(directory, "run")
        write_plot([run, run], directory / "plot.svg")
