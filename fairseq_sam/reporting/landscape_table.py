"""Loss surfaces and m-sharpness as Markdown."""

from __future__ import annotations

from typing import Any, List, Mapping, Optional, Sequence


def landscape_tables(figures: Mapping[str, Any]) -> str:
    """Formats what ``fairseq-sam landscape --json`` writes.

    A line's points are rows of a table; a plane's are a table with x downwards and y across.
    """
    about = f"{figures['subset']}: {figures['num_sentences']} sentences, {figures['criterion']}"
    lines = [f"{' – '.join(figures['names'])}, {about}, {figures['unit']}"]
    if "surface" in figures:
        lines += ["", *_surface_lines(figures["surface"])]
    if figures.get("m_sharpness"):
        lines += ["", *_sharpness_lines(figures)]
    return "\n".join(lines) + "\n"


def _surface_lines(surface: Mapping[str, Any]) -> List[str]:
    across = surface["axes"][0]
    if len(surface["axes"]) == 1:
        cells = [[_number(value)] for value in surface["losses"]]
        header = [surface["labels"][0], "loss"]
    else:
        cells = [[_number(value) for value in row] for row in surface["losses"]]
        corner = f"{surface['labels'][0]} ↓ {surface['labels'][1]} →"
        header = [corner, *(f"{y:.3g}" for y in surface["axes"][1])]
    rows = [_row([f"{x:.3g}", *row]) for x, row in zip(across, cells)]
    return [_row(header), _row(["---:"] * len(header)), *rows]


def _sharpness_lines(figures: Mapping[str, Any]) -> List[str]:
    measured = figures["m_sharpness"]
    header = ["L2 radius", *(each["name"] for each in measured)]
    rows = []
    for index, point in enumerate(measured[0]["radii"]):
        cells = [_estimate(each["radii"][index]) for each in measured]
        rows.append(_row([f"{point['radius']:g}", *cells]))
    batches = measured[0]["num_batches"]
    title = f"{figures['m']}-sharpness, mean ± standard error over {batches} mini-batches:"
    return [title, "", _row(header), _row(["---:"] * len(header)), *rows]


def _estimate(point: Mapping[str, Any]) -> str:
    error = point["standard_error"]
    return f"{point['mean']:.5f}" + ("" if error is None else f" ± {error:.5f}")


def _number(value: Optional[float]) -> str:
    return "inf" if value is None else f"{value:.4f}"


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
