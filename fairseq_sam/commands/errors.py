"""The error that a subcommand reports in one line instead of a traceback."""

from __future__ import annotations


class CommandError(Exception):
    """Work that could not be done; its text is one line that names the culprit."""
