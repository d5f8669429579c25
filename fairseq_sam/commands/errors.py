"""The error that a subcommand reports in one line instead of a traceback."""

from __future__ import annotations

NO_FAIRSEQ = (
    "fairseq is not installed: pip install fairseq-fixed (Python 3.11 or later) or fairseq (before)"
)


class CommandError(Exception):
    """Work that could not be done; its text is one line that names the culprit."""


def explain_import(error: ImportError) -> str:
    """Returns one line that says what is missing and how to get it."""
    name = (error.name or "").partition(".")[0]
    if isinstance(error, ModuleNotFoundError) and name in ("fairseq", "fairseq_cli"):
        return NO_FAIRSEQ
    if isinstance(error, ModuleNotFoundError) and name:
        return f"{name} is not installed: pip install {name}"
    return f"cannot import {name or 'a package'} ({str(error).splitlines()[0]})"
