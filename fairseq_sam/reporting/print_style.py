"""Plots that read well on paper, in grey, and to every eye.

The colours are those of Okabe and Ito (2008), which people with any colour blindness can tell
apart; since print may have no colours, every line has a marker and a dash pattern of its own too.
"""

from __future__ import annotations

import contextlib
import logging
from pathlib import Path
from typing import Any, Dict, Iterable, Iterator, List, Optional, Sequence, Tuple

from fairseq_sam.files.writing import replaced

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


def side_by_side(positions: Sequence[float], index: int, count: int) -> List[float]:
    """Moves the n-th line's points a little, so that its error bars do not hide those of others.

    Args:
        positions: on a linear axis.
        index: of the line.
        count: of lines.

    Returns:
        Positions 1.2 % of the axis apart from line to line, in the middle the true ones.

    >>> side_by_side([0.0, 100.0], 0, 3)
    [-1.2, 98.8]
    """
    span = max(positions) - min(positions) or max(map(abs, positions)) or 1.0
    return [position + 0.012 * span * (index - (count - 1) / 2) for position in positions]


def short_number(number: float) -> str:
    """Writes 8e-05 as 8e-5, 0.05 as it is: ticks are close together.

    >>> short_number(8e-05), short_number(0.05), short_number(200.0)
    ('8e-5', '0.05', '200')
    """
    if 1e-3 <= abs(number) < 1e5 or number == 0:
        return f"{number:g}"
    mantissa, exponent = f"{number:.6e}".split("e")
    return f"{float(mantissa):g}e{int(exponent)}"


def tick_values(axis: Any, values: Iterable[float]) -> None:
    """Puts the ticks of the x axis where the points are, if their numbers have room.

    A number that would touch the one before it gets a tick without a number.
    """
    from matplotlib.ticker import FixedFormatter, FixedLocator, NullLocator

    places = sorted(set(values))
    if len(places) == 1:
        axis.set_xlim(sorted((places[0] / 2 or -1.0, places[0] * 1.5 or 1.0)))
    transform = axis.transScale.transform
    low, high = (transform((limit, 1.0))[0] for limit in axis.get_xlim())
    room, last, labels = 0.055, -1.0, []
    for place in places:
        at = (transform((place, 1.0))[0] - low) / (high - low)
        labels.append(short_number(place) if at - last >= room else "")
        last = at if labels[-1] else last
    axis.xaxis.set_major_locator(FixedLocator(places))
    axis.xaxis.set_major_formatter(FixedFormatter(labels))
    axis.xaxis.set_minor_locator(NullLocator())


def whole_numbers(axis: Any, first: float, last: float) -> None:
    """Numbers the x axis in whole numbers (epochs, ranks), even where there is only one."""
    from matplotlib.ticker import MaxNLocator

    margin = max(0.7, 0.04 * (last - first))
    axis.set_xlim(first - margin, last + margin)
    axis.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))


def use_log_scale(axis: Any) -> None:
    """Makes the y axis of a plot logarithmic; what is not positive is left out.

    Numbers are plain where they are short, powers of ten otherwise.
    """
    from matplotlib.ticker import LogFormatter, LogFormatterSciNotation

    class Plain(LogFormatter):
        """Writes 0.6 instead of 6e-01."""

        def __call__(self, x: float, pos: Any = None) -> str:
            return f"{x:g}" if super().__call__(x, pos) else ""

    axis.set_yscale("log", nonpositive="mask")
    low, high = axis.get_ylim()
    formatter = Plain if low > 1e-2 and high < 1e4 else LogFormatterSciNotation
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
