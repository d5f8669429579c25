"""A search goes on whatever has become of its files; what it cannot start with is refused first."""

import json
import os
import shutil
import sys

import pytest

from fairseq_sam.commands import main
from fairseq_sam.experiments import jobs
from fairseq_sam.experiments.search import command_check, trial_jobs
from fairseq_sam.experiments.search.trial_jobs import _divergence
from tests.experiments.search.made_trainer import write_checkpoint
from tests.fairseq_runs import ROOT, TRAINING, TRANSLATION, split

MADE = ROOT / "tests" / "experiments" / "search" / "made_trainer.py"
TRAIN = ["data", "--optimizer", "ga_sam", "--max-epoch", "3", "--cpu"]


def search(out, *flags, options=()):
    limits = ["--lowest", "1e-3", "--highest", "1e-3", "--max-runs", "3"]
    command = ["search", "--out", out, *limits, *options, "--", *TRAIN, *flags]
    return main(list(map(str, command)))


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """A finished search, and what it printed."""
    out = tmp_path_factory.mktemp("search") / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trial_jobs, "TRAINER", (sys.executable, "-S", str(MADE)))
        patch.setattr(command_check, "CHECKER", (sys.executable, "-S", "-c", ""))
        patch.setattr(jobs, "POLL_SECONDS", 0.02)
        assert search(out) == 0
    return out


def content_of(name):
    if name == "settings.json":
        return {"arguments of fairseq-train": ["other"]}
    return {"status": "finished", "value": 1.0, "updates": 30, "reason": ""}


def damages(name):
    """Ways to damage a JSON file, by what they are called."""
    whole = content_of(name)

    def text(content):
        return lambda path: path.write_text(content)

    found = {
        "empty": text(""),
        "half": text(json.dumps(whole)[:-9]),
        "deep": text("[" * 200_000),
        "binary": lambda path: path.write_bytes(bytes(range(256))),
        "null": text("null"),
        "list": text("[1, 2]"),
        "number": text("3"),
        "empty object": text("{}"),
        "directory": lambda path: (path.unlink(), path.mkdir(), (path / "x").write_text("")),
        "fifo": lambda path: (path.unlink(), os.mkfifo(path)),
        "link": lambda path: (path.unlink(), path.symlink_to("nowhere")),
        "device": lambda path: (path.unlink(), path.symlink_to("/dev/zero")),
    }
    if name == "result.json":
        for key, value in (
            *(("value", bad) for bad in ("text", None, [1], True)),
            *(("updates", bad) for bad in ("30", None, 1.5)),
            *(("status", bad) for bad in ("done", None, ["finished"], 3)),
        ):
            found[f"{key} {value}"] = text(json.dumps({**whole, key: value}))
        found["nan"] = text(json.dumps({**whole, "value": float("nan")}))
        found["older version"] = text(json.dumps({"status": "finished", "value": 1.0}))
    return found


CASES = [(name, how) for name in ("settings.json", "result.json") for how in damages(name)]


class TestDamage:
    @pytest.mark.parametrize(("name", "how"), CASES)
    def test_state_is_rebuilt(self, done, tmp_path, capsys, name, how):
        out = tmp_path / "out"
        shutil.copytree(done, out)
        table = (out / "search.md").read_text()
        path = out / name if name == "settings.json" else out / "rho-1e-03" / name
        damages(name)[how](path)
        assert search(out) == 0
        assert (out / "search.md").read_text() == table
        message = capsys.readouterr().err
        assert f"{name}.damaged1" in message
        assert "Traceback" not in message
        assert os.path.lexists(f"{path}.damaged1")
        assert search(out) == 0
        assert "damaged" not in capsys.readouterr().err

    def test_more_keys_of_a_later_version(self, done, tmp_path, capsys):
        out = tmp_path / "out"
        shutil.copytree(done, out)
        for path in (out / "settings.json", out / "rho-0" / "result.json"):
            path.write_text(json.dumps({**json.loads(path.read_text()), "--new": 1}))
        assert search(out) == 0
        assert "damaged" not in capsys.readouterr().err

    def test_damaged_settings_do_not_hide_another_command(self, done, tmp_path, capsys):
        out = tmp_path / "out"
        shutil.copytree(done, out)
        (out / "settings.json").write_text("")
        assert search(out, "--optimum", "1") == 1
        assert "other arguments of fairseq-train" in capsys.readouterr().err

    @pytest.mark.parametrize("bad", ["", "half", b"\0" * 1000, "directory", "link", "no log"])
    def test_a_run_whose_checkpoint_is_damaged_begins_again(self, done, tmp_path, capsys, bad):
        out = tmp_path / "out"
        shutil.copytree(done, out)
        table = (out / "search.md").read_text()
        (out / "rho-1e-03" / "result.json").unlink()
        last = out / "rho-1e-03" / "checkpoint_last.pt"
        if bad == "no log":
            (out / "rho-1e-03" / "train.log").unlink()
        else:
            last.unlink()
            if bad == "directory":
                last.mkdir()
            elif bad == "link":
                last.symlink_to("nowhere")
            else:
                last.write_bytes(bad if isinstance(bad, bytes) else bad.encode())
        assert search(out) == 0
        assert "rho-1e-03/checkpoint_last.pt: " in capsys.readouterr().err
        assert (out / "search.md").read_text() == table

    @pytest.mark.parametrize("name", ["train.log", ".", "../.lock"])
    def test_other_things_in_the_way(self, done, tmp_path, name):
        out = tmp_path / "out"
        shutil.copytree(done, out)
        table = (out / "search.md").read_text()
        path = out / "rho-1e-03" / name
        if name == ".":
            shutil.rmtree(path.parent / "rho-1e-03")
            os.mkfifo(path.parent / "rho-1e-03")
        else:
            (out / "rho-1e-03" / "result.json").unlink()
            path.unlink()
            os.mkfifo(path)
        assert search(out) == 0
        assert (out / "search.md").read_text() == table


