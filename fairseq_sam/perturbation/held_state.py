"""What modules hold and a pass may change: buffers, attributes, and what these contain."""

import collections
import contextlib
import random
from typing import Any, Callable, Dict, Iterator, List

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from fairseq_sam.perturbation import foreach


class HeldState:
    """What some objects hold.

    Args:
        holders: modules, without their submodules, and other objects.
    """

    def __init__(self, holders: List[Any]) -> None:
        self._plain = [
            (names, {name: value for name, value in names.items() if type(value) in _PLAIN})
            for names in (vars(h) for h in holders if not isinstance(h, nn.Module))
        ]
        modules = [h for h in holders if isinstance(h, nn.Module) and not _is_scripted(h)]
        dictionaries = [module.__dict__ for module in modules] + [m._buffers for m in modules]
        self._names = [(names, dict(names)) for names in dictionaries]
        self._kept: List[Callable[[], None]] = []
        tensors: Dict[int, Tensor] = {}
        seen = set()
        for _, saved in self._names:
            for name in saved.keys() - _OF_EVERY_MODULE:
                value = saved[name]
                if isinstance(value, Tensor):
                    tensors[id(value)] = value
                elif type(value) in _KEEPERS and id(value) not in seen:
                    seen.add(id(value))
                    self._kept.append(_KEEPERS[type(value)](value))
        self._kept += [_keep_scripted_buffers(h) for h in holders if _is_scripted(h)]
        self._values = [(t, t.detach().clone()) for t in tensors.values() if _can_be_kept(t)]

    @contextlib.contextmanager
    def taking_over(self) -> Iterator[None]:
        """Context of what becomes part of the state: what is set by name, and changes of tensors.

        (What it does to lists and generators does not.)
        """
        names_before = [dict(names) for names, _ in self._names]
        before = [tensor.detach().clone() for tensor, _ in self._values]
        yield
        for (names, saved), old in zip(self._names, names_before):
            for name, value in names.items():
                if name not in old or old[name] is not value:
                    saved[name] = value
        for (tensor, value), earlier in zip(self._values, before):
            if tensor.shape == value.shape == earlier.shape:
                now = tensor.detach()
                value.copy_(torch.where(now == earlier, value, now))

    def restore(self) -> None:
        """Puts everything back, past autograd, which has noted the buffers."""
        for names, saved in self._names:
            names.update(saved)
            if len(names) > len(saved):
                for name in names.keys() - saved.keys():
                    del names[name]
        for names, saved in self._plain:
            for name, value in [each for each in names.items() if type(each[1]) in _PLAIN]:
                if name not in saved:
                    del names[name]
                elif value is not saved[name]:
                    names[name] = saved[name]
        for put_back in self._kept:
            put_back()
        alike = [each for each in self._values if each[0].shape == each[1].shape]
        with torch.no_grad():
            foreach.copy_([tensor.data for tensor, _ in alike], [value for _, value in alike])
        for tensor, value in self._values:
            if tensor.shape != value.shape:
                tensor.data = value.clone()


_PLAIN = (int, float, bool, str, type(None))
"""Of objects that are no modules, a task, only such values are put back: other threads use it."""

_OF_EVERY_MODULE = frozenset(vars(nn.Module()))


def _is_scripted(holder: Any) -> bool:
    return isinstance(holder, torch.jit.ScriptModule)


def _can_be_kept(tensor: Tensor) -> bool:
    """Not what has no values yet, what is part of a graph, and what is one value expanded."""
    if is_lazy(tensor) or tensor.grad_fn is not None:
        return False
    return tensor.layout != torch.strided or 0 not in tensor.stride() or tensor.numel() < 2


def _keep_scripted_buffers(module: Any) -> Callable[[], None]:
    saved = {name: b.detach().clone() for name, b in module.named_buffers(recurse=False)}

    def put_back() -> None:
        for name, value in saved.items():
            getattr(module, name).data.copy_(value)

    return put_back


def _keep_list(values: Any) -> Callable[[], None]:
    saved = list(values)

    def put_back() -> None:
        if len(values) != len(saved) or any(a is not b for a, b in zip(values, saved)):
            values.clear()
            values.extend(saved)

    return put_back


def _keep_dictionary(values: Any) -> Callable[[], None]:
    saved = dict(values)

    def put_back() -> None:
        values.update(saved)
        for key in values.keys() - saved.keys():
            del values[key]

    return put_back


def _keep_set(values: Any) -> Callable[[], None]:
    saved = set(values)

    def put_back() -> None:
        values.difference_update(values - saved)
        values.update(saved)

    return put_back


def _keep_generator(generator: Any) -> Callable[[], None]:
    state = generator.get_state()

    def put_back() -> None:
        generator.set_state(state)

    return put_back


def _keep_numpy_generator(generator: Any) -> Callable[[], None]:
    state = generator.bit_generator.state

    def put_back() -> None:
        generator.bit_generator.state = state

    return put_back


def _keep_python_generator(generator: Any) -> Callable[[], None]:
    state = generator.getstate()
    return lambda: generator.setstate(state)


_KEEPERS: Dict[type, Callable[[Any], Callable[[], None]]] = {
    list: _keep_list,
    collections.deque: _keep_list,
    dict: _keep_dictionary,
    collections.OrderedDict: _keep_dictionary,
    collections.defaultdict: _keep_dictionary,
    collections.Counter: _keep_dictionary,
    set: _keep_set,
    torch.Generator: _keep_generator,
    np.random.Generator: _keep_numpy_generator,
    np.random.RandomState: _keep_generator,
    random.Random: _keep_python_generator,
}
"""How to keep what a module holds and a pass changes in place; by type."""
