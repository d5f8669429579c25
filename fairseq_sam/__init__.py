"""Sharpness-aware training for fairseq: ``--user-dir fairseq_sam --optimizer ga_sam``.

Importing this package inside fairseq is all it takes: it mends faults of the fairseq at hand
(:mod:`fairseq_sam.host`), registers criterions (:mod:`fairseq_sam.criterions`) and optimizers, and
connects these with the training loop (:mod:`fairseq_sam.training`).
"""

import sys

from fairseq_sam.version import __version__

__all__ = ["FairseqSamError", "__version__", "register"]


class FairseqSamError(Exception):
    """What every error of this package is, whatever else it may be (a ``ValueError``, say).

    ``fairseq-sam`` and the scripts say its text in one line, and end with status 1. What ends a
    training at its start is fairseq's or argparse's way, ``SystemExit``.
    """


def register() -> None:
    """Registers everything with fairseq; done on import wherever fairseq is already loaded."""
    from fairseq_sam import host

    host.repair()
    from fairseq_sam import criterions, models, tasks  # noqa: F401
    from fairseq_sam.training import optimizers, seam  # noqa: F401

    seam.install()


if "fairseq" in sys.modules:
    register()
