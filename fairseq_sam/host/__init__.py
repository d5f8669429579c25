"""Repairs of the hosting fairseq, each applied only where its fault is present.

The plugin runs inside whatever fairseq the user has: 0.12.2, its successor ``fairseq-fixed`` or a
source checkout.  Each has faults of its own, some of which lose data without a word.  Importing the
plugin calls :func:`repair` once; a fairseq without a fault is left as it is.

Faults that are a habit of fairseq's, in many of its modules, are mended in each of them, also in
those that are imported later (:mod:`fairseq_sam.host.fairseq_modules`).

A fault is recognised by what fairseq *does* (a tiny probe) or by the names its code uses, never by
a version number alone, so that a later fairseq which corrected it is not patched.

Left alone on purpose: the encoder layers of fairseq 0.12.2 hold a second copy of their weights
that no gradient ever reaches.  Removing or freezing it would change the parameter list, and with it
every optimizer state and checkpoint that the user already has; the perturbation skips parameters
without a gradient instead.
"""

import logging
from typing import Tuple

from . import (
    checkpoint_loading,
    command_line,
    components,
    data,
    diagnosis,
    distributed,
    eval_lm,
    fairseq_modules,
    finished_runs,
    generation,
    literals,
    numpy_names,
    store_ema,
)
from .fairseq_modules import ModuleRepair
from .patching import Repair

__all__ = ["MODULE_REPAIRS", "REPAIRS", "Repair", "repair"]

logger = logging.getLogger(__name__)

MODULE_REPAIRS: Tuple[ModuleRepair, ...] = (
    *numpy_names.MODULE_REPAIRS,
    *literals.MODULE_REPAIRS,
    *checkpoint_loading.MODULE_REPAIRS,
    *finished_runs.MODULE_REPAIRS,
)
"""Repairs of each module that needs them."""

REPAIRS: Tuple[Repair, ...] = (
    *command_line.REPAIRS,
    *data.REPAIRS,
    *checkpoint_loading.REPAIRS,
    *components.REPAIRS,
    *eval_lm.REPAIRS,
    *generation.REPAIRS,
    *store_ema.REPAIRS,
    *distributed.REPAIRS,
    *diagnosis.REPAIRS,
    *(candidate.of_loaded_modules() for candidate in MODULE_REPAIRS),
    fairseq_modules.repair_of_later_modules(MODULE_REPAIRS),
)
"""All repairs, in the order they are applied."""


def repair() -> None:
    """Repairs every fault of the installed fairseq that is present; calling it again is harmless.

    A fairseq that lacks what a repair would touch is skipped without an error: the plugin must not
    be what keeps an unusual fairseq from starting.
    """
    command_line.import_fairseq()
    for candidate in REPAIRS:
        try:
            if candidate.is_present():
                candidate.apply()
        except Exception:  # an unknown fairseq may fail a probe in any way
            logger.debug("not applied: %s", candidate.fault, exc_info=True)
