"""Short names of checkpoints, for tables and legends of several."""

from __future__ import annotations

from pathlib import Path
from typing import List, Sequence


def checkpoint_names(checkpoints: Sequence[str]) -> List[str]:
    """Names files by the part of their paths that tells them apart.

    >>> checkpoint_names(["runs/adam/last.pt", "runs/ga_sam/last.pt"])
    ['adam', 'ga_sam']
    >>> checkpoint_names(["runs/adam/last.pt", "runs/adam/best.pt"])
    ['last.pt', 'best.pt']
    >>> checkpoint_names(["runs/adam/last.pt"])
    ['last.pt']
    """
    paths = [Path(checkpoint).absolute().parts for checkpoint in checkpoints]
    if len(set(paths)) < 2:
        return [parts[-1] for parts in paths]
    while len({parts[0] for parts in paths}) == 1:
        paths = [parts[1:] for parts in paths]
    while len({parts[-1] for parts in paths}) == 1:
        paths = [parts[:-1] for parts in paths]
    return ["/".join(parts) for parts in paths]
