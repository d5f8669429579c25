"""Averages of fairseq checkpoints.

The mean of the weights of the last epochs usually translates better than the last weights alone
(Vaswani et al. 2017, section 6.1; the GA-SAM paper averages the last 10 epochs). Files are read
one at a time with torch's safe loader, so the memory needed is that of one checkpoint plus one
accumulator, whatever their number.

What the result keeps: ``args``, ``cfg``, ``task_state`` and ``optimizer_history`` of the *last*
input, so ``fairseq-generate``, ``--finetune-from-model`` and ``--restore-file`` read it. What it
drops: the optimizer's state and the EMA copy, which belong to no averaged weights and are
two thirds or more of a file.
"""

from __future__ import annotations

import os
from typing import Any, Callable, Dict, Mapping, Optional, Sequence, Tuple

import torch
from torch import Tensor

from fairseq_sam.checkpoints.checkpoint_files import CheckpointError, PathLike, read_checkpoint

_AVERAGED_PARTS = ("model", "criterion")
_HALF_DTYPES = (torch.float16, torch.bfloat16)
_MOST_REPEATED = 1 << 24  # elements of a tensor that may show the same memory several times


class RunningMean:
    """The mean of state dicts that arrive one by one.

    Floating point tensors are summed in ``dtype``; anything else (integer and bool buffers such as
    BatchNorm's batch counter, whose mean has no meaning) keeps the last value. Names that share one
    tensor in the first state dict (tied embeddings) share one in the mean.

    Args:
        dtype: type of the sums, ``torch.float64`` or ``torch.float32``.

    >>> mean = RunningMean()
    >>> mean.add({"w": torch.tensor([1.0, 2.0])})
    >>> mean.add({"w": torch.tensor([3.0, 2.0])})
    >>> mean.result()
    {'w': tensor([2., 2.])}
    """

    def __init__(self, dtype: torch.dtype = torch.float64) -> None:
        self.dtype = dtype
        self.count = 0
        self._like: Dict[str, Tuple[torch.Size, torch.dtype]] = {}
        self._tied_to: Dict[str, str] = {}
        self._sums: Dict[str, Tensor] = {}
        self._kept: Dict[str, Any] = {}

    def add(self, state: Mapping[str, Any]) -> None:
        """Adds one state dict.

        Raises:
            ValueError: its names, shapes, types or ties differ from the first one's.
        """
        if self.count == 0:
            self._start(state)
        else:
            self._check(state)
        for name, value in state.items():
            if not _is_averaged(value):
                self._kept[name] = value
            elif self._tied_to[name] == name:
                if name in self._sums:
                    self._sums[name].add_(value)
                else:
                    self._sums[name] = value.to(self._sum_dtype(value), copy=True)
        self.count += 1

    def result(self) -> Dict[str, Any]:
        """Returns the mean, in the order of the first state dict.

        Half-precision tensors come back as float32 (their mean has more digits than they have, and
        fairseq converts to the model's type on loading); others keep their type.
        """
        if self.count == 0:
            raise ValueError("nothing to average")
        means: Dict[str, Tensor] = {}
        for name, total in self._sums.items():
            dtype = self._like[name][1]
            target = torch.float32 if dtype in _HALF_DTYPES else dtype
            means[name] = (total / self.count).to(target)
        return {
            name: means[self._tied_to[name]] if name in self._tied_to else self._kept[name]
            for name in self._like
        }

    def _sum_dtype(self, value: Tensor) -> torch.dtype:
        return torch.complex128 if value.is_complex() else self.dtype

    def _start(self, state: Mapping[str, Any]) -> None:
        first_with: Dict[Any, str] = {}
        for name, value in state.items():
            self._like[name] = _signature(value)
            if _is_averaged(value):
                self._tied_to[name] = first_with.setdefault(_storage_key(value, name), name)

    def _check(self, state: Mapping[str, Any]) -> None:
        missing = [name for name in self._like if name not in state]
        extra = [name for name in state if name not in self._like]
        if missing or extra:
            raise ValueError(_describe_keys(missing, extra))
        for name, value in state.items():
            shape, dtype = _signature(value)
            if (shape, dtype) != self._like[name]:
                first_shape, first_dtype = self._like[name]
                raise ValueError(
                    f"{name} is {tuple(shape)} {dtype}, not {tuple(first_shape)} {first_dtype}"
                )
        for name, owner in self._tied_to.items():
            if owner != name and not torch.equal(state[name], state[owner]):
                raise ValueError(f"{name} and {owner} differ, but are one tensor in the first")


