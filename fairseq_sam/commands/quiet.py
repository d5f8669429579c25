"""Keeping fairseq's and hydra's chatter off a command's output."""

from __future__ import annotations

import contextlib
import logging
import warnings
from typing import Iterator


@contextlib.contextmanager
def only_warnings() -> Iterator[None]:
    """Keeps them from telling what they load and build; they may tell again afterwards.

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
