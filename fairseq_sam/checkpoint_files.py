"""Finding, reading and writing fairseq's checkpoint files, with nothing half done.

Reading uses torch's safe loader only; a writer that is killed leaves the old file or none.
"""

from __future__ import annotations

import argparse
import codecs
import collections
import os
import pickle
import re
from pathlib import Path
from typing import Any, ClassVar, Dict, List, Mapping, Optional, Tuple, Union

import torch

PathLike = Union[str, "os.PathLike[str]"]

_EPOCH_NAME = re.compile(r"checkpoint(\d+)\.pt")
_UPDATE_NAME = re.compile(r"checkpoint_\d+_(\d+)\.pt")


class CheckpointError(Exception):
    """A checkpoint that cannot be used; the text is one line that names the file."""


def read_checkpoint(path: PathLike) -> Dict[str, Any]:
    """Reads a fairseq checkpoint with torch's safe loader.

    Raises:
        CheckpointError: the file is missing, damaged, unsafe or no fairseq checkpoint.
    """
    try:
        state = _load_safely(os.fspath(path))
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such file") from None
    except Exception as error:  # torch raises half a dozen types for a damaged file
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise CheckpointError(f"{path}: damaged, or not a checkpoint ({reason})") from error
    if not isinstance(state, dict) or not isinstance(state.get("model"), dict):
        raise CheckpointError(f"{path}: not a fairseq checkpoint (it has no 'model')")
    return state


def _load_safely(path: str) -> Any:
    """Loads data and never code.

    torch's safe loader can be told about ``argparse.Namespace``, which most fairseq checkpoints
    hold, only from torch 2.4 on (``fairseq_sam.host.repair`` does); before, an unpickler that knows
    nothing but those types takes its place.
    """
    if hasattr(torch.serialization, "add_safe_globals"):
        return torch.load(path, map_location="cpu", weights_only=True)
    return torch.load(path, map_location="cpu", pickle_module=RestrictedPickle)


class _RestrictedUnpickler(pickle.Unpickler):
    """Refuses every global that a checkpoint has no use for."""

    _HARMLESS: ClassVar[Dict[Tuple[str, str], Any]] = {
        ("argparse", "Namespace"): argparse.Namespace,
        ("collections", "OrderedDict"): collections.OrderedDict,
        ("_codecs", "encode"): codecs.encode,
    }
    _HARMLESS_TORCH = re.compile(
        r"torch(\._utils)? (_rebuild_(tensor_v2|parameter)|Size|device|b?float\d*|double|half|"
        r"u?int\d+|long|bool|\w+Storage)"
    )
    _HARMLESS_NUMPY = re.compile(
        r"numpy(\._?core\.multiarray)? (ndarray|dtype|_reconstruct|scalar)"
    )

    def find_class(self, module: str, name: str) -> Any:
        """Returns a harmless global, or raises ``pickle.UnpicklingError``."""
        if (module, name) in self._HARMLESS:
            return self._HARMLESS[module, name]
        for pattern in (self._HARMLESS_TORCH, self._HARMLESS_NUMPY):
            if pattern.fullmatch(f"{module} {name}"):
                return super().find_class(module, name)
        raise pickle.UnpicklingError(f"refused to load {module}.{name}")


class RestrictedPickle:
    """What ``torch.load(pickle_module=...)`` needs of a pickle module, without arbitrary code."""

    __name__ = "RestrictedPickle"
    Unpickler = _RestrictedUnpickler

    @staticmethod
    def load(stream: Any, **options: Any) -> Any:
        """Unpickles one object."""
        return _RestrictedUnpickler(stream, **options).load()


def last_checkpoints(
    directory: PathLike, count: int, *, by: str = "epoch", upper_bound: Optional[int] = None
) -> List[Path]:
    """Finds the last checkpoints in a ``--save-dir``.

    Args:
        directory: where they are.
        count: how many.
        by: ``"epoch"`` for ``checkpoint7.pt``, ``"update"`` for ``checkpoint_3_1500.pt``.
        upper_bound: ignore those of a later epoch or update.

    Returns:
        Their paths, oldest first.

    Raises:
        CheckpointError: there is no such directory, or it has fewer.
    """
    pattern = {"epoch": _EPOCH_NAME, "update": _UPDATE_NAME}[by]
    try:
        names = os.listdir(directory)
    except OSError as error:
        raise CheckpointError(f"{directory}: {error.strerror}") from None
    found = []
    for name in names:
        match = pattern.fullmatch(name)
        if match and (upper_bound is None or int(match.group(1)) <= upper_bound):
            found.append((int(match.group(1)), name))
    if len(found) < count:
        raise CheckpointError(
            f"{directory}: {count} {by} checkpoints asked for, {len(found)} there"
        )
    return [Path(directory) / name for _, name in sorted(found)[-count:]]


def write_checkpoint(state: Mapping[str, Any], path: PathLike) -> None:
    """Writes a checkpoint so that ``path`` is either as it was before or whole.

    Raises:
        CheckpointError: the file cannot be written.
    """
    target = Path(path)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.incomplete")
    try:
        with open(temporary, "wb") as stream:
            torch.save(dict(state), stream)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, target)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot write ({error.strerror})") from None
    finally:
        if temporary.exists():
            temporary.unlink()
