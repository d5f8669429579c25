"""Importing fairseq with the plugin in it."""

from __future__ import annotations

import importlib.util

from fairseq_sam.commands.errors import NO_FAIRSEQ, CommandError


def load_fairseq() -> None:
    """Imports fairseq and registers the plugin with it.

    Raises:
        CommandError: this fairseq cannot be imported, as 0.12.2 from Python 3.11 on.
        ImportError: there is none.
    """
    try:
        import fairseq  # noqa: F401
    except ImportError:
        raise
    except Exception as error:
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise CommandError(f"fairseq cannot be imported ({reason})") from error
    import fairseq_sam

    fairseq_sam.register()


def require_fairseq() -> None:
    """Refuses to start work for other processes that need fairseq.

    Raises:
        CommandError: it is not installed.
    """
    if importlib.util.find_spec("fairseq") is None:
        raise CommandError(NO_FAIRSEQ)
