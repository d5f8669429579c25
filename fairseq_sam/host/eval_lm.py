"""Faults of ``fairseq-eval-lm``, which forms its blocks of text without asking the model.

The command takes ``--tokens-per-sample`` and ``--sample-break-mode`` from its own command line (by
default 1024 tokens across sentence boundaries), whatever the model was trained with.  Scoring a
model on other blocks than it was trained on is legitimate, and a flag that was given cannot be told
from its default, so the blocks stay what fairseq makes them: a difference is announced, and a
result that rests on no text at all is refused.
"""

import functools
import logging
import sys
from types import SimpleNamespace
from typing import Any, Optional

from .patching import Repair, rebind, uses_name

logger = logging.getLogger(__name__)


def _break_mode(task_config: Any) -> Optional[str]:
    mode = getattr(task_config, "sample_break_mode", None)
    return None if mode is None else str(mode)


def _warn_of_other_break_mode(task: Any, model_config: Any) -> None:
    if "fairseq_cli.eval_lm" not in sys.modules or task is None:
        return
    used = _break_mode(getattr(task, "args", None))
    trained = _break_mode(getattr(model_config, "task", None))
    if used is not None and trained is not None and used != trained:
        logger.warning(
            "the model was trained with --sample-break-mode %s and is evaluated with %s: its"
            " perplexity is not comparable with the one of its validation log",
            trained,
            used,
        )


def _is_silent_about_break_mode() -> bool:
    from fairseq import checkpoint_utils

    load = checkpoint_utils.load_model_ensemble_and_task
    return not uses_name(load, _warn_of_other_break_mode.__name__)


def _announce_other_break_mode() -> None:
    """Warns when a language model is scored on other blocks of text than it was trained on."""
    from fairseq import checkpoint_utils

    original = checkpoint_utils.load_model_ensemble_and_task

    @functools.wraps(original)
    def load_model_ensemble_and_task(filenames: Any, *args: Any, **kwargs: Any) -> Any:
        loaded = original(filenames, *args, **kwargs)
        _warn_of_other_break_mode(kwargs.get("task"), loaded[1])
        return loaded

    rebind("load_model_ensemble_and_task", original, load_model_ensemble_and_task)


def _accepts_no_text() -> bool:
    from fairseq.tasks.language_modeling import LanguageModelingTask

    no_batches = SimpleNamespace(next_epoch_itr=lambda shuffle: ())
    task = SimpleNamespace(get_batch_iterator=lambda **_: no_batches)
    try:
        LanguageModelingTask.eval_lm_dataloader(task, dataset=[0])
    except ValueError:
        return False
    return True


def _refuse_no_text() -> None:
    """Stops ``fairseq-eval-lm`` when no block of text fits the model.

    fairseq drops the blocks that are too long for the model; when these are all of them it reports
    "Evaluated 0 tokens" and a perplexity of 1, and exits with success.
    """
    from fairseq.tasks.language_modeling import LanguageModelingTask

    original = LanguageModelingTask.eval_lm_dataloader

    @functools.wraps(original)
    def eval_lm_dataloader(self: Any, dataset: Any, *args: Any, **kwargs: Any) -> Any:
        batches = original(self, dataset, *args, **kwargs)
        if len(dataset) > 0 and len(batches) == 0:
            raise ValueError(
                f"none of the {len(dataset)} blocks of text fits the model: pass the"
                " --tokens-per-sample and --sample-break-mode that it was trained with"
            )
        return batches

    LanguageModelingTask.eval_lm_dataloader = eval_lm_dataloader


REPAIRS = (
    Repair(
        "eval-lm ignores the model's break mode",
        _is_silent_about_break_mode,
        _announce_other_break_mode,
    ),
    Repair("eval-lm scores no text at all as perfect", _accepts_no_text, _refuse_no_text),
)
