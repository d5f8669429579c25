"""Plots that read well on paper, in grey, and to every eye.

The colours are those of Okabe and Ito (2008), which people with any colour blindness can tell
apart; since print may have no colours, every line has a marker and a dash pattern of its own too.
"""

from __future__ import annotations

import contextlib
import logging
from pathlib import Path
from typing import Any, Dict, Iterator, List, Optional, Sequence, Tuple

from fairseq_sam.files import replaced

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
DASHES: Tuple[Any, ...] = ("-", "--", "-.", ":", (0, (5, 1)), (0, (3, 1, 1, 1)), (0, (1, 1)))
COLOUR_MAP = "cividis"
"""Runs from dark to light evenly, in grey as well, and looks alike to the colour-blind."""

_SETTINGS = {
    "font.size": 9,
    "axes.grid": True,
    "grid.alpha": 0.3,
    "axes.axisbelow": True,
    "lines.linewidth": 1.2,
    "lines.markersize": 4,
    "savefig.dpi": 200,
    "pdf.fonttype": 42,  # letters, not outlines: journals ask for it
    "svg.fonttype": "none",
}


def line_style(index: int) -> Dict[str, Any]:
    """Returns colour, marker and dashes of the n-th line of a plot, as arguments of ``plot``.

    Colours come again after seven lines, but with other markers and dashes.
    """
    again = index // len(COLOURS)
    return {
        "color": COLOURS[index % len(COLOURS)],
        "marker": MARKERS[(index + again) % len(MARKERS)],
        "linestyle": DASHES[(index + 2 * again) % len(DASHES)],
    }


def error_bars(errors: Sequence[Optional[float]]) -> Optional[List[float]]:
    """Returns the lengths of error bars; None if nothing has one, for those of length 0 show, too.

    >>> error_bars([None, 0.5])
    [0.0, 0.5]
    """
    return [error or 0.0 for error in errors] if any(errors) else None


def use_log_scale(axis: Any) -> None:
    """Makes the y axis of a plot logarithmic; what is not positive is left out.

    Numbers are plain where they are short, powers of ten otherwise.
    """
    from matplotlib.ticker import LogFormatter, LogFormatterSciNotation

    axis.set_yscale("log", nonpositive="mask")
    low, high = axis.get_ylim()
    formatter = LogFormatter if low > 1e-2 and high < 1e4 else LogFormatterSciNotation
    axis.yaxis.set_major_formatter(formatter())
    axis.yaxis.set_minor_formatter(formatter(minor_thresholds=(2, 0.5)))


def legend_below(figure: Any, axis: Any) -> None:
    """Names the lines of a panel below the whole figure, which grows by what the names take."""
    handles, names = axis.get_legend_handles_labels()
    longest = max(map(len, names))
    columns = max(1, int(figure.get_figwidth() * 13 / (longest + 7)))  # 13 letters an inch
    rows = -(-len(names) // columns)
    figure.set_figheight(figure.get_figheight() + 0.17 * rows + 0.1)
    figure.legend(handles, names, loc="outside lower center", ncols=columns, fontsize="small")


@contextlib.contextmanager
def figure_file(
    path: Path, rows: int, columns: int = 1, width: float = 6.0, height: float = 2.6
) -> Iterator[Any]:
    """Context that makes a figure and writes it when all went well.

    Args:
        path: the image; its suffix tells the format. It is never half-written.
        rows: of panels.
        columns: of panels.
        width: of the figure, in inches.
        height: of a panel.

    Yields:
        matplotlib's figure and the list of its axes.

    Raises:
        ImportError: matplotlib is missing.
        OSError: the file cannot be written.
    """
    with _quiet():
        import matplotlib

        matplotlib.use("Agg")
        from matplotlib import pyplot

        with pyplot.rc_context(_SETTINGS):
            size = (width, 0.4 + height * rows)
            figure, axes = pyplot.subplots(
                rows, columns, squeeze=False, figsize=size, layout="constrained"
            )
            try:
                yield figure, list(axes.flat)
                _save(figure, path)
            finally:
                pyplot.close(figure)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keeps matplotlib from telling of its fonts where other libraries turned debugging on."""
    logger = logging.getLogger("matplotlib")
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        logger.setLevel(level)


def _save(figure: Any, path: Path) -> None:
    with replaced(path) as temporary:
        figure.savefig(temporary, format=path.suffix[1:] or "png")
