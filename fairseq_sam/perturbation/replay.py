"""Everything that a pass may change, so that each pass of a step starts from the same state.

A sharpness-aware step runs a training step several times. What a pass leaves behind (the random
numbers it drew, running statistics, counters, memories of the batch before, weights that a hook
wrote) must not be what the next pass begins with, and after the step must be what a single pass at
w would have left. :class:`Replay` notes it, and puts it back (docs/how_it_works.md, "The replay").
"""

from __future__ import annotations

import collections
import contextlib
import copy
import dataclasses
import operator
import os
import random
import threading
import types
from typing import (
    Any,
    Callable,
    ContextManager,
    Dict,
    Iterable,
    Iterator,
    List,
    NamedTuple,
    Optional,
    Sequence,
    Set,
    Tuple,
)

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from fairseq_sam.perturbation import foreach


class Replay:
    """The state that the passes of one step share.

    It covers the random numbers; of what is called, modules and a task, the buffers and attributes
    (counters, memories of the batch before, generators of their own) with what lists, dictionaries
    and tuples among them hold, however deep; and the weights that a pass writes into (the hook of
    ``--quant-noise-pq``, a teacher that follows). The state when it is made is the one that each
    pass starts from. Not seen are slots, iterators, and the attributes of other objects in them.

    Args:
        holders: what is called in a pass.
        tensors: tensors on the devices of interest, usually the weights.
        written: weights that passes are known to write into.
    """

    def __init__(
        self, holders: Holders, tensors: Iterable[Tensor], written: Iterable[Tensor] = ()
    ) -> None:
        self._holders = holders
        self._tensors = list(tensors)
        self._random = RandomState(self._tensors)
        known = [*_weights_that_passes_write([*holders.modules, *holders.scripted]), *written]
        self._written = list({id(weight): weight for weight in known}.values())
        self._start = HeldState(self._holders, weights=self._tensors)
        self._began = False
        self._end: Optional[HeldState] = None
        self._end_weights: List[Tensor] = []
        self._end_random: Optional[RandomState] = None

    def once(self, function: Callable[[], Any]) -> None:
        """Calls a function within a pass, whose effect the later passes start from.

        For what a training step does that must happen once, and not again in its repetitions.
        """
        states = [self._start] if self._end is None else [self._start, self._end]
        with contextlib.ExitStack() as stack:
            for state in states:
                stack.enter_context(state.taking_over())
            function()

    @contextlib.contextmanager
    def one_pass(self, may_last: bool = True) -> Iterator[None]:
        """Context of a pass: it begins from the state that all passes begin from.

        What the first pass that ends well leaves is kept for :meth:`finish`.

        Args:
            may_last: whether this can be that pass.
        """
        if self._began:
            self._start.restore()
        # Before the first pass too: setting the state makes cuDNN draw its dropout masks anew.
        self._random.restore(first=not self._began)
        self._began = True
        before = [weight.detach().clone() for weight in self._written]
        try:
            yield
            if may_last and self._end is None:
                self._end = HeldState(self._holders, self._start)
                self._end_weights = [weight.detach().clone() for weight in self._written]
                self._end_random = RandomState(self._tensors)
        finally:
            with torch.no_grad():
                foreach.copy_(self._written, before)

    @contextlib.contextmanager
    def probing(self) -> Iterator[None]:
        """Context of a pass that is only looked at; it leaves no trace."""
        if self._began:
            self._start.restore()
        before = [weight.detach().clone() for weight in self._written]
        self._random.restore(first=not self._began)
        try:
            yield
        finally:
            self._start.restore()
            self._random.restore()
            with torch.no_grad():
                foreach.copy_(self._written, before)

    def unwrite(self, weights: Sequence[Tensor], before: Sequence[Tensor]) -> None:
        """Takes back what the first pass wrote into weights, until :meth:`finish`.

        Args:
            weights: some that it was not known to write into.
            before: their values before that pass.
        """
        self._written += weights
        if self._end is not None:
            self._end_weights += [weight.detach().clone() for weight in weights]
        with torch.no_grad():
            foreach.copy_(weights, before)

    def is_known(self, weight: Tensor) -> bool:
        """Returns whether passes are known to write into a weight."""
        return any(weight is each for each in self._written)

    def finish(self) -> None:
        """Leaves the state as after the first pass alone; as before it if there was none."""
        (self._end or self._start).restore()
        if self._end_random is not None:
            self._end_random.restore()
        with torch.no_grad():
            foreach.copy_(self._written[: len(self._end_weights)], self._end_weights)