def average_checkpoints(
    paths: Sequence[PathLike],
    *,
    dtype: torch.dtype = torch.float64,
    on_read: Optional[Callable[[str], object]] = None,
) -> Dict[str, Any]:
    """Averages the weights of fairseq checkpoints.

    Args:
        paths: the files, oldest first; the last one gives everything that is not averaged.
        dtype: type of the sums.
        on_read: called with each path before it is read (to show progress).

    Returns:
        A checkpoint that fairseq can load, without optimizer state.

    Raises:
        CheckpointError: a file is missing, damaged, no fairseq checkpoint, or does not match the
            first one.
    """
    if not paths:
        raise CheckpointError("no checkpoints to average")
    means = {part: RunningMean(dtype) for part in _AVERAGED_PARTS}
    kept: Dict[str, Any] = {}
    for path in paths:
        if on_read is not None:
            on_read(os.fspath(path))
        kept = _without_stale_copies(read_checkpoint(path))
        for part, mean in means.items():
            _add_part(mean, kept.pop(part, None), path, os.fspath(paths[0]), part)
    return _assemble(kept, means, paths)


def _is_averaged(value: Any) -> bool:
    return isinstance(value, Tensor) and (value.is_floating_point() or value.is_complex())


def _signature(value: Any) -> Tuple[torch.Size, Any]:
    return (value.shape, value.dtype) if isinstance(value, Tensor) else (torch.Size(), type(value))


def _storage_key(value: Tensor, name: str) -> Any:
    if value.numel() == 0:
        return name
    return (value.data_ptr(), value.dtype, tuple(value.shape), value.stride())


def _describe_keys(missing: Sequence[str], extra: Sequence[str]) -> str:
    parts = []
    for what, names in (("lacks", missing), ("adds", extra)):
        if names:
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            parts.append(f"{what} {', '.join(names[:3])}{more}")
    return "; ".join(parts)


def _without_stale_copies(state: Dict[str, Any]) -> Dict[str, Any]:
    """Drops what belongs to one set of weights only: the optimizer's state and the EMA copy."""
    state.pop("last_optimizer_state", None)
    extra = state.get("extra_state")
    if isinstance(extra, dict):
        state["extra_state"] = {k: v for k, v in extra.items() if not str(k).startswith("ema")}
    return state


def _add_part(mean: RunningMean, values: Any, path: PathLike, first: str, part: str) -> None:
    """Adds one part of a checkpoint; a criterion without parameters is stored as None."""
    if not isinstance(values, (Mapping, type(None))):
        raise CheckpointError(f"{path}: {part} is {type(values).__name__}, not a table of tensors")
    _check_is_stored(values or {}, path)
    try:
        mean.add(values or {})
    except ValueError as error:
        raise CheckpointError(f"{path}: {part} does not match {first}: {error}") from None
    except (ArithmeticError, MemoryError, RuntimeError, TypeError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise CheckpointError(f"{path}: {part} cannot be averaged ({reason})") from None


def _check_is_stored(values: Mapping[str, Any], path: PathLike) -> None:
    """Refuses a few numbers that are repeated until their mean fits into no memory."""
    for name, value in values.items():
        if not _is_averaged(value) or value.numel() <= _MOST_REPEATED:
            continue
        if value.layout == torch.strided and not _holds_all(value):
            raise CheckpointError(
                f"{path}: {name} has {value.numel()} elements, of which most are not in the file"
            )


def _holds_all(value: Tensor) -> bool:
    """Returns whether a tensor's memory has an element for each of its own."""
    storage = value.untyped_storage() if hasattr(value, "untyped_storage") else value.storage()
    size = storage.nbytes() if hasattr(storage, "nbytes") else len(storage)
    return bool(size >= value.numel() * value.element_size())


def _assemble(
    kept: Dict[str, Any], means: Mapping[str, RunningMean], paths: Sequence[PathLike]
) -> Dict[str, Any]:
    """Puts the means back into the last checkpoint."""
    state = dict(kept)
    for part, mean in means.items():
        state[part] = mean.result() or None
    extra = state.get("extra_state")
    extra = dict(extra) if isinstance(extra, Mapping) else {}
    extra["averaged_from"] = [os.path.basename(os.fspath(path)) for path in paths]
    state["extra_state"] = extra
    return state
