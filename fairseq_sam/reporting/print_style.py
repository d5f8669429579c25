"""What plots have in common: colours and marks that survive grey print and colour blindness."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Any, Dict, Iterator

# Okabe & Ito 2008: told apart with every kind of colour vision. Yellow, too light on paper, is out.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
LINES = ("-", "--", "-.", ":")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")


def curve_style(index: int) -> Dict[str, Any]:
    """Returns colour, line and marker of the n-th curve, which differ in more than the colour."""
    return {
        "color": COLORS[index % len(COLORS)],
        "linestyle": LINES[index % len(LINES)],
        "marker": MARKERS[index % len(MARKERS)],
        "markersize": 4,
        "linewidth": 1.2,
    }


def use_log_scale(axis: Any) -> None:
    """Makes the y axis logarithmic, with plain numbers; what is not positive is left out."""
    from matplotlib.ticker import LogFormatter

    axis.set_yscale("log", nonpositive="mask")
    axis.yaxis.set_minor_formatter(LogFormatter(minor_thresholds=(1.5, 0.5)))


@contextlib.contextmanager
def new_figure(rows: int, columns: int, width: float, height: float, path: Path) -> Iterator[Any]:
    """Yields an array of axes, and writes the figure when the block ends without an error.

    Args:
        rows: of axes.
        columns: of axes.
        width: in inches.
        height: in inches.
        path: the image file; its suffix tells the format. It is never half-written.

    Raises:
        ImportError: matplotlib is missing.
        OSError: the file cannot be written.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(
        rows, columns, squeeze=False, figsize=(width, height), layout="constrained"
    )
    temporary = path.with_name(f".{path.stem}.{os.getpid()}.incomplete{path.suffix}")
    try:
        yield axes
        figure.savefig(temporary, dpi=200)
        os.replace(temporary, path)
    finally:
        pyplot.close(figure)
        if temporary.exists():
            temporary.unlink()