class Holders(NamedTuple):
    """What may hold something that a pass changes, each once.

    Attributes:
        modules: modules, without their submodules.
        scripted: those that are compiled; of them the buffers can be seen.
        others: other objects.
    """

    modules: List[nn.Module]
    scripted: List[nn.Module]
    others: List[Any]

    @classmethod
    def among(cls, called: Iterable[Any]) -> Holders:
        """Finds them in what is called: modules with all their submodules, and other objects."""
        found = cls([], [], [])
        seen = set()
        waiting = list(called)[::-1]
        while waiting:
            each = waiting.pop()
            if id(each) in seen:
                continue
            seen.add(id(each))
            if not isinstance(each, nn.Module):
                found.others.append(each)
            elif isinstance(each, torch.jit.ScriptModule):
                found.scripted.append(each)
                waiting += each.children()
            else:
                found.modules.append(each)
                waiting += [child for child in each._modules.values() if child is not None]
        return found

    def weights(self) -> List[int]:
        """Returns what changes when the weights become others; quicker than their names."""
        held = [module._parameters for module in (*self.modules, *self.scripted)]
        return [id(weight) for names in held for weight in names.values()]


class HeldState:
    """What some objects hold.

    Args:
        holders: the objects.
        earlier: what they held before; its copies serve for what is as it was.
        weights: what has other names among the attributes is not held (default: as ``earlier``).
    """

    def __init__(
        self,
        holders: Holders,
        earlier: Optional[HeldState] = None,
        weights: Iterable[Tensor] = (),
    ) -> None:
        own = {_place(weight) for weight in weights} - {None}
        self._places: Set[Optional[int]] = own if earlier is None else earlier._places
        self._others = [(each.__dict__, dict(each.__dict__)) for each in holders.others]
        if earlier is not None:
            for (_, saved), (_, first) in zip(self._others, earlier._others):
                for name in [
                    new for new in saved.keys() - first.keys() if not _is_taken_away(saved[new])
                ]:
                    del saved[name]
        modules = holders.modules
        dictionaries: List[Dict[str, Any]] = [module.__dict__ for module in modules]
        dictionaries += [module._buffers for module in modules]
        self._names = [(names, dict(names)) for names in dictionaries]
        self._kept: List[Tuple[Any, Any, Keeping]] = []
        self._values: List[Tuple[Tensor, Tensor]] = []
        before = [] if earlier is None else earlier._values
        self._copies = {id(tensor): value for tensor, value in before}
        self._seen = {id(getattr(m, name)) for m in modules for name in CONSTANTS.get(type(m), ())}
        for _, saved in self._names:
            self._hold([saved[name] for name in saved.keys() - _OF_EVERY_MODULE])
        for _, saved in self._others:
            self._hold([value for value in saved.values() if not _is_table(value)])
        self._kept += [(each, _SCRIPTED.note(each), _SCRIPTED) for each in holders.scripted]

    def _hold(self, waiting: List[Any]) -> None:
        """Notes what values hold that can be changed in place."""
        while waiting:
            value = waiting.pop()
            kind = type(value)
            if kind in _UNCHANGING or id(value) in self._seen:
                continue
            self._seen.add(id(value))
            if issubclass(kind, Tensor):
                may_be = not isinstance(value, nn.Parameter) and _can_be_kept(value)
                if may_be and _place(value) not in self._places:
                    copied = _copy_of_value(value, self._copies.get(id(value)))
                    self._values.append((value, copied))
            else:
                keeping = _keeping_of(value)
                if keeping is not None:
                    self._kept.append((value, keeping.note(value), keeping))
                waiting += _held_by(value)

    @contextlib.contextmanager
    def taking_over(self) -> Iterator[None]:
        """Context of what becomes part of the state: attributes set, tensors and lists changed.

        (Numbers that it draws from generators do not.)
        """
        by_name = [*self._names, *self._others]
        names_before = [dict(names) for names, _ in by_name]
        before = [tensor.detach().clone() for tensor, _ in self._values]
        kept_before = [keeping.note(value) for value, _, keeping in self._kept]
        yield
        for (names, saved), old in zip(by_name, names_before):
            if _same_dictionary(names, old):
                continue
            new = {n: value for n, value in names.items() if n not in old or old[n] is not value}
            saved.update(new)
            self._hold([*new.values()])
        for number, ((value, _, keeping), noted) in enumerate(zip(self._kept, kept_before)):
            now = keeping.note(value)
            if not keeping.is_same(now, noted):
                self._kept[number] = (value, now, keeping)
        for (tensor, saved_value), earlier in zip(self._values, before):
            alike = tensor.shape == saved_value.shape == earlier.shape
            if tensor.layout != torch.strided or _is_seen_equal(tensor, earlier) or not alike:
                continue
            now = tensor.detach()
            saved_value.copy_(torch.where(now == earlier, saved_value, now))

    def restore(self) -> None:
        """Puts everything back, past autograd, which has noted the buffers."""
        for names, saved in self._names:
            names.update(saved)
            if len(names) > len(saved):
                for name in names.keys() - saved.keys():
                    del names[name]
        for names, saved in self._others:
            _put_back_by_name(names, saved)
        for value, noted, keeping in self._kept:
            keeping.put_back(value, noted)
        # What is as it was may be a file's, which cannot be written.
        changed = [each for each in self._values if not _is_seen_equal(*each)]
        alike = [each for each in changed if each[0].shape == each[1].shape]
        with torch.no_grad():
            foreach.copy_([tensor.data for tensor, _ in alike], [value for _, value in alike])
        for tensor, value in changed:
            if tensor.shape != value.shape:
                tensor.data = value.clone()


