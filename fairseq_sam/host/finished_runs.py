"""A fault of fairseq's loop over epochs: a run that has ended is trained on when started again.

fairseq asks whether ``--max-update`` or ``--stop-time-hours`` is reached after each update only.  A
run that was started again after its end, as scripts do that were killed between its last checkpoint
and their own note of it, took one update more each time, and validated and saved its weights anew.

How often validation has not improved, which ``--patience`` limits, is forgotten with the process: a
run that had stopped early trained for as many epochs again. It is a count of one metric: a run that
goes on with another begins to count anew.
"""

import functools
import inspect
import logging
import math
import types
from typing import Any, List, Optional, Tuple

from .fairseq_modules import ModuleRepair, ModuleView
from .patching import uses_name

logger = logging.getLogger(__name__)

_KEY = "fairseq_sam_patience"
"""Of a checkpoint's ``extra_state``."""


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
    stop_early = vars(module)["should_stop_early"]  # its attributes are fairseq's count
    vars(module)["checkpoint_utils"] = _keeping_count(vars(module)["checkpoint_utils"], stop_early)

    @functools.wraps(original)
    def train(cfg: Any, trainer: Any, *args: Any) -> Tuple[List[Optional[float]], bool]:
        max_update = cfg.optimization.max_update or math.inf
        # The checkpoint's time and not the clock's, for all workers must come to the same answer.
        hours = getattr(trainer, "_previous_training_time", 0) / 3600
        limit = cfg.optimization.stop_time_hours
        patience = cfg.checkpoint.patience
        waited = 0 < patience <= getattr(stop_early, "num_runs", 0)
        if trainer.get_num_updates() >= max_update or 0 < limit < hours or waited:
            logger.info("the run has ended before: nothing is left to train")
            return [None], True
        epoch: Tuple[List[Optional[float]], bool] = original(cfg, trainer, *args)
        return epoch

    vars(module)["train"] = train


def _keeping_count(checkpoint_utils: types.ModuleType, stop_early: Any) -> ModuleView:
    """Returns the module with checkpoints that hold the best validation and the count since."""
    original = checkpoint_utils.load_checkpoint

    @functools.wraps(original)
    def load_checkpoint(cfg: Any, trainer: Any, **kwargs: Any) -> Tuple[Any, Any]:
        extra_state, iterator = original(cfg, trainer, **kwargs)
        count, metric = (extra_state or {}).get(_KEY), _metric(cfg)
        reset = cfg.reset_optimizer or cfg.reset_meters or trainer.get_num_updates() == 0
        if count is None or reset or count.get("of", metric) != metric:
            for name in ("best", "num_runs"):  # of another run in this process
                vars(stop_early).pop(name, None)
        else:
            stop_early.best, stop_early.num_runs = count["best"], count["num_runs"]
        if cfg.patience > 0:
            _save_count(trainer, stop_early, metric)
        return extra_state, iterator

    return ModuleView(checkpoint_utils, load_checkpoint=load_checkpoint)


def _metric(cfg: Any) -> Tuple[str, bool]:
    """Returns what ``--patience`` waits for: a metric of validation, and whether more is better."""
    return cfg.best_checkpoint_metric, cfg.maximize_best_checkpoint_metric


def _save_count(trainer: Any, stop_early: Any, metric: Tuple[str, bool]) -> None:
    original = trainer.state_dict

    def state_dict() -> Any:
        state = original()
        if hasattr(stop_early, "best"):
            count = {"best": stop_early.best, "num_runs": stop_early.num_runs, "of": metric}
            state["extra_state"][_KEY] = count
        return state

    trainer.state_dict = state_dict


MODULE_REPAIRS = (ModuleRepair("a finished run is trained on", _trains_on, _stop_at_the_end),)
