"""Gradients by layer and by phase, and the scale that follows, in one plot."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Dict, List, Mapping, Sequence, Tuple

from fairseq_sam.reporting.logged_gradients import LoggedNorms, layers_of
from fairseq_sam.reporting.print_style import (
    COLOUR_MAP,
    COLOURS,
    figure_file,
    line_style,
    use_log_scale,
    whole_numbers,
)


def write_gradients_plot(
    strengths: Mapping[str, Mapping[str, float]],
    scales: Sequence[Tuple[str, float, bool]],
    logged: Sequence[LoggedNorms],
    path: Path,
) -> None:
    """Draws panels from the top: strength by layer, T by tensor, and the logged norms by epoch.

    Args:
        strengths: a checkpoint's name to its layers' ‖g‖/√n; may be empty, as ``scales`` is then.
        scales: of the last checkpoint: tensor, T of GA-SAM, whether its gradient is noise.
        logged: norms of a run's gradients; may be empty.
        path: the image file.

    Raises:
        ImportError: matplotlib is missing.
        OSError: the file cannot be written.
    """
    layers = list({layer: None for values in strengths.values() for layer in values})
    rows = 2 * bool(strengths) + bool(logged)
    width = max(6.0, 1.5 + 0.32 * len(layers))
    with figure_file(path, rows, width=width, height=2.5) as (_, axes):
        if strengths:
            _draw_layers(axes[0], layers, strengths)
            _draw_scales(axes[1], scales, list(strengths)[-1])
        if logged:
            _draw_epochs(axes[-1], logged)


def _draw_layers(
    axis: Any, layers: List[str], strengths: Mapping[str, Mapping[str, float]]
) -> None:
    for index, (name, values) in enumerate(strengths.items()):
        heights = [values.get(layer) or float("nan") for layer in layers]
        axis.plot(range(len(layers)), heights, label=name, **line_style(index))
    axis.set_xticks(range(len(layers)))
    slant = 20 if len(layers) <= 8 else 60
    axis.set_xticklabels(
        layers, rotation=slant, ha="right", rotation_mode="anchor", fontsize="small"
    )
    use_log_scale(axis)
    axis.set_ylabel("gradient strength ‖g‖/√n\n(nats per unit and weight)")
    axis.grid(alpha=0.3, which="both")
    axis.legend(fontsize="small")


def _draw_scales(axis: Any, scales: Sequence[Tuple[str, float, bool]], checkpoint: str) -> None:
    """Draws T tensor by tensor: the trap stands out as crosses far above the dots."""
    groups: Dict[bool, List[Tuple[int, float]]] = {False: [], True: []}
    for number, (_, value, is_noise) in enumerate(scales, 1):
        if value > 0:
            groups[is_noise].append((number, value))
    looks = (
        (False, "o", COLOURS[0], "moves"),
        (True, "x", COLOURS[1], "rounding noise: held at 0"),
    )
    for is_noise, marker, color, label in looks:
        if groups[is_noise]:
            axis.scatter(*zip(*groups[is_noise]), marker=marker, color=color, s=18, label=label)
    use_log_scale(axis)
    whole_numbers(axis, 1, max(1, len(scales)))
    axis.set_xlabel("tensor, in the model's order")
    axis.set_ylabel(f"T of GA-SAM without its floor\n({checkpoint})")
    axis.grid(alpha=0.3)
    axis.legend(fontsize="small")


def _draw_epochs(axis: Any, logged: Sequence[LoggedNorms]) -> None:
    """Draws a line for the whole gradient and one a layer, from the first, dark, to the last."""
    from matplotlib import colormaps

    epochs = [each.epoch for each in logged]
    axis.plot(epochs, [each.whole for each in logged], label="whole gradient", **line_style(6))
    layers = layers_of(logged)
    for index, layer in enumerate(layers):
        norms = [each.layers.get(layer, float("nan")) for each in logged]
        color = colormaps[COLOUR_MAP](index / max(1, len(layers) - 1))
        axis.plot(epochs, norms, label=layer, **{**line_style(index), "color": color})
    axis.set_xlabel("epoch")
    whole_numbers(axis, min(epochs), max(epochs))
    axis.grid(alpha=0.3, which="both")
    axis.set_ylabel("norm of the gradient\n(as logged)")
    if layers:
        use_log_scale(axis)
        axis.legend(fontsize="x-small", bbox_to_anchor=(1.01, 1), loc="upper left")
    else:
        axis.set_ylim(bottom=0)