_PLAIN: Tuple[type, ...] = (int, float, bool, str, complex, bytes, type(None))

_UNCHANGING = frozenset((*_PLAIN, types.FunctionType, types.MethodType))

_TABLE = 1000
"""Containers with more entries are tables that no pass changes, as far as that can be avoided.

Of a task they are left alone; of a module their own entries are held, not what these hold.
"""

CONSTANTS: Dict[type, Sequence[str]] = {}
"""Names of tensors that modules of a type hold as attributes and replace rather than write into.

No copies are made of them. Whoever knows such modules enters them.
"""

_OF_EVERY_MODULE = frozenset(vars(nn.Module()))


def _put_back_by_name(names: Dict[str, Any], saved: Dict[str, Any]) -> None:
    """Puts the attributes of an object that is no module back, as far as a pass may have set them.

    Other threads use a task. So new lists stay, and objects in the place of others or of nothing.
    """
    for name, now in list(names.items()):
        if name not in saved:
            if _is_taken_away(now):
                del names[name]
        elif now is not saved[name]:
            was = saved[name]
            if isinstance(now, _NOTED) or (was is not None and isinstance(was, _NOTED)):
                names[name] = was
    for name in saved.keys() - names.keys():
        names[name] = saved[name]


def _is_taken_away(new: Any) -> bool:
    """Whether an attribute that was not there before is taken away again."""
    return isinstance(new, (*_PLAIN, np.generic, Tensor))


def _is_table(value: Any) -> bool:
    return issubclass(type(value), (*_CONTAINERS, tuple)) and len(value) > _TABLE


