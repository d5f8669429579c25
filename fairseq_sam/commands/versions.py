"""Which fairseq_sam, fairseq and torch there are."""

from __future__ import annotations

import importlib.util
import re
from importlib import metadata
from pathlib import Path
from typing import List

from fairseq_sam.version import __version__

_DISTRIBUTIONS = ("fairseq", "fairseq-fixed")
"""Both own the import name ``fairseq``."""


def versions() -> List[str]:
    """Returns a line each, of names and versions."""
    return [f"fairseq_sam {__version__}", f"fairseq {_fairseq()}", f"torch {_installed('torch')}"]


def _fairseq() -> str:
    """Returns the version of the fairseq that would be imported, and what it is called on PyPI."""
    found = importlib.util.find_spec("fairseq")
    if found is None:
        return "is not installed"
    # Its own word comes first: the metadata may be those of another copy.
    folder = Path(found.origin).parent if found.origin else Path()
    names = [name for name in _DISTRIBUTIONS if _installed(name) != "is not installed"]
    for own in (folder / "version.py", folder / "version.txt"):
        text = own.read_text(encoding="utf-8", errors="replace") if own.is_file() else ""
        match = re.search(r"^(?:__version__ *= *['\"])?([0-9][\w.+-]*)", text, re.MULTILINE)
        if match:
            return f"{match[1]}, {folder}"
    return f"{_installed(names[0])} ({names[0]}), {folder}" if names else f"unknown, {folder}"


def _installed(distribution: str) -> str:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return "is not installed"
