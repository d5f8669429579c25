"""Keeping other packages' chatter off a command's output."""

from __future__ import annotations

import contextlib
import logging
import sys
import warnings
from typing import Any, Iterator


@contextlib.contextmanager
def no_foreign_warnings() -> Iterator[None]:
    """Leaves out Python's warnings of other packages' code to each other.

    torch tells of nested tensors, fairseq of deprecated calls, and its datasets that could not be
    opened of errors while they are thrown away: no user can mend them. What our own code causes is
    shown, and all of it with ``python -W``.
    """
    show = sys.unraisablehook

    def show_ours(unraisable: Any) -> None:
        module = getattr(unraisable.object, "__module__", None) or "fairseq_sam"
        if sys.warnoptions or module.split(".")[0] == "fairseq_sam":
            show(unraisable)

    sys.unraisablehook = show_ours
    try:
        with warnings.catch_warnings():
            if not sys.warnoptions:
                warnings.filterwarnings("ignore", module=r"(?!fairseq_sam(\.|$))")
            yield
    finally:
        sys.unraisablehook = show


@contextlib.contextmanager
def only_warnings() -> Iterator[None]:
    """Keeps fairseq and hydra from telling what they load and build; they may tell afterwards.

    Python's warnings are silent too: fairseq calls hydra by ways that hydra deprecates.
    """
    loggers = [logging.getLogger(name) for name in ("fairseq", "hydra")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels):
            logger.setLevel(level)