def _held_by(value: Any) -> Iterable[Any]:
    """Returns what a container holds, nothing if it holds only what cannot change."""
    kind = type(value)
    if _is_table(value):
        return ()
    if issubclass(kind, dict):
        value = dict.values(value)
    elif kind not in _CONTAINERS and not issubclass(kind, tuple):
        return ()
    return () if _UNCHANGING.issuperset(map(type, value)) else value


def _keeping_of(value: Any) -> Optional[Keeping]:
    if type(value) is np.ndarray and not _has_own_memory(value):
        return None
    return _KEEPING.get(type(value))


def _has_own_memory(array: Any) -> bool:
    """Whether an array may be written, and is of numpy's memory: no weight's, no file's."""
    writeable = array.flags.writeable
    while isinstance(array.base, np.ndarray):
        array = array.base
    return writeable and array.base is None and type(array) is np.ndarray


def _can_be_kept(tensor: Tensor) -> bool:
    """Not what has no values yet, is part of a graph, or has fewer values than entries.

    Nor views that compute: complex conjugates, and subclasses that stand for other tensors.
    """
    if is_lazy(tensor) or tensor.grad_fn is not None or tensor.is_nested or tensor.is_conj():
        return False
    if type(tensor).__torch_dispatch__ is not Tensor.__torch_dispatch__:
        return False
    if tensor.layout != torch.strided or tensor.is_meta:
        return True
    return tensor.numel() * tensor.element_size() <= int(_storage(tensor).nbytes())


def _place(tensor: Tensor) -> Optional[int]:
    """Returns where the memory of a tensor is, None where it is in no one place.

    Of another name of a weight it is the weight's.
    """
    if is_lazy(tensor) or tensor.is_meta or tensor.layout != torch.strided:
        return None
    return int(_storage(tensor).data_ptr())


def _storage(tensor: Tensor) -> Any:
    modern = hasattr(tensor, "untyped_storage")  # torch >= 2
    return tensor.untyped_storage() if modern else tensor.storage()


def _copy_of_value(tensor: Tensor, earlier: Optional[Tensor]) -> Tensor:
    """Returns the earlier copy where it still serves."""
    if earlier is not None and _is_seen_equal(tensor, earlier):
        return earlier
    return tensor.detach().clone()


def _is_seen_equal(tensor: Tensor, other: Tensor) -> bool:
    """Whether two tensors are equal, looked at only where that does not wait for a GPU."""
    can_look = tensor.device.type == "cpu" and tensor.layout == torch.strided
    if not can_look or tensor.dtype != other.dtype:
        return False
    try:
        return torch.equal(tensor, other)
    except RuntimeError:  # formats that torch only stores
        return False


class Keeping(NamedTuple):
    """How to keep what is changed in place.

    Attributes:
        note: returns what a value holds.
        put_back: makes a value hold what was noted.
        is_same: whether two notes are the same.
    """

    note: Callable[[Any], Any]
    put_back: Callable[[Any, Any], Any]
    is_same: Callable[[Any, Any], bool]


def _same_entries(one: Any, other: Any) -> bool:
    return len(one) == len(other) and all(map(operator.is_, one, other))


def _same_dictionary(one: Dict[Any, Any], other: Dict[Any, Any]) -> bool:
    """Of the same order, too: some forget their first entry."""
    return _same_entries(one.values(), other.values()) and list(one) == list(other)


def _put_list_back(values: Any, saved: Any) -> None:
    if not _same_entries(values, saved):
        values.clear()
        values.extend(saved)


def _put_dictionary_back(values: Any, saved: Any) -> None:
    if not _same_dictionary(values, saved):
        values.clear()
        values.update(saved)


def _put_set_back(values: Any, saved: Any) -> None:
    values.difference_update(values - saved)
    values.update(saved)


