"""Reads the per-epoch numbers out of ``fairseq-train``'s log.

Both ``--log-format json`` and the plain formats (``simple``, ``tqdm``, ``none`` has no numbers) are
understood, with whatever the logging configuration puts before the message. Losses are in bits, as
fairseq logs them.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any, Dict, Iterable, List, Optional, Tuple

from fairseq_sam.files.reading import parse_json
from fairseq_sam.reporting.numbers import number_of

_PLAIN = re.compile(r"epoch ([0-9]{1,9})(?: \| valid on '([^']+)' subset)? \| (.*)$")
_LAST_EPOCH = 10**9 - 1
_SPLITS = ("train", "valid")


@dataclass
class EpochLog:
    """One epoch's numbers.

    Attributes:
        epoch: counted from 1.
        train: statistic to value over the epoch's updates.
        valid: the same over the validation set, after the epoch.
        valid_losses: number of updates to validation loss; there may be several an epoch.
    """

    epoch: int
    train: Dict[str, float] = field(default_factory=dict)
    valid: Dict[str, float] = field(default_factory=dict)
    valid_losses: Dict[float, float] = field(default_factory=dict)


def parse_line(line: str) -> Optional[Tuple[int, str, Dict[str, float]]]:
    """Reads one line of a log.

    Returns:
        ``(epoch, "train" or "valid", values)``, or None for a line that closes no epoch.

    >>> parse_line('| INFO | valid | {"epoch": 2, "valid_loss": "4.5", "valid_best_loss": "4.5"}')
    (2, 'valid', {'loss': 4.5, 'best_loss': 4.5})
    >>> parse_line("| INFO | train | epoch 002 | loss 5.1 | sharpness 0.02")
    (2, 'train', {'loss': 5.1, 'sharpness': 0.02})
    >>> parse_line('| INFO | train_inner | {"epoch": 2, "update": 1.5, "loss": "4.5"}')
    """
    record = record_of(line)
    return _parse_plain(line) if record is None else _parse_record(record)


def record_of(line: str) -> Optional[Dict[str, Any]]:
    """Returns the JSON object that a line of a log ends with, None if there is none.

    >>> record_of('| INFO | valid | {"epoch": 2, "va2024 | INFO | valid | {"epoch": 2}')
    {'epoch': 2}
    """
    line = line.rstrip()
    if not line.endswith("}") or "{" not in line:
        return None
    # A line that was cut off has the next one behind it: the last object is whole.
    for start in dict.fromkeys((line.index("{"), line.rindex("{"))):
        try:
            record = parse_json(line[start:])
        except ValueError:
            continue
        if isinstance(record, dict):
            return record
    return None


def parse_log(lines: Iterable[str]) -> List[EpochLog]:
    """Reads a whole log, or several in a row; an epoch that was trained again counts once, anew."""
    epochs: Dict[int, EpochLog] = {}
    for line in lines:
        parsed = parse_line(line)
        if parsed is not None:
            epoch, split, values = parsed
            log = epochs.setdefault(epoch, EpochLog(epoch))
            setattr(log, split, values)
            if split == "valid":
                updates = values.get("num_updates", 0.0)
                earlier = {u: loss for u, loss in log.valid_losses.items() if u < updates}
                found = {updates: values["loss"]} if "loss" in values else {}
                log.valid_losses = {**earlier, **found}
    return [epochs[epoch] for epoch in sorted(epochs)]


def _parse_record(record: Dict[str, Any]) -> Optional[Tuple[int, str, Dict[str, float]]]:
    epoch = record.get("epoch")
    if not isinstance(epoch, int) or isinstance(epoch, bool) or not 0 <= epoch <= _LAST_EPOCH:
        return None
    for split in _SPLITS:
        prefix = f"{split}_"
        pairs = [(k[len(prefix) :], v) for k, v in record.items() if k.startswith(prefix)]
        if f"{prefix}loss" in record:
            return epoch, split, _numbers(pairs)
    return None


def _parse_plain(line: str) -> Optional[Tuple[int, str, Dict[str, float]]]:
    match = _PLAIN.search(line)
    if match is None or match.group(2) not in (None, "valid"):
        return None
    pairs = [tuple(part.split(" ", 1)) for part in match.group(3).split(" | ") if " " in part]
    values = _numbers([(name, value) for name, value in pairs])
    if "loss" not in values:
        return None
    return int(match.group(1)), "train" if match.group(2) is None else "valid", values


def _numbers(pairs: Iterable[Tuple[str, object]]) -> Dict[str, float]:
    values = {}
    for name, value in pairs:
        found = number_of(value)
        if found is not None:
            values[name] = found
    return values
