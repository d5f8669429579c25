"""What to show of a training's log: a line an epoch, and how it ended."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Callable, Dict, List

from fairseq_sam.files.reading import open_regular
from fairseq_sam.reporting.train_log import parse_line

_TAIL_BYTES = 1 << 20


class EpochLines:
    """Tells of each epoch that a log has come to since the last look.

    Args:
        log: of fairseq-train, ``--log-format json``.
        tell: is called with the lines.
    """

    def __init__(self, log: Path, tell: Callable[[str], None]) -> None:
        self._log, self._tell, self._place = log, tell, -1
        self._valid: Dict[str, float] = {}

    def look(self, start: int) -> str:
        """Tells what is new; ``start`` is where the log of this training begins."""
        self._place = max(self._place, start)
        with open_regular(self._log) as stream:
            stream.seek(self._place)
            content = stream.read()
        whole, _, _ = content.rpartition(b"\n")
        self._place += len(whole)
        for line in whole.decode("utf-8", "replace").splitlines():
            parsed = parse_line(line)
            if parsed is not None:
                epoch, half, values = parsed
                if half == "train":  # its validations come before
                    self._tell(epoch_line(epoch, values, self._valid))
                self._valid = values if half == "valid" else {}
        return ""


def epoch_line(epoch: int, train: Dict[str, float], valid: Dict[str, float]) -> str:
    """Formats an epoch.

    >>> epoch_line(2, {"loss": 5.0, "train_wall": 7.2}, {"loss": 4.5})
    'epoch   2  train loss  5.000  valid loss  4.500    7 s'
    >>> epoch_line(3, {"loss": 4.0, "perturbation_on": 1.0, "rho": 0.05}, {})
    'epoch   3  train loss  4.000    0 s  rho 0.05'
    """
    text = f"epoch {epoch:>3}  train loss {train['loss']:6.3f}"
    if "loss" in valid:
        text += f"  valid loss {valid['loss']:6.3f}"
    text += f"  {train.get('train_wall', 0.0):>3.0f} s"
    if train.get("perturbation_on", 0.0) == 0:
        return text
    if "sharpness" in train:
        return f"{text}  sharpness {train['sharpness']:6.3f}"
    return f"{text}  rho {train.get('rho', 0.0):.2g}"  # without a pass at w


def last_lines(log: Path, start: int) -> List[str]:
    """Returns the last lines that are not empty; the message of a traceback is among them.

    What Python reports while it shuts down ("Exception ignored in …") is left out.

    Args:
        log: of several attempts.
        start: where that of the last one begins.
    """
    with open_regular(log) as stream:
        stream.seek(max(start, stream.seek(0, os.SEEK_END) - _TAIL_BYTES))
        text = stream.read().decode("utf-8", "replace")
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    end = range(max(0, len(lines) - 40), len(lines))
    ignored = (i for i in end if lines[i].startswith("Exception ignored in"))
    return lines[: next(ignored, len(lines))]