def _put_array_back(values: Any, saved: Any) -> None:
    if values.flags.writeable and values.shape == saved.shape:
        values[...] = saved


def _same_bytes(one: Any, other: Any) -> bool:
    return bool(one.tobytes() == other.tobytes())


def _note_buffers(module: Any) -> Dict[str, Tensor]:
    return {name: each.detach().clone() for name, each in module.named_buffers(recurse=False)}


def _put_buffers_back(module: Any, saved: Dict[str, Tensor]) -> None:
    for name, value in saved.items():
        getattr(module, name).data.copy_(value)


def _note_numpy_generator(generator: Any) -> Any:
    return generator.bit_generator.state


def _put_numpy_generator_back(generator: Any, state: Any) -> None:
    generator.bit_generator.state = state


def _no_look(one: Any, other: Any) -> bool:
    return True


_LIST = Keeping(list, _put_list_back, _same_entries)
_DICTIONARY = Keeping(dict, _put_dictionary_back, _same_dictionary)
_CONTAINERS: Dict[type, Keeping] = {
    list: _LIST,
    collections.deque: _LIST,
    dict: _DICTIONARY,
    collections.OrderedDict: _DICTIONARY,
    collections.defaultdict: _DICTIONARY,
    collections.Counter: _DICTIONARY,
    set: Keeping(set, _put_set_back, operator.eq),
}

_KEEPING: Dict[type, Keeping] = {
    **_CONTAINERS,
    np.ndarray: Keeping(np.copy, _put_array_back, _same_bytes),
    torch.Generator: Keeping(torch.Generator.get_state, torch.Generator.set_state, _no_look),
    np.random.Generator: Keeping(_note_numpy_generator, _put_numpy_generator_back, _no_look),
    np.random.RandomState: Keeping(
        np.random.RandomState.get_state, np.random.RandomState.set_state, _no_look
    ),
    random.Random: Keeping(random.Random.getstate, random.Random.setstate, _no_look),
}
"""How to keep what is held and a pass changes in place; by type.

What a function draws from generators :meth:`HeldState.taking_over` does not take over.
"""

_SCRIPTED = Keeping(_note_buffers, _put_buffers_back, _no_look)

_NOTED: Tuple[type, ...] = (*_PLAIN, *_CONTAINERS, frozenset, tuple, np.generic, np.ndarray, Tensor)
"""Types of attributes by which a pass may note something."""


class RandomState:
    """The state of every generator that a forward pass may draw from.

    Covers torch on the CPU and on the CUDA devices given, numpy (span masks of speech models) and
    Python's own. The states live on the host: saving and restoring them does not wait for a GPU.

    A data loader's thread may draw from numpy's and Python's generators at the same time. So these
    two are only set where something was drawn since they were noted, and numpy's only while
    :data:`numpy_lock` is held.

    Args:
        tensors: tensors on the devices of interest, usually the weights.
    """

    def __init__(self, tensors: Iterable[Tensor]) -> None:
        devices = {tensor.device for tensor in tensors if tensor.is_cuda}
        self._cpu = torch.get_rng_state()
        self._cuda: Dict[torch.device, Tensor] = {
            device: torch.cuda.get_rng_state(device) for device in devices
        }
        with numpy_lock():
            self._numpy: Any = np.random.get_state()
        self._python = random.getstate()

    def restore(self, first: bool = False) -> None:
        """Sets every generator back to where it was.

        Args:
            first: nothing was drawn yet.
        """
        torch.set_rng_state(self._cpu)
        for device, state in self._cuda.items():
            torch.cuda.set_rng_state(state, device)
        if first:
            return
        with numpy_lock():
            if not _same_numpy_state(np.random.get_state(), self._numpy):
                np.random.set_state(self._numpy)
        if random.getstate() != self._python:
            random.setstate(self._python)


_numpy_lock = threading.RLock()


def numpy_lock() -> ContextManager[Any]:
    """Returns the lock of numpy's global generator, for whoever sets its state for a while."""
    return _numpy_lock


