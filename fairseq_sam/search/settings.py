"""What a directory was searched with, so that runs of two commands are never compared.

It is written down for the whole search and again beside each run: where the one is damaged, the
others tell.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Callable, Dict, Optional

from fairseq_sam.files import read_json, write_json
from fairseq_sam.search.errors import SearchError
from fairseq_sam.search.files import set_aside

SETTINGS_NAME = "settings.json"
_COMMAND = "fairseq-train"

Settings = Dict[str, Any]


def check_same_search(directory: Path, ours: Settings, tell: Callable[[str], None]) -> None:
    """Refuses to go on with a search whose results would not be comparable.

    Settings that cannot be read are set aside and written anew.

    Args:
        directory: of the search.
        ours: by the names of flags, the arguments of ``fairseq-train`` by that name.
        tell: is called with a line about what was set aside.

    Raises:
        SearchError: other settings are known for the directory or for a run in it.
    """
    path = directory / SETTINGS_NAME
    theirs = read_settings(path)
    if theirs is None and os.path.lexists(path):
        aside = set_aside(path)
        runs = map(read_settings, sorted(directory.glob(f"rho-*/{SETTINGS_NAME}")))
        theirs = next((settings for settings in runs if settings is not None), None)
        source = "is taken from its runs" if theirs else "is taken to be this one"
        tell(f"{path}: damaged, now {aside.name}; the command of the search {source}")
    for name, value in ours.items():
        # A setting that another version did not know has its default there.
        if theirs is not None and name in theirs and theirs[name] != value:
            what = "arguments of fairseq-train" if name == _COMMAND else name
            raise SearchError(f"{directory}: holds a search with other {what}: use another --out")
    if theirs is None or not path.exists() or ours.keys() - theirs.keys():
        write_json({**(theirs or {}), **ours}, path)


def read_settings(path: Path) -> Optional[Settings]:
    """Returns settings, None where there are none that can be understood."""
    try:
        content = read_json(path)
    except (OSError, ValueError):
        return None
    is_whole = isinstance(content, dict) and isinstance(content.get(_COMMAND), list)
    return content if is_whole else None