class TestBeforeAnything:
    @pytest.mark.parametrize("kind", ["text", "empty", "no model", "code", "fifo", "directory"])
    def test_a_bad_checkpoint_to_start_from(self, tmp_path, capsys, kind):
        import torch

        bad = tmp_path / "bad.pt"
        if kind in ("text", "empty"):
            bad.write_text("" if kind == "empty" else "text")
        elif kind == "fifo":
            os.mkfifo(bad)
        elif kind == "directory":
            bad.mkdir()
        else:
            torch.save({"weights": {}} if kind == "no model" else {"model": os.system}, bad)
        with pytest.raises(SystemExit) as caught:
            search(tmp_path / "out", options=["--start-from", bad])
        assert caught.value.code == 2
        error = capsys.readouterr().err
        assert error.startswith("fairseq-sam search: error: argument --start-from: ")
        assert str(bad) in error
        assert error.count("\n") == 1
        assert sorted(os.listdir(tmp_path)) == ["bad.pt"]

    def test_a_checkpoint_that_leaves_nothing_to_train(self, tmp_path, capsys):
        import torch

        start = tmp_path / "start.pt"
        torch.save({"model": {}, "optimizer_history": [{"num_updates": 40}]}, start)
        with pytest.raises(SystemExit):
            search(tmp_path / "out", "--max-update", 40, options=["--start-from", start])
        assert "has 40 updates already, and --max-update 40" in capsys.readouterr().err
        assert not (tmp_path / "out").exists()

    def test_a_good_one_is_taken(self, tmp_path):
        write_checkpoint(tmp_path / "good.pt", 2)
        assert search(tmp_path / "out", options=["--start-from", tmp_path / "good.pt"]) == 0

    @pytest.mark.parametrize(
        ("flags", "complaint"),
        [
            ("--no-such-flag 3", "unrecognized arguments: --no-such-flag 3"),
            pytest.param("--sam-steps 0", "--sam-steps", marks=pytest.mark.slow),
            pytest.param("--arch nonsense", "argument --arch", marks=pytest.mark.slow),
            pytest.param("--source-lang xx", "xx", marks=pytest.mark.slow),
            pytest.param("--valid-subset other", "other", marks=pytest.mark.slow),
            pytest.param("--encoder-attention-heads 3", "num_heads", marks=pytest.mark.slow),
            pytest.param("--weight-decay nonsense", "--weight-decay", marks=pytest.mark.slow),
        ],
    )
    def test_flags_that_fairseq_does_not_take(self, corpus, tmp_path, capsys, flags, complaint):
        arguments = split(corpus, TRANSLATION, TRAINING, "--optimizer sam --max-epoch 1", flags)
        with pytest.raises(SystemExit) as caught:
            main(["search", "--out", str(tmp_path / "out"), "--", *arguments])
        assert caught.value.code == 2
        error = capsys.readouterr().err
        assert error.startswith("fairseq-sam search: error: arguments of fairseq-train: ")
        assert error.count("\n") == 1
        assert complaint in error
        assert os.listdir(tmp_path) == []


class TestDivergence:
    @pytest.mark.parametrize(
        "line",
        [
            "FloatingPointError: gradients are Nan/Inf",
            "[rank1]: FloatingPointError: Minimum loss scale reached (0.0001).",
            "RuntimeError: probability tensor contains either `inf`, `nan` or element < 0",
            "ValueError: cannot convert float NaN to integer",
            "torch._C._LinAlgError: linalg.svd: the input contained nan or inf values",
            "numpy.linalg.LinAlgError: Array must not contain infs or NaNs",
            "OverflowError: cannot convert float infinity to integer",
            "RuntimeError: Function 'MulBackward0' returned nan values in its 0th output.",
            "RuntimeError: The total norm for gradients from `parameters` is non-finite, so it …",
            "AssertionError: can't go on: the loss isn't finite: tensor(-inf, device='cuda:0')",
            "RuntimeError: NaN/Inf in the loss",
        ],
    )
    def test_told_by_its_error(self, line):
        assert _divergence(["a", line, "StopIteration"])

    @pytest.mark.parametrize(
        "line",
        [
            "RuntimeError: CUDA out of memory",
            "INFO | train | loss nan",
            "ValueError: no information",
            "2024-01-01 | FloatingPointError in a log message",
            "OSError: [Errno 28] No space left on device: '/home/inf/x/checkpoint_last.pt.tmp'",
            "OSError: [Errno 28] No space left on device, inf bytes wanted",
            "FileNotFoundError: [Errno 2] No such file or directory: '/net/inf-cluster/train.bin'",
            "FileNotFoundError: Dataset not found: valid (/home/a nan/bin)",
            "socket.gaierror: [Errno -2] Name or service not known: inf",
            "torch.distributed.DistNetworkError: failed to connect to inf (10.0.0.1)",
            "RuntimeError: Parent directory /home/inf does not exist.",
            "RuntimeError: Parent directory /home/my inf of old/x does not exist.",
            "RuntimeError: [enforce fail] file inf/checkpoint_last.pt: write failed",
            "RuntimeError: connecting to inf-cluster.uni.de:29500 or [inf]:29500 timed out",
            'RuntimeError: cannot open file "a nan b"',
            "ValueError: could not convert string to float: 'nan x'",
            "KeyError: 'nan'",
        ],
    )
    def test_other_failures_are_none(self, line):
        assert _divergence([line]) is None
