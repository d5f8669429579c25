"""The adversarial risk of checkpoints as Markdown, laid out as δ-SAM's Table 4."""

from __future__ import annotations

from typing import Any, List, Mapping, Sequence

from fairseq_sam.reporting.numbers import sentences_told_apart, told_apart

_NORMS = {"l2": "L2", "linf": "L∞"}


def risk_table(figures: Mapping[str, Any]) -> str:
    """Formats what ``fairseq-sam risk --json`` writes: a row a checkpoint, means ± their errors."""
    sentences = sentences_told_apart(figures["checkpoints"])
    criterions = {each["name"]: each["criterion"] for each in figures["checkpoints"]}
    steps = figures["steps"]
    lines = [
        f"{figures['subset']}: {sentences}, {told_apart(criterions)}",
        f"within {figures['rho']:g} ({_NORMS[figures['norm']]}, {steps} ascent "
        f"step{'s' if steps > 1 else ''}), {figures['unit']}, mean ± standard error over sentences",
        "",
        _row(["checkpoint", "clean loss", "adversarial loss", "difference"]),
        _row(["---", "---:", "---:", "---:"]),
    ]
    for each in figures["checkpoints"]:
        cells = [_estimate(each[name]) for name in ("clean", "adversarial", "difference")]
        lines.append(_row([each["name"], *cells]))
    return "\n".join(lines) + "\n"


def _estimate(found: Mapping[str, Any]) -> str:
    error = found["standard_error"]
    return f"{found['mean']:.4f} ± " + ("unknown" if error is None else f"{error:.4f}")


def _row(cells: Sequence[str]) -> str:
    escaped: List[str] = [cell.replace("|", "\\|") for cell in cells]
    return "| " + " | ".join(escaped) + " |"
