"""What goes wrong with ``--plot``, in one line."""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
from pathlib import Path
from typing import Iterator, Optional

from fairseq_sam.commands.refusals import CommandError

PLOT_SUFFIXES = (".pdf", ".png", ".svg")


def plot_file(text: str) -> Path:
    """Converts the name of a picture, for argparse.

    Raises:
        argparse.ArgumentTypeError: it is of no known kind.
    """
    if Path(text).suffix not in PLOT_SUFFIXES:
        raise argparse.ArgumentTypeError(
            f"{text} is not allowed: a picture's name ends in one of {', '.join(PLOT_SUFFIXES)}"
        )
    return Path(text)


def check_can_plot(plot: Optional[Path]) -> None:
    """Refuses a plot that could not be drawn, before anything is computed.

    Raises:
        CommandError: matplotlib is not installed.
    """
    if plot is not None and importlib.util.find_spec("matplotlib") is None:
        raise CommandError("--plot needs matplotlib: pip install matplotlib")


@contextlib.contextmanager
def explaining_plots(plot: Path) -> Iterator[None]:
    """Turns what stops the writing of an image into one line.

    Raises:
        CommandError: in place of the error.
    """
    try:
        yield
    except OSError as error:
        raise CommandError(f"{plot}: cannot write ({error.strerror})") from None
