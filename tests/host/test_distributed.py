"""Several workers: fairseq alone, and once repaired.

Whole runs that are resumed are in ``tests/end_to_end/test_workers.py``.
"""

import io
from types import SimpleNamespace

import pytest
import torch
from fairseq.distributed import utils as distributed_utils
from fairseq.distributed.legacy_distributed_data_parallel import LegacyDistributedDataParallel
from omegaconf import OmegaConf

from fairseq_sam.checkpoints.checkpoint_files import load_safely
from fairseq_sam.host import distributed, fairseq_modules


class OutOfMemory(RuntimeError):
    pass


class TestNoSync:
    @staticmethod
    def accumulates_after_an_error(no_sync):
        wrapped = SimpleNamespace(accumulate_grads=False)
        with pytest.raises(OutOfMemory), no_sync(wrapped):
            raise OutOfMemory
        return wrapped.accumulate_grads

    def test_ends_with_an_error(self, unrepaired):
        assert not self.accumulates_after_an_error(LegacyDistributedDataParallel.no_sync)
        original = unrepaired(LegacyDistributedDataParallel.no_sync)
        assert self.accumulates_after_an_error(original)

    @pytest.mark.parametrize("before", [False, True])
    def test_puts_back_what_was(self, before):
        wrapped = SimpleNamespace(accumulate_grads=before)
        with LegacyDistributedDataParallel.no_sync(wrapped):
            assert wrapped.accumulate_grads
        assert wrapped.accumulate_grads is before


class Sent:
    """Something that the safe loader does not know."""

    value = 5


class TestReceiving:
    @pytest.fixture
    def receive(self, monkeypatch):
        """``receive(thing)``: what another worker gets."""

        def receive(thing):
            content = io.BytesIO()
            torch.save(thing, content)
            sent = [
                torch.LongTensor([len(content.getvalue())]),
                torch.ByteTensor(list(content.getvalue())),
            ]
            monkeypatch.setattr(distributed_utils, "get_rank", lambda group: 1)
            monkeypatch.setattr(
                distributed_utils, "broadcast", lambda into, src, group: into.copy_(sent.pop(0))
            )
            return distributed_utils._broadcast_object_slow(None, 0, None, torch.device("cpu"))

        return receive

    def test_what_rank_0_has_read(self, receive):
        state = {"cfg": OmegaConf.create({"model": {"layers": 2}}), "sent": Sent()}
        received = receive(state)
        assert received["cfg"].model.layers == 2
        assert received["sent"].value == 5

    def test_fairseq_alone_fails(self, receive, monkeypatch):
        if distributed_utils.torch is torch:
            pytest.skip("this fairseq does not have this fault with this torch")
        monkeypatch.setattr(distributed_utils, "torch", torch)
        with pytest.raises(Exception, match=r"[Uu]nsupported"):
            receive({"cfg": OmegaConf.create({})})

    def test_believes_nothing_but_buffers(self, tmp_path):
        torch.save(Sent(), str(tmp_path / "file.pt"))
        with pytest.raises(Exception, match="which is code, not data"):
            distributed._load_received(str(tmp_path / "file.pt"))

    def test_no_other_module_believes(self):
        believing = {
            module.__name__
            for module in fairseq_modules.fairseq_modules()
            if fairseq_modules.uses(module, "torch", "load")
            and module.torch.load is not load_safely
        }
        assert believing == {"fairseq.distributed.utils"}
