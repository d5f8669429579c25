"""Spectra of several checkpoints in one plot."""

from __future__ import annotations

from pathlib import Path
from typing import Any, List, Mapping, Sequence, Tuple

import numpy as np

from fairseq_sam.reporting.print_style import (
    figure_file,
    line_style,
    use_log_scale,
    whole_numbers,
)


def write_spectrum_plot(
    spectra: Mapping[str, Sequence[float]],
    densities: Mapping[str, Tuple[np.ndarray, np.ndarray]],
    matrix: str,
    path: Path,
) -> None:
    """Draws eigenvalues by rank and, where there are any, spectral densities.

    Args:
        spectra: a name to its eigenvalues, the largest first.
        densities: a name to a grid and the density there; may be empty.
        matrix: what the eigenvalues are of, for the axes.
        path: the image file.

    Raises:
        ImportError: matplotlib is missing.
        OSError: the file cannot be written.
    """
    columns = 2 if densities else 1
    with figure_file(path, 1, columns, width=4.5 * columns, height=3.0) as (_, axes):
        _draw_eigenvalues(axes[0], spectra, matrix)
        if densities:
            _draw_densities(axes[1], densities, matrix)


def _draw_eigenvalues(axis: Any, spectra: Mapping[str, Sequence[float]], matrix: str) -> None:
    for index, (name, values) in enumerate(spectra.items()):
        ranks = range(1, len(values) + 1)
        axis.plot(ranks, values, markevery=max(1, len(values) // 10), **line_style(index),
                  label=name)  # fmt: skip
    every: List[float] = [value for values in spectra.values() for value in values]
    if min(every) >= 0 < max(every):  # the zeros of a Fisher of few sentences are left out
        use_log_scale(axis)
    whole_numbers(axis, 1, max(map(len, spectra.values())))
    axis.set_xlabel("rank")
    axis.set_ylabel(f"eigenvalue of the {matrix}\n(nats per unit)")
    axis.grid(alpha=0.3, which="both")
    axis.legend(fontsize="small")


def _draw_densities(
    axis: Any, densities: Mapping[str, Tuple[np.ndarray, np.ndarray]], matrix: str
) -> None:
    for index, (name, (grid, values)) in enumerate(densities.items()):
        apart = max(1, len(grid) // 8)
        axis.plot(grid, values, markevery=apart, **line_style(index), label=name)
    top = max(max(values) for _, values in densities.values())
    axis.set_ylim(top * 1e-9, top * 3)
    use_log_scale(axis)
    axis.set_xlabel(f"eigenvalue of the {matrix} (nats per unit)")
    axis.set_ylabel("share of eigenvalues\n(per nat per unit)")
    axis.grid(alpha=0.3)
    axis.legend(fontsize="small")
