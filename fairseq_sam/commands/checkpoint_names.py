"""Short names of checkpoints, for tables and legends of several."""

from __future__ import annotations

import os
from pathlib import Path
from typing import List, Sequence


def checkpoint_names(checkpoints: Sequence[str]) -> List[str]:
    """Returns the paths without what all of them share at the beginning or at the end.

    >>> checkpoint_names(["runs/adam/last.pt", "runs/ga_sam/last.pt"])
    ['adam', 'ga_sam']
    >>> checkpoint_names(["runs/adam/last.pt", "runs/adam/best.pt"])
    ['last', 'best']
    >>> checkpoint_names(["runs/adam/last.pt"])
    ['last']
    """
    parts = [Path(os.path.splitext(path)[0]).absolute().parts for path in checkpoints]
    if len(set(parts)) < len(parts):  # one twice, or only the suffixes differ
        return [f"{number} {path}" for number, path in enumerate(checkpoints, 1)]
    if len(parts) == 1:
        return [parts[0][-1]]
    while len({part[0] for part in parts}) == 1:
        parts = [part[1:] for part in parts]
    while len({part[-1] for part in parts}) == 1:
        parts = [part[:-1] for part in parts]
    return ["/".join(part) for part in parts]
