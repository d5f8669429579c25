"""Checkpoints: what fairseq writes and reads alone, and once repaired."""

import argparse
import contextlib
import io
import os
import pickle
import shutil
import subprocess
import sys
import time
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from fairseq import checkpoint_utils
from fairseq.data import Dictionary
from fairseq.file_io import PathManager
from fairseq.logging import meters
from omegaconf import OmegaConf

from fairseq_sam import host
from fairseq_sam.checkpoints.checkpoint_files import load_safely

ROOT = Path(__file__).parents[2]


class Unlisted:
    """Stands for whatever a hostile checkpoint contains."""


class TestSafeLoader:
    @pytest.fixture
    def _nothing_allowed(self):
        serialization = torch.serialization
        if not hasattr(serialization, "add_safe_globals"):
            pytest.skip(f"torch {torch.__version__} has no list of safe types")
        allowed = serialization.get_safe_globals()
        serialization.clear_safe_globals()
        yield
        serialization.add_safe_globals(allowed)

    @staticmethod
    def through_safe_loader(content):
        file = io.BytesIO()
        torch.save(content, file)
        file.seek(0)
        return torch.load(file, weights_only=True)

    @pytest.mark.usefixtures("_nothing_allowed")
    def test_reads_what_eval_bleu_leaves_in_a_checkpoint(self):
        meter = meters.SumMeter()
        meter.update(np.array([3, 1], dtype=np.int64))
        numbers = [dtype(1) for dtype in (np.int32, np.int64, np.float32, np.float64, np.bool_)]
        checkpoint = {
            "args": argparse.Namespace(arch="transformer"),
            "numbers": numbers,
            "meter": meter.state_dict(),
        }
        with pytest.raises(Exception, match=r"[Uu]nsupported"):
            self.through_safe_loader(checkpoint)
        host.repair()
        loaded = self.through_safe_loader(checkpoint)
        assert loaded["args"] == checkpoint["args"]
        assert loaded["numbers"] == numbers
        assert list(loaded["meter"]["sum"]) == [3, 1]

    @pytest.mark.usefixtures("_nothing_allowed")
    def test_stays_on(self):
        host.repair()
        with pytest.raises(Exception, match=r"[Uu]nsupported"):
            self.through_safe_loader(Unlisted())


class Program:
    """Runs when it is unpickled."""

    def __init__(self, ran):
        self.ran = ran

    def __reduce__(self):
        return os.mkdir, (str(self.ran),)


class TestWhatFairseqLoads:
    @pytest.fixture
    def save(self, tmp_path):
        def save(zipped=True, **content):
            path = str(tmp_path / "checkpoint.pt")
            state = {"args": None, "model": {"weight": torch.ones(2)}, **content}
            torch.save(state, path, _use_new_zipfile_serialization=zipped)
            return path

        return save

    @pytest.mark.parametrize("zipped", [True, False])
    def test_may_not_be_code(self, save, tmp_path, zipped):
        path = save(zipped, task_state=Program(tmp_path / "ran"))
        with pytest.raises(pickle.UnpicklingError) as caught:
            checkpoint_utils.load_checkpoint_to_cpu(path)
        name = f"{os.mkdir.__module__}.mkdir"
        assert str(caught.value) == f"{path}: holds {name}, which is code, not data; refused"
        assert caught.value.__suppress_context__
        assert not (tmp_path / "ran").exists()

    def test_runs_with_fairseq_alone_where_torch_lets_it(self, save, tmp_path, monkeypatch):
        path = save(task_state=Program(tmp_path / "ran"))
        monkeypatch.setattr(checkpoint_utils, "torch", torch)
        with contextlib.suppress(Exception):  # it is not a whole checkpoint either
            checkpoint_utils.load_checkpoint_to_cpu(path)
        load = checkpoint_utils.load_checkpoint_to_cpu.__code__
        switched_off = any("weights_only" in str(const) for const in load.co_consts)
        old = tuple(map(int, torch.__version__.split(".")[:2])) < (2, 6)
        assert (tmp_path / "ran").exists() == (switched_off or old)

    def test_may_not_be_a_torchscript_program(self, tmp_path):
        torch.jit.script(torch.nn.Linear(1, 1)).save(str(tmp_path / "program.pt"))
        with pytest.raises(pickle.UnpicklingError, match="TorchScript program, which is code"):
            checkpoint_utils.load_checkpoint_to_cpu(str(tmp_path / "program.pt"))

    @pytest.mark.parametrize("content", ["not a checkpoint", ""])
    def test_may_be_damaged(self, tmp_path, content):
        (tmp_path / "text.pt").write_text(content)
        with pytest.raises((pickle.UnpicklingError, EOFError)) as caught:
            checkpoint_utils.load_checkpoint_to_cpu(str(tmp_path / "text.pt"))
        assert "weights_only" not in str(caught.value)
        assert not content or "text.pt: damaged" in str(caught.value)

    @pytest.mark.parametrize("zipped", [True, False])
    def test_is_what_fairseq_writes(self, save, zipped):
        dictionary = Dictionary()
        dictionary.add_symbol("word")
        path = save(
            zipped,
            args=argparse.Namespace(arch="transformer"),
            cfg=OmegaConf.create({"model": {"layers": [1, 2.5, "x", None, True]}}),
            task_state={"target_dictionary": dictionary},
            extra_state={"meter": meters.AverageMeter(), "best": np.float64(0.5)},
            last_optimizer_state={"step": np.arange(3), "moment": torch.ones(2).half()},
        )
        state = checkpoint_utils.torch.load(path, map_location="cpu")
        assert state["args"].arch == "transformer"
        assert state["cfg"].model.layers == [1, 2.5, "x", None, True]
        assert state["task_state"]["target_dictionary"].index("word") == 4
        assert state["extra_state"]["best"] == 0.5
        assert state["last_optimizer_state"]["moment"].dtype is torch.float16

    def test_is_not_what_others_load(self):
        assert torch.load is not load_safely


