#!/usr/bin/env python3
"""Shows fairseq-train's JSON log (stdin) as one line per epoch, and keeps all of it in a file.

On a terminal the line of the running epoch is updated as it goes. Errors are passed on.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from typing import Any, Dict, Optional

_JSON = re.compile(r"\{.*\}\s*$")
_ERROR = re.compile(r"^\S*(Error|Exception)\b.*:|error: ")


def read_record(line: str) -> Optional[Dict[str, Any]]:
    """Returns the JSON object at the end of a log line, None where there is none."""
    match = _JSON.search(line)
    try:
        record = json.loads(match.group(0)) if match else None
    except ValueError:
        return None
    return record if isinstance(record, dict) and "epoch" in record else None


def epoch_line(train: Dict[str, Any], valid: Dict[str, Any]) -> str:
    """Formats one finished epoch."""
    text = (
        f"epoch {valid['epoch']:>3}  train loss {_decimal(train, 'train_loss')}"
        f"  valid loss {_decimal(valid, 'valid_loss')}  {train.get('train_train_wall', '?'):>4} s"
    )
    if float(train.get("train_perturbation_on", 0)) > 0:
        text += f"  sharpness {_decimal(train, 'train_sharpness')}"
    return text


def _decimal(record: Dict[str, Any], key: str) -> str:
    return f"{float(record.get(key, 'nan')):6.3f}"


def main() -> int:
    """Copies stdin to the log and prints the summary."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0],
        epilog="example: fairseq-train … --log-format json 2>&1 | epoch_lines.py --log train.log",
    )
    parser.add_argument("--log", required=True, help="file to append everything to")
    parser.add_argument("--label", default="", help="what to put before each line")
    args = parser.parse_args()
    train: Dict[str, Any] = {}
    valid: Dict[str, Any] = {}
    live = sys.stdout.isatty()
    with open(args.log, "a", encoding="utf-8") as log:
        for line in sys.stdin:
            log.write(line)
            log.flush()
            record = read_record(line)
            if record is None:
                if _ERROR.search(line):
                    print(line.rstrip(), file=sys.stderr, flush=True)
            elif "train_loss" in record:
                train = record
            elif "valid_loss" in record:
                valid = record
            elif live and "update" in record:
                done = f"epoch {record['update']:.2f}  loss {record.get('loss', '?')}"
                print(f"\r  {args.label}{done}\033[K", end="", flush=True)
            if train and valid:
                clear = "\r\033[K" if live else ""
                print(f"{clear}  {args.label}{epoch_line(train, valid)}", flush=True)
                train, valid = {}, {}
    return 0


if __name__ == "__main__":
    sys.exit(main())
