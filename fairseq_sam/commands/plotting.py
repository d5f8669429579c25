"""What goes wrong with ``--out``, in one line."""

from __future__ import annotations

import contextlib
import importlib.util
from pathlib import Path
from typing import Iterator, Optional

from fairseq_sam.commands.errors import CommandError


def check_can_plot(out: Optional[Path]) -> None:
    """Refuses a plot that could not be drawn, before anything is computed.

    Raises:
        CommandError: matplotlib is not installed.
    """
    if out is not None and importlib.util.find_spec("matplotlib") is None:
        raise CommandError("--out needs matplotlib: pip install matplotlib")


@contextlib.contextmanager
def explaining_plots(out: Path) -> Iterator[None]:
    """Turns what stops the writing of an image into one line.

    Raises:
        CommandError: in place of the error.
    """
    try:
        yield
    except OSError as error:
        raise CommandError(f"{out}: cannot write ({error.strerror})") from None