class TestCopy:
    @pytest.fixture
    def checkpoints(self, tmp_path):
        new, last = tmp_path / "checkpoint1.pt", tmp_path / "checkpoint_last.pt"
        new.write_text("new weights")
        last.write_text("old weights")
        return new, last

    @staticmethod
    def fill_disk(monkeypatch):
        def copyfile(source, target):
            Path(target).write_text(Path(source).read_text()[:3])
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(shutil, "copyfile", copyfile)

    def test_replaces_the_previous_checkpoint(self, checkpoints):
        new, last = map(str, checkpoints)
        assert PathManager.copy(new, last, overwrite=True)
        assert Path(last).read_text() == "new weights"
        assert sorted(os.listdir(os.path.dirname(new))) == ["checkpoint1.pt", "checkpoint_last.pt"]

    def test_that_fails_raises_and_leaves_the_previous_checkpoint(
        self, checkpoints, monkeypatch, unrepaired
    ):
        new, last = map(str, checkpoints)
        original = unrepaired(PathManager.copy)
        self.fill_disk(monkeypatch)
        with pytest.raises(OSError, match="space"):
            PathManager.copy(new, last, overwrite=True)
        assert Path(last).read_text() == "old weights"
        assert sorted(os.listdir(os.path.dirname(new))) == ["checkpoint1.pt", "checkpoint_last.pt"]
        with pytest.raises(OSError, match="space"):
            original(new, last, overwrite=True)
        assert Path(last).read_text() == "new"

    def test_writes_through_a_link(self, checkpoints, tmp_path):
        new, last = checkpoints
        link = tmp_path / "link.pt"
        link.symlink_to(last)
        PathManager.copy(str(new), str(link), overwrite=True)
        assert link.is_symlink()
        assert last.read_text() == "new weights"


class FailingOnce:
    """Cannot be saved the first time, as when memory is short for a moment."""

    failures = 1

    def __reduce__(self):
        if self.failures:
            self.failures -= 1
            raise MemoryError
        return OrderedDict, ()


class TestSave:
    @staticmethod
    def save_and_load(save, path):
        with open(str(path), "wb") as file:
            save([torch.arange(1000.0), FailingOnce()], file)
        return torch.load(str(path))

    def test_after_a_passing_failure_can_be_read(self, tmp_path, monkeypatch, unrepaired):
        monkeypatch.setattr(time, "sleep", lambda _: None)
        save = checkpoint_utils._torch_persistent_save
        weights, _ = self.save_and_load(save, tmp_path / "good.pt")
        assert torch.equal(weights, torch.arange(1000.0))
        with pytest.raises(RuntimeError):
            self.save_and_load(unrepaired(save), tmp_path / "bad.pt")

    def test_on_a_full_disk_fails_and_leaves_the_previous_checkpoint(self, tmp_path):
        program = """
import resource, sys, time, torch
from fairseq import checkpoint_utils
from fairseq_sam import host
host.repair()
time.sleep = lambda _: None
resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))
print("saving", flush=True)
checkpoint_utils.torch_persistent_save(torch.arange(1000.0), sys.argv[1])
print("saved")
"""
        checkpoint = tmp_path / "checkpoint_last.pt"
        torch.save({"old": 1}, str(checkpoint))
        # In a process of its own: some versions of torch end the whole process here.
        done = subprocess.run(
            [sys.executable, "-c", program, str(checkpoint)],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])},
        )
        assert done.returncode != 0
        assert done.stdout.split() == [b"saving"]
        assert torch.load(str(checkpoint)) == {"old": 1}
