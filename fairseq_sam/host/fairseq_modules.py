"""Repairs of a kind of fault wherever it is among fairseq's modules, also those imported later.

Some faults are one habit in many places: ``eval`` of a string, a name that numpy has removed.  They
are looked up in the compiled code of each module, and the module is given another object under the
global name that its code reads.  Nothing outside fairseq sees that object.

Models, tasks and examples may be imported long after the plugin.  :class:`_Importer` looks on while
Python imports, and repairs a module of fairseq as soon as it has run.
"""

import dis
import functools
import importlib.abc
import logging
import os
import sys
import threading
import types
from importlib.machinery import ModuleSpec
from typing import Any, Callable, Iterator, List, NamedTuple, Optional, Sequence, Set, Tuple

from .patching import Repair

logger = logging.getLogger(__name__)

_NO_OPERATION = ("CACHE", "EXTENDED_ARG", "NOP", "PRECALL", "PUSH_NULL")
_ATTRIBUTE = ("LOAD_ATTR", "LOAD_METHOD")
_GLOBAL = ("LOAD_GLOBAL", "LOAD_NAME")


class ModuleRepair(NamedTuple):
    """A fault that any of fairseq's modules may have.

    Attributes:
        fault: one line saying what goes wrong without the repair.
        is_present: whether a module has the fault; false once it is repaired.
        apply: repairs the module.
    """

    fault: str
    is_present: Callable[[types.ModuleType], bool]
    apply: Callable[[types.ModuleType], None]

    def of_loaded_modules(self) -> Repair:
        """Returns the repair of all modules that are loaded now."""

        def faulty() -> List[types.ModuleType]:
            return [module for module in fairseq_modules() if self.is_present(module)]

        def apply() -> None:
            for module in faulty():
                self.apply(module)

        return Repair(self.fault, lambda: bool(faulty()), apply)


class ModuleView(types.ModuleType):
    """A module as some other modules are to see it, with a few attributes replaced or added."""

    def __init__(self, module: types.ModuleType, **attributes: Any) -> None:
        super().__init__(module.__name__)
        self._viewed = module
        vars(self).update(attributes)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._viewed, name)


def fairseq_modules() -> List[types.ModuleType]:
    """Returns the modules of fairseq, its commands and its examples that are loaded."""
    return [
        module
        for name, module in list(sys.modules.items())
        if isinstance(module, types.ModuleType)
        and _is_fairseq(getattr(module.__spec__, "name", name), getattr(module, "__file__", None))
    ]


def _is_fairseq(name: str, file: Optional[str]) -> bool:
    if name.partition(".")[0] in ("fairseq", "fairseq_cli"):
        return True
    # With --user-dir examples/data2vec a module's name says nothing of where it comes from.
    return file is not None and _real_path(file).startswith(_examples())


_real_path = functools.lru_cache(maxsize=None)(os.path.realpath)  # of thousands of modules


@functools.lru_cache(maxsize=None)
def _examples() -> Tuple[str, ...]:
    import fairseq

    package = os.path.dirname(os.path.realpath(str(fairseq.__file__)))
    beside = os.path.join(os.path.dirname(package), "examples")
    return os.path.join(package, ""), os.path.join(beside, "")


def uses(module: types.ModuleType, *chain: str) -> bool:
    """Returns whether code of a module reads a global, and then an attribute of it and so on.

    Args:
        module: one that was loaded from source or byte code; others use nothing.
        chain: the global's name, then the attributes' names.
    """
    spec = getattr(module, "__spec__", None)
    return spec is not None and _uses(spec.name, getattr(spec, "loader", None), chain)


@functools.lru_cache(maxsize=None)
def _uses(name: str, loader: Any, chain: Sequence[str]) -> bool:
    code = _code_of(name, loader)
    return code is not None and any(_reads(part, chain) for part in _parts_with(code, chain))


@functools.lru_cache(maxsize=None)
def _code_of(name: str, loader: Any) -> Optional[types.CodeType]:
    try:
        code: Optional[types.CodeType] = loader.get_code(name)
    except (AttributeError, ImportError, OSError, SyntaxError):
        return None
    return code


def _parts_with(code: types.CodeType, names: Sequence[str]) -> Iterator[types.CodeType]:
    """Yields a module's code and that of all its functions and classes that use all names."""
    if all(name in code.co_names for name in names):
        yield code
    for part in code.co_consts:
        if isinstance(part, types.CodeType):
            yield from _parts_with(part, names)


def _reads(code: types.CodeType, chain: Sequence[str]) -> bool:
    done = 0  # how much of the chain the instructions before have read
    for instruction in dis.get_instructions(code):
        if instruction.opname in _NO_OPERATION:
            continue
        if done and instruction.opname in _ATTRIBUTE and instruction.argval == chain[done]:
            done += 1
        elif instruction.opname in _GLOBAL and instruction.argval == chain[0]:
            done = 1
        else:
            done = 0
        if done == len(chain):
            return True
    return False


class _Importer(importlib.abc.MetaPathFinder):
    """Finds modules as Python would without it, and repairs those of fairseq once they have run."""

    def __init__(self, repairs: Sequence[ModuleRepair]) -> None:
        self.repairs = tuple(repairs)
        self._busy = threading.local()

    def find_spec(self, fullname: str, path: Any, target: Any = None) -> Optional[ModuleSpec]:
        finding: Set[str] = vars(self._busy).setdefault("finding", set())
        if fullname in finding:
            return None  # another finder of this manner asks in turn
        finding.add(fullname)
        try:
            spec = self._find(fullname, path, target)
        finally:
            finding.discard(fullname)
        if spec is not None and _is_fairseq(fullname, spec.origin):
            self._repair_after_running(spec.loader)
        return spec

    def _find(self, fullname: str, path: Any, target: Any) -> Optional[ModuleSpec]:
        for finder in list(sys.meta_path):
            find = getattr(finder, "find_spec", None)
            spec: Optional[ModuleSpec] = None
            if finder is not self and find is not None:
                spec = find(fullname, path, target)
            if spec is not None:
                return spec
        return None

    def _repair_after_running(self, loader: Any) -> None:
        run = getattr(loader, "exec_module", None)
        if run is None or isinstance(loader, type):
            return

        def exec_module(module: types.ModuleType) -> None:
            run(module)
            for repair in self.repairs:
                try:
                    if repair.is_present(module):
                        repair.apply(module)
                except Exception:  # whatever it is, the import as such has succeeded
                    logger.debug("%s: not applied: %s", module, repair.fault, exc_info=True)

        loader.exec_module = exec_module


def repair_of_later_modules(repairs: Sequence[ModuleRepair]) -> Repair:
    """Returns the repair of those modules of fairseq that are not imported yet."""

    def is_absent() -> bool:
        return not any(isinstance(finder, _Importer) for finder in sys.meta_path)

    return Repair(
        "modules imported later have the faults that any module may have",
        is_absent,
        lambda: sys.meta_path.insert(0, _Importer(repairs)),
    )
