"""What the repairs have in common: their table row, and how a function is replaced."""

import sys
from typing import Any, Callable, NamedTuple


class Repair(NamedTuple):
    """One fault of a fairseq, how to recognise it and how to remove it.

    Attributes:
        fault: one line saying what goes wrong without the repair.
        is_present: whether the fairseq that is loaded has the fault; false once it is repaired.
        apply: removes the fault for the running process.
    """

    fault: str
    is_present: Callable[[], bool]
    apply: Callable[[], None]


def uses_name(function: Callable[..., Any], name: str) -> bool:
    """Returns whether the body of ``function`` reads or sets the global or attribute ``name``.

    >>> uses_name(lambda numpy: numpy.compat.long, "compat")
    True
    """
    return name in function.__code__.co_names


def rebind(name: str, original: Any, replacement: Any) -> None:
    """Puts ``replacement`` wherever a loaded module calls ``original`` by ``name``.

    Modules that ran ``from fairseq... import name`` earlier hold a reference of their own, so
    replacing the attribute of the defining module alone would miss them.

    Args:
        name: name under which the object is bound in the modules.
        original: the object to look for.
        replacement: the object to bind instead.
    """
    for module in list(sys.modules.values()):
        # vars, not getattr: some packages import their submodules on attribute access
        if getattr(module, "__dict__", {}).get(name) is original:
            setattr(module, name, replacement)
