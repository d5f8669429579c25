"""Faults of runs with several workers."""

import contextlib
import io
import warnings
from typing import Any, Iterator

import torch
from torch import nn

from fairseq_sam.checkpoints.checkpoint_files import load_safely

from .fairseq_modules import ModuleView
from .patching import Repair, uses_name


class _Anything:
    """Stands for what is sent from worker to worker."""


def _refuses_what_workers_send() -> bool:
    from fairseq.distributed import utils as distributed_utils

    receive = distributed_utils._broadcast_object_slow
    named = [const for const in receive.__code__.co_consts if isinstance(const, tuple)]
    asks = any("weights_only" in names for names in (*named, receive.__code__.co_names))
    if distributed_utils.torch is not torch or not uses_name(receive, "load") or asks:
        return False
    content = io.BytesIO()
    torch.save(_Anything(), content)
    content.seek(0)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.load(content)
    except Exception:  # the type differs between versions of torch
        return True
    return False


def _load_received(file: Any, **options: Any) -> Any:
    if not isinstance(file, io.BytesIO):
        return load_safely(file, **options)
    return torch.load(file, **{**options, "weights_only": False})


def _believe_rank_0() -> None:
    """Lets workers unpack the checkpoint that the first of them has read and sends.

    torch >= 2.6 refuses its configuration, so that no run on several workers can be resumed.  The
    bytes come from a process of the same run, which has read the file with the safe loader.
    """
    from fairseq.distributed import utils as distributed_utils

    distributed_utils.torch = ModuleView(torch, load=_load_received)


def _stays_unsynchronised() -> bool:
    from fairseq.distributed.legacy_distributed_data_parallel import LegacyDistributedDataParallel

    wrapped: Any = LegacyDistributedDataParallel.__new__(LegacyDistributedDataParallel)
    nn.Module.__init__(wrapped)
    wrapped.accumulate_grads = False
    with contextlib.suppress(MemoryError), wrapped.no_sync():
        raise MemoryError
    return bool(wrapped.accumulate_grads)


def _synchronise_after_errors() -> None:
    """Lets ``legacy_ddp`` add up gradients again after a pass that ran out of memory.

    fairseq leaves such a batch out and goes on; without this the worker then keeps its gradients
    to itself for the rest of the run.
    """
    from fairseq.distributed.legacy_distributed_data_parallel import LegacyDistributedDataParallel

    original = LegacyDistributedDataParallel.no_sync

    @contextlib.contextmanager
    def no_sync(self: Any) -> Iterator[None]:
        before = self.accumulate_grads
        try:
            with original(self):
                yield
        finally:
            self.accumulate_grads = before

    vars(no_sync)["__wrapped__"] = original
    LegacyDistributedDataParallel.no_sync = no_sync


REPAIRS = (
    Repair(
        "several workers cannot resume with torch >= 2.6",
        _refuses_what_workers_send,
        _believe_rank_0,
    ),
    Repair(
        "an error ends synchronisation of legacy_ddp",
        _stays_unsynchronised,
        _synchronise_after_errors,
    ),
)
