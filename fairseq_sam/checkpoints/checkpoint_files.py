"""Finding, reading and writing fairseq's checkpoint files, with nothing half done.

Reading uses torch's safe loader only; a writer that is killed leaves the old file or none.
"""

from __future__ import annotations

import os
import pickle
import re
import zipfile
from pathlib import Path
from typing import Any, Dict, List, Mapping, Optional, Tuple

import torch

from fairseq_sam import FairseqSamError
from fairseq_sam.files.reading import PathLike, check_regular
from fairseq_sam.files.writing import replaced

_EPOCH_NAME = re.compile(r"checkpoint(\d+)\.pt")
_UPDATE_NAME = re.compile(r"checkpoint_\d+_(\d+)\.pt")


class CheckpointError(FairseqSamError):
    """A checkpoint that cannot be used; the text is one line that names the file."""


class _UnreadableError(CheckpointError, pickle.UnpicklingError):
    """A file that torch refuses; fairseq sees the type of error that torch raises."""


def read_checkpoint(path: PathLike) -> Dict[str, Any]:
    """Reads a fairseq checkpoint with torch's safe loader.

    Raises:
        CheckpointError: the file is missing, damaged, unsafe or no fairseq checkpoint.
    """
    try:
        check_regular(os.stat(path), path)  # to open a FIFO is to wait
        state = load_safely(os.fspath(path), map_location="cpu")
    except CheckpointError:
        raise
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such file") from None
    except OSError as error:
        raise CheckpointError(f"{path}: {error.strerror or error}") from None
    except Exception as error:  # torch raises half a dozen types for a damaged file
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise CheckpointError(f"{path}: damaged, or not a checkpoint ({reason})") from error
    if not isinstance(state, dict) or not isinstance(state.get("model"), dict):
        raise CheckpointError(f"{path}: not a fairseq checkpoint (it has no 'model')")
    return state


def load_safely(file: Any, **options: Any) -> Any:
    """Does what ``torch.load`` does, for data only: code is refused by any version of torch.

    torch's safe loader knows few types.  Where it stops at a harmless one that fairseq writes (its
    dictionaries, the configuration as an object of omegaconf, and with torch < 2.4 even the command
    line), an unpickler that knows nothing but such types takes its place.

    Args:
        file: a path or an open file.
        options: those of ``torch.load``; ``weights_only`` and ``pickle_module`` have no effect.

    Raises:
        CheckpointError: the file holds code, or torch's safe loader cannot read it; also a
            ``pickle.UnpicklingError``.
        Exception: whatever else torch raises.
    """
    for ignored in ("weights_only", "pickle_module"):
        options.pop(ignored, None)
    start = file.tell() if hasattr(file, "tell") else None
    name = file if isinstance(file, (str, os.PathLike)) else getattr(file, "name", "a file")
    if _is_torchscript(file):
        raise _UnreadableError(f"{name}: holds a TorchScript program, which is code; refused")
    try:
        if start is not None:
            file.seek(start)
        try:
            return torch.load(file, weights_only=True, **options)
        except pickle.UnpicklingError as error:
            if not _is_harmless(*_refused_global(error)):
                raise
            if start is not None:
                file.seek(start)
            return torch.load(file, weights_only=False, pickle_module=RestrictedPickle, **options)
    except (pickle.UnpicklingError, RuntimeError) as error:
        refusal = _without_advice(error)
        if refusal is None:
            raise
        raise _UnreadableError(f"{name}: {refusal}") from None


def _is_torchscript(file: Any) -> bool:
    """Returns whether ``torch.load`` would take a file for a program, as it does before 2.6."""
    try:
        with zipfile.ZipFile(file) as archive:
            return any(name.endswith("/constants.pkl") for name in archive.namelist())
    except (OSError, ValueError, zipfile.BadZipFile):
        return False


_REFUSED_GLOBAL = re.compile(r"(?:GLOBAL|Unsupported class|refused to load) (\S+)\.(\S+)")


def _refused_global(error: Exception) -> Tuple[str, str]:
    """Returns module and name of what a loader refused, or two empty strings."""
    found = _REFUSED_GLOBAL.search(str(error))
    return (found.group(1), found.group(2)) if found else ("", "")


def _without_advice(error: Exception) -> Optional[str]:
    """Returns what torch says of a file, without how to load it all the same; None of others."""
    text = str(error)
    module, name = _refused_global(error)
    if name:
        return f"holds {_printable(f'{module}.{name}')}, which is code, not data; refused"
    if "weights_only" not in text and not isinstance(error, pickle.UnpicklingError):
        return None
    told = text.rpartition("WeightsUnpickler error:")[2].strip() or type(error).__name__
    reason = re.split(r"\. |\n", told)[0].rstrip(".")
    return f"damaged, or not a checkpoint ({_printable(reason)})"


def _printable(text: str) -> str:
    return "".join(letter if letter.isprintable() else "?" for letter in text)


def _is_harmless(module: str, name: str) -> bool:
    return any(pattern.fullmatch(f"{module} {name}") for pattern in _HARMLESS)


_HARMLESS = tuple(
    re.compile(pattern)
    for pattern in (
        r"argparse Namespace",
        r"collections (OrderedDict|defaultdict)",
        r"_codecs encode",
        r"(builtins|__builtin__) (dict|int|list|long|set)",
        r"typing Any",
        r"torch(\._utils)? (_rebuild_(tensor_v2|parameter)|Size|device|b?float\d*|double|half|"
        r"u?int\d+|long|bool|\w+Storage)",
        r"numpy(\._?core\.multiarray)? (ndarray|dtype|_reconstruct|scalar)",
        r"omegaconf\.(dictconfig DictConfig|listconfig ListConfig|base (Container)?Metadata)",
        r"omegaconf\.nodes (Any|Boolean|Float|Integer|String)Node",
        r"fairseq\.data\.dictionary Dictionary",
        r"fairseq\.(logging\.)?meters (Average|Stopwatch|Sum|Time)Meter",
    )
)


class _RestrictedUnpickler(pickle.Unpickler):
    """Refuses every global that a checkpoint has no use for."""

    def find_class(self, module: str, name: str) -> Any:
        """Returns a harmless global, or raises ``pickle.UnpicklingError``."""
        if _is_harmless(module, name):
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
    try:
        with replaced(path) as temporary, open(temporary, "wb") as stream:
            torch.save(dict(state), stream)
            stream.flush()
            if temporary.is_file():  # a device has nothing to flush
                os.fsync(stream.fileno())
    except (OSError, RuntimeError) as error:  # torch's archives raise either on a full disk
        reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
        raise CheckpointError(f"{path}: cannot write ({reason})") from None
