"""What a subcommand refuses in one line instead of a traceback, a missing fairseq above all."""

from __future__ import annotations

import errno
import importlib.util
import os

from fairseq_sam import FairseqSamError
from fairseq_sam.files.reading import PathLike
from fairseq_sam.files.writing import may_write

NO_FAIRSEQ = (
    "fairseq is not installed: pip install fairseq-fixed (Python 3.11 or later) or fairseq (before)"
)


class CommandError(FairseqSamError):
    """Work that could not be done; its text is one line that names the culprit."""


def refuse_unwritable(path: PathLike) -> None:
    """Refuses a file that could not be written, before there is work to lose.

    Raises:
        CommandError: naming it.
    """
    if not os.path.isdir(os.path.dirname(os.path.abspath(path))):
        raise CommandError(f"{path}: its directory does not exist")
    if not may_write(path):
        raise CommandError(f"{path}: cannot write ({os.strerror(errno.EACCES)})")


def explain_import(error: ImportError) -> str:
    """Returns one line that says what is missing and how to get it."""
    name = (error.name or "").partition(".")[0]
    if isinstance(error, ModuleNotFoundError) and name in ("fairseq", "fairseq_cli"):
        return NO_FAIRSEQ
    if isinstance(error, ModuleNotFoundError) and name:
        return f"{name} is not installed: pip install {name}"
    return f"cannot import {name or 'a package'} ({str(error).splitlines()[0]})"


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
