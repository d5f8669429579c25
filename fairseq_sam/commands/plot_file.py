"""What subcommands that write plots have in common: names for the legend, and errors."""

from __future__ import annotations

import contextlib
import logging
import os
from pathlib import Path
from typing import Iterator, List, Sequence

from fairseq_sam.commands.errors import CommandError


def short_names(paths: Sequence[str]) -> List[str]:
    """Returns the paths without what all of them share at the beginning or at the end.

    >>> short_names(["runs/adam/seed1/average.pt", "runs/ga_sam/seed1/average.pt"])
    ['adam', 'ga_sam']
    >>> short_names(["checkpoints/checkpoint1.pt", "checkpoints/checkpoint5.pt"])
    ['checkpoint1', 'checkpoint5']
    >>> short_names(["runs/adam/average.pt"])
    ['average']
    """
    parts = [Path(os.path.splitext(path)[0]).parts for path in paths]
    if len({*parts}) < len(parts):  # one twice, or only the suffixes differ
        return [f"{number} {path}" for number, path in enumerate(paths, 1)]
    if len(parts) == 1:
        return [parts[0][-1]]
    while min(map(len, parts)) > 1 and len({part[0] for part in parts}) == 1:
        parts = [part[1:] for part in parts]
    while min(map(len, parts)) > 1 and len({part[-1] for part in parts}) == 1:
        parts = [part[:-1] for part in parts]
    return ["/".join(part) for part in parts]


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turns what goes wrong while a plot is written into one line, and keeps matplotlib quiet.

    Raises:
        CommandError: in place of that.
    """
    logger = logging.getLogger("matplotlib")
    level = logger.level
    logger.setLevel(logging.WARNING)  # fairseq's imports have made the root logger tell everything
    try:
        yield
    except ImportError as error:
        raise CommandError(f"--out needs matplotlib ({error}): pip install matplotlib") from error
    except OSError as error:
        raise CommandError(f"{path}: cannot write ({error.strerror})") from error
    finally:
        logger.setLevel(level)
