"""Checkpoints: what fairseq writes and reads alone, and once repaired."""

import argparse
import io
import os
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from fairseq import checkpoint_utils
from fairseq.file_io import PathManager
from fairseq.logging import meters

from fairseq_sam import host


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


class FailingFile(io.FileIO):
    """A file on a disk that is full for the first ``failures`` writes beyond 1 kB."""

    failures = 1

    def write(self, content):
        if self.failures and self.tell() + len(content) > 1000:
            self.failures -= 1
            raise OSError(28, "No space left on device")
        return super().write(content)


class TestSave:
    weights = {"weight": torch.arange(1000.0)}  # noqa: RUF012

    @pytest.fixture(autouse=True)
    def _no_waiting(self, monkeypatch):
        monkeypatch.setattr(time, "sleep", lambda _: None)

    def save_after_failure(self, save, path):
        with FailingFile(str(path), "w") as file:
            save(self.weights, file)
        return torch.load(str(path), weights_only=True)

    def test_after_a_passing_failure_can_be_read(self, tmp_path, unrepaired):
        save = checkpoint_utils._torch_persistent_save
        loaded = self.save_after_failure(save, tmp_path / "good.pt")
        assert torch.equal(loaded["weight"], self.weights["weight"])
        with pytest.raises(RuntimeError):
            self.save_after_failure(unrepaired(save), tmp_path / "bad.pt")

    def test_that_keeps_failing_raises_and_leaves_the_previous_checkpoint(
        self, tmp_path, monkeypatch
    ):
        path = tmp_path / "checkpoint_last.pt"
        torch.save({"old": 1}, str(path))

        def open_on_full_disk(path, mode):
            file = FailingFile(path, "w")
            file.failures = 1000
            return file

        monkeypatch.setattr(PathManager, "open", staticmethod(open_on_full_disk))
        with pytest.raises((OSError, RuntimeError)):
            checkpoint_utils.torch_persistent_save(self.weights, str(path))
        assert torch.load(str(path), weights_only=True) == {"old": 1}
