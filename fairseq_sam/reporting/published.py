"""A paper's results, to be shown next to measured ones; the recipes have them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Dict


@dataclass(frozen=True)
class Published:
    """One experiment of a paper.

    Attributes:
        source: the paper, its table, and what is to be known of the comparison.
        metrics: metric to {run to value as printed}; the runs in the paper's order.
    """

    source: str
    metrics: Dict[str, Dict[str, str]]
