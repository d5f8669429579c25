"""Faults in how fairseq writes and reads checkpoints."""

import argparse
import codecs
import contextlib
import functools
import io
import logging
import os
import time
import types
from typing import Any, Callable, List, Tuple

import numpy as np
import torch

from fairseq_sam.checkpoints.checkpoint_files import load_safely

from .fairseq_modules import ModuleRepair, ModuleView, uses
from .patching import Repair, rebind, uses_name

logger = logging.getLogger(__name__)

_METER_DTYPES = ("int32", "int64", "float32", "float64", "bool")
_READING_FROM_MEMORY = ("fairseq.distributed.utils",)
_SAVE_ATTEMPTS = 3
_SECONDS_BETWEEN_ATTEMPTS = 2.5


def _safe_loader_refuses_fairseq() -> bool:
    if not hasattr(torch.serialization, "add_safe_globals"):
        return False
    content = io.BytesIO()
    torch.save({"args": argparse.Namespace(), "val": np.array([0.5]), "n": np.int64(1)}, content)
    content.seek(0)
    try:
        torch.load(content, weights_only=True)
    except Exception:  # the type differs between versions of torch
        return True
    return False


def _numpy_constructors() -> List[Tuple[Callable[..., Any], str]]:
    """Returns the functions that rebuild numpy's arrays and scalars, by their old and new names."""
    constructors: List[Any] = [np.zeros(0).__reduce__()[0], np.int64(0).__reduce__()[0]]
    return [
        (constructor, f"{core}.multiarray.{constructor.__name__}")
        for constructor in constructors
        for core in ("numpy.core", "numpy._core")
    ]


def _let_safe_loader_read_fairseq() -> None:
    """Names the harmless types in fairseq's checkpoints to the safe loader of torch >= 2.6.

    These are the command line (``argparse.Namespace``) and the numpy numbers that ``--eval-bleu``
    leaves in the meters, whose bytes older versions of torch spell with ``encode``.  The loader
    stays on: anything else in a checkpoint is still refused.
    """
    allow = torch.serialization.add_safe_globals
    types: List[Any] = [argparse.Namespace, np.ndarray, np.dtype, codecs.encode]
    types += [type(np.dtype(name)) for name in _METER_DTYPES]
    constructors = _numpy_constructors()
    # Naming both spellings lets numpy 1 read what numpy 2 wrote and the other way round.
    if "tuple" in str(allow.__annotations__).lower():
        allow(types + constructors)
    else:
        allow(types + list({constructor for constructor, _ in constructors}))


def _copies_in_place() -> bool:
    from fairseq.file_io import PathManager

    copy = PathManager.copy
    return uses_name(copy, "copyfile") and not uses_name(copy, "replace")


def _copy_atomically() -> None:
    """Lets ``PathManager.copy`` replace a local file in one step.

    fairseq writes ``checkpoint_best.pt`` and ``checkpoint_last.pt`` as copies, straight over the
    previous file: killed in the middle, or on a full disk, it leaves neither the old checkpoint
    nor the new one.
    """
    from fairseq.file_io import PathManager

    original = PathManager.copy

    @functools.wraps(original)
    def copy(src_path: str, dst_path: str, overwrite: bool = False) -> Any:
        if not overwrite or not PathManager.supports_rename(dst_path):
            return original(src_path, dst_path, overwrite=overwrite)
        target = os.path.realpath(dst_path)  # a link stays a link, as with the original
        partial = target + ".tmp"
        try:
            copied = original(src_path, partial, overwrite=True)
            if copied:
                os.replace(partial, target)
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.remove(partial)
        return dst_path if copied else copied

    PathManager.copy = staticmethod(copy)


def _appends_on_retry() -> bool:
    from fairseq import checkpoint_utils

    return not uses_name(checkpoint_utils._torch_persistent_save, "truncate")


def _start_over_on_retry() -> None:
    """Lets a repeated save begin with an empty file.

    fairseq tries ``torch.save`` three times on the same open file.  After a transient error the
    next attempt is appended to what the failed one left: it succeeds, and nothing can read it.
    """
    from fairseq import checkpoint_utils

    original = checkpoint_utils._torch_persistent_save

    @functools.wraps(original)
    def _torch_persistent_save(obj: Any, f: Any) -> None:
        if isinstance(f, str) or not f.seekable():
            return original(obj, f)
        start = f.tell()
        for attempt in range(1, _SAVE_ATTEMPTS + 1):
            try:
                f.seek(start)
                f.truncate()
                return torch.save(obj, f)
            except Exception:
                if attempt == _SAVE_ATTEMPTS:
                    logger.exception("could not save a checkpoint")
                    raise
                time.sleep(_SECONDS_BETWEEN_ATTEMPTS)

    rebind("_torch_persistent_save", original, _torch_persistent_save)


def _loads_code(module: types.ModuleType) -> bool:
    return (
        vars(module).get("torch") is torch
        and module.__name__ not in _READING_FROM_MEMORY
        and uses(module, "torch", "load")
    )


def _load_data_only(module: types.ModuleType) -> None:
    """Lets a module load data and never code, whatever the version of torch does by default.

    Before torch 2.6 the safe loader is off unless asked for, and some fairseqs switch it off.
    """
    vars(module)["torch"] = ModuleView(torch, load=load_safely)


MODULE_REPAIRS = (ModuleRepair("checkpoints may hold code", _loads_code, _load_data_only),)

REPAIRS = (
    Repair(
        "torch >= 2.6 refuses to load fairseq's checkpoints",
        _safe_loader_refuses_fairseq,
        _let_safe_loader_read_fairseq,
    ),
    Repair("an interrupted copy ruins a checkpoint", _copies_in_place, _copy_atomically),
    Repair("a repeated save writes a broken file", _appends_on_retry, _start_over_on_retry),
)
