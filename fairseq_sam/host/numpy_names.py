"""Faults in how fairseq uses numpy: names that numpy has removed, and draws that no seed reaches.

fairseq's modules get to see another numpy.  numpy itself stays as it is: other packages look at
names such as ``numpy.compat`` to learn which numpy they run on.
"""

import types
import warnings
from typing import Any, Dict, List

import numpy as np

from .fairseq_modules import ModuleRepair, ModuleView, uses

_REMOVED: Dict[str, Any] = {
    "bool": bool,
    "complex": complex,
    "float": float,
    "int": int,
    "long": int,
    "object": object,
    "str": str,
    "unicode": str,
}
_REMOVED_COMPAT = types.SimpleNamespace(long=int)


def _names_of_numpy(module: types.ModuleType) -> List[str]:
    """Returns the globals through which a module sees numpy."""
    return [name for name, value in vars(module).items() if _is_numpy(value)]


def _is_numpy(value: Any) -> bool:
    return value is np or (isinstance(value, ModuleView) and value.__name__ == "numpy")


def _missing(module: types.ModuleType, name: str) -> List[str]:
    """Returns what the module reads of numpy, by the global ``name``, and does not find there."""
    numpy = vars(module)[name]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        missing = [gone for gone in _REMOVED if not hasattr(numpy, gone)]
        if not hasattr(getattr(numpy, "compat", None), "long"):
            missing.append("compat")
    return [gone for gone in missing if uses(module, name, gone)]


def _reads_removed_names(module: types.ModuleType) -> bool:
    return any(_missing(module, name) for name in _names_of_numpy(module))


def _give_removed_names(module: types.ModuleType) -> None:
    """Gives a module the names of numpy 1.19 that it uses, which were Python's own types."""
    for name in _names_of_numpy(module):
        missing = _missing(module, name)
        if missing:
            values = {**_REMOVED, "compat": _REMOVED_COMPAT}
            view = ModuleView(vars(module)[name], **{gone: values[gone] for gone in missing})
            setattr(module, name, view)


def _default_rng(seed: Any = None) -> np.random.Generator:
    """``numpy.random.default_rng``, with numpy's global state where it takes the system's."""
    if seed is None:
        seed = np.random.randint(0, 2**63 - 1, dtype=np.int64)
    return np.random.default_rng(seed)


def _draws_unseeded(module: types.ModuleType) -> bool:
    return any(
        uses(module, name, "random", "default_rng")
        and vars(module)[name].random.default_rng is not _default_rng
        for name in _names_of_numpy(module)
    )


def _draw_from_global_state(module: types.ModuleType) -> None:
    """Lets generators that are given no seed draw one from numpy's global state.

    The span masks of wav2vec 2.0, HuBERT and data2vec come from ``default_rng(None)`` in newer
    fairseqs: ``--seed`` does not reach them, so that no run can be repeated, and no forward pass
    either, which a perturbation compares with another one.
    """
    for name in _names_of_numpy(module):
        random = ModuleView(np.random, default_rng=_default_rng)
        setattr(module, name, ModuleView(vars(module)[name], random=random))


MODULE_REPAIRS = (
    ModuleRepair(
        "names that numpy has removed are used", _reads_removed_names, _give_removed_names
    ),
    ModuleRepair("--seed does not reach some masks", _draws_unseeded, _draw_from_global_state),
)
