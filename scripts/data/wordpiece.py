#!/usr/bin/env python3
"""Encodes text as the pieces that a converted encoder's dict.txt lists: stdin to stdout.

Example:
    fairseq-sam convert all-MiniLM-L6-v2 --output minilm/model.pt
    wordpiece.py minilm < train.txt > train.pieces
"""

from __future__ import annotations

import sys
from pathlib import Path

from corpus import parser_of, use_utf8

from fairseq_sam.checkpoints.conversion.source import ConversionError
from fairseq_sam.checkpoints.conversion.tokenizer import FILE_NAME, load_tokenizer


def main() -> int:
    """Encodes every line; empty ones stay, so that parallel files keep their lines."""
    parser = parser_of(__doc__)
    parser.add_argument(
        "tokenizer", type=Path, help=f"a {FILE_NAME}, or the folder that fairseq-sam convert wrote"
    )
    args = parser.parse_args()
    path = args.tokenizer / FILE_NAME if args.tokenizer.is_dir() else args.tokenizer
    try:
        pieces = load_tokenizer(path)
    except ConversionError as error:
        parser.exit(1, f"{parser.prog}: error: {error}\n")
    use_utf8()
    for line in sys.stdin:
        print(" ".join(pieces(line.rstrip("\n"))))
    return 0


if __name__ == "__main__":
    sys.exit(main())
