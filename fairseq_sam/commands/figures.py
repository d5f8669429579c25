"""``--json`` and ``--plot``: where figures and pictures go, and what goes wrong, in one line."""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, Optional

from fairseq_sam.commands.refusals import CommandError, refuse_unwritable
from fairseq_sam.files.writing import write_json

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


def add_output_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds where figures and the plot go."""
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures here as well")
    parser.add_argument(
        "--plot", type=plot_file, metavar="FILE", help="draw a picture here: .pdf, .png or .svg"
    )


def check_output_arguments(args: argparse.Namespace) -> None:
    """Refuses files that could not be written, before anything is computed.

    Raises:
        CommandError: naming the file.
    """
    pictures = [getattr(args, name, None) for name in ("plot", "cost_plot")]
    for path in (args.json, *pictures, getattr(args, "output", None)):
        if path is None:
            continue
        if path.is_dir():
            raise CommandError(f"{path}: is a directory, not a file to write")
        refuse_unwritable(path)
    for picture in pictures:
        check_can_plot(picture)


def check_can_plot(plot: Optional[Path]) -> None:
    """Refuses a plot that could not be drawn, before anything is computed.

    Raises:
        CommandError: matplotlib is not installed.
    """
    if plot is not None and importlib.util.find_spec("matplotlib") is None:
        raise CommandError("--plot needs matplotlib: pip install matplotlib")


def write_results(
    args: argparse.Namespace, figures: Dict[str, Any], draw: Callable[[Path], None]
) -> None:
    """Writes what :func:`add_output_arguments` asks for.

    Args:
        args: with ``json`` and ``plot``.
        figures: of ``--json``.
        draw: draws ``--plot``, given its file.

    Raises:
        CommandError: a file cannot be written.
    """
    if args.json is not None:
        write_figures(figures, args.json)
    if args.plot is not None:
        with explaining_plots(args.plot):
            draw(args.plot)


def write_figures(figures: Dict[str, Any], path: Path) -> None:
    """Writes ``--json``'s file.

    Raises:
        CommandError: it cannot be written.
    """
    try:
        write_json(figures, path)
    except OSError as error:
        raise CommandError(f"{path}: cannot write ({error.strerror})") from None


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