def _forget_lock() -> None:
    global _numpy_lock
    _numpy_lock = threading.RLock()


if hasattr(os, "register_at_fork"):  # a forked data loader must not wait for its parent's threads
    os.register_at_fork(after_in_child=_forget_lock)


def _same_numpy_state(one: Any, other: Any) -> bool:
    return bool(one[2:] == other[2:] and one[0] == other[0] and np.array_equal(one[1], other[1]))


def copy_batch(value: Any) -> Any:
    """Returns a copy of nested containers, tensors and arrays; other things are shared.

    A criterion or task that adds rows to a batch, pops a key or writes into the target then changes
    a copy of its own.

    >>> sample = {"net_input": {"src_tokens": torch.zeros(1)}, "id": [7]}
    >>> copy = copy_batch(sample)
    >>> _ = copy["net_input"].pop("src_tokens").fill_(1), copy["id"].append(8)
    >>> sample
    {'net_input': {'src_tokens': tensor([0.])}, 'id': [7]}
    """
    return mapped(value, _copy_of_leaf)


def _copy_of_leaf(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return value.copy()
    return value.clone() if isinstance(value, Tensor) else value


def mapped(value: Any, function: Callable[[Any], Any]) -> Any:
    """Returns nested containers (also named tuples and data classes) with other things in them.

    Args:
        value: the containers.
        function: is called for each thing in them.

    >>> mapped({"a": [1, (2,)]}, lambda number: number + 1)
    {'a': [2, (3,)]}
    """
    result: Any
    if isinstance(value, dict):
        result = copy.copy(value)
        for key, entry in value.items():
            result[key] = mapped(entry, function)
        return result
    if isinstance(value, list):
        result = copy.copy(value)
        result[:] = [mapped(entry, function) for entry in value]
        return result
    if isinstance(value, tuple):
        entries = [mapped(entry, function) for entry in value]
        return type(value)(*entries) if hasattr(value, "_fields") else type(value)(entries)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        result = copy.copy(value)
        for field in dataclasses.fields(value):
            entry = mapped(getattr(value, field.name), function)
            object.__setattr__(result, field.name, entry)
        return result
    return function(value)


def autocast_dtype(device: torch.device) -> Optional[torch.dtype]:
    """Returns the format that autocast computes in, None where it is off."""
    if hasattr(torch, "get_autocast_dtype"):  # torch >= 2.4
        known = torch.amp.is_autocast_available(device.type)
        enabled = known and torch.is_autocast_enabled(device.type)
        return torch.get_autocast_dtype(device.type) if enabled else None
    if device.type == "cuda" and torch.is_autocast_enabled():
        return torch.get_autocast_gpu_dtype()
    if device.type == "cpu" and torch.is_autocast_cpu_enabled():
        return torch.get_autocast_cpu_dtype()
    return None


def autocast_off(device: torch.device) -> ContextManager[Any]:
    """Backward passes run outside autocast, which chooses their formats by the forward's."""
    if autocast_dtype(device) is None:
        return contextlib.nullcontext()
    return torch.autocast(device.type, enabled=False)


def _weights_that_passes_write(modules: Iterable[nn.Module]) -> List[Tensor]:
    """Returns the weights of modules that have a hook before their forward pass.

    torch's own two, of weight and spectral norm, only write attributes. And those of lookups that
    shorten the rows that are too long (``max_norm``), which some passes do and some do not.
    """
    found: List[Tensor] = []
    for module in modules:
        hooks = getattr(module, "_forward_pre_hooks", None)
        writes = hooks and any(
            not isinstance(h, (WeightNorm, SpectralNorm)) for h in hooks.values()
        )
        is_lookup = isinstance(module, (nn.Embedding, nn.EmbeddingBag))
        if writes or (is_lookup and module.max_norm is not None):
            found += [weight for weight in module.parameters(recurse=False) if not is_lazy(weight)]
    return found
