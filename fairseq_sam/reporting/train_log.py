"""Reads the per-epoch numbers out of ``fairseq-train``'s log.

Both ``--log-format json`` and the plain formats (``simple``, ``tqdm``, ``none`` has no numbers) are
understood, with whatever the logging configuration puts before the message. Losses are in bits, as
fairseq logs them.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from typing import Dict, Iterable, List, Optional, Tuple

_JSON = re.compile(r"\{.*\}\s*$")
_PLAIN = re.compile(r"epoch (\d+)(?: \| valid on '([^']+)' subset)? \| (.*)$")
_SPLITS = ("train", "valid")


@dataclass
class EpochLog:
    """One epoch's numbers.

    Attributes:
        epoch: counted from 1.
        train: statistic to value over the epoch's updates.
        valid: the same over the validation set, after the epoch.
    """

    epoch: int
    train: Dict[str, float] = field(default_factory=dict)
    valid: Dict[str, float] = field(default_factory=dict)


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
    match = _JSON.search(line)
    return _parse_json(match.group(0)) if match else _parse_plain(line)


def parse_log(lines: Iterable[str]) -> List[EpochLog]:
    """Reads a whole log, or several in a row; an epoch that was trained again counts once, anew."""
    epochs: Dict[int, EpochLog] = {}
    for line in lines:
        parsed = parse_line(line)
        if parsed is not None:
            epoch, split, values = parsed
            setattr(epochs.setdefault(epoch, EpochLog(epoch)), split, values)
    return [epochs[epoch] for epoch in sorted(epochs)]


def _parse_json(text: str) -> Optional[Tuple[int, str, Dict[str, float]]]:
    try:
        record = json.loads(text)
    except ValueError:
        return None
    if not isinstance(record, dict) or not isinstance(record.get("epoch"), int):
        return None
    for split in _SPLITS:
        prefix = f"{split}_"
        pairs = [(k[len(prefix) :], v) for k, v in record.items() if k.startswith(prefix)]
        if f"{prefix}loss" in record:
            return record["epoch"], split, _numbers(pairs)
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
        try:
            values[name] = float(str(value).strip())
        except ValueError:
            continue
    return values
