"""A fault of fairseq's loop over epochs: a run that has ended is trained on when started again.

fairseq asks whether ``--max-update`` or ``--stop-time-hours`` is reached after each update only.  A
run that was started again after its end, as scripts do that were killed between its last checkpoint
and their own note of it, took one update more each time, and validated and saved its weights anew.
"""

import functools
import inspect
import logging
import math
import types
from typing import Any, List, Optional, Tuple

from .fairseq_modules import ModuleRepair
from .patching import uses_name

logger = logging.getLogger(__name__)


def _trains_on(module: types.ModuleType) -> bool:
    spec = getattr(module, "__spec__", None)
    # "python -m fairseq_cli.train" is the module __main__; its spec has the name.
    if spec is None or spec.name != "fairseq_cli.train" or not hasattr(module, "train"):
        return False
    asks = (module.train, inspect.unwrap(module.train))  # in a decorator, which hides its names
    return not (
        uses_name(module.main, "get_num_updates") or any(uses_name(f, "max_update") for f in asks)
    )


def _stop_at_the_end(module: types.ModuleType) -> None:
    """Lets the loop ask before an epoch's first update whether the run has ended.

    The function for an epoch is replaced, because a loop cannot be.  Only what it returns for a run
    that has ended is new: no loss, and that the loop is to stop.
    """
    original = vars(module)["train"]

    @functools.wraps(original)
    def train(cfg: Any, trainer: Any, *args: Any) -> Tuple[List[Optional[float]], bool]:
        max_update = cfg.optimization.max_update or math.inf
        # The checkpoint's time and not the clock's, for all workers must come to the same answer.
        hours = getattr(trainer, "_previous_training_time", 0) / 3600
        limit = cfg.optimization.stop_time_hours
        if trainer.get_num_updates() >= max_update or 0 < limit < hours:
            logger.info("the run has ended before: nothing is left to train")
            return [None], True
        epoch: Tuple[List[Optional[float]], bool] = original(cfg, trainer, *args)
        return epoch

    vars(module)["train"] = train


MODULE_REPAIRS = (ModuleRepair("a finished run is trained on", _trains_on, _stop_at_the_end),)
