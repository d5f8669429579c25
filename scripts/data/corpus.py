"""What the programs that prepare corpora share."""

import argparse
import sys
from pathlib import Path
from typing import Iterable

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from fairseq_sam.flags.number_types import count


class CorpusError(Exception):
    """A corpus that cannot be used; the message is one line that names the file."""


def add_limit_argument(parser: argparse.ArgumentParser) -> None:
    """Adds the flag that takes a part of the examples: ``[train, others]``."""
    parser.add_argument(
        "--limit",
        type=count,
        nargs=2,
        metavar=("N", "M"),
        help="only N examples to train, M others",
    )


def write_lines(lines: Iterable[str], path: Path) -> None:
    """Writes a line each."""
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
