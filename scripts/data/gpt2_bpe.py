#!/usr/bin/env python3
"""Encodes text as GPT-2 BPE, whose numbers BART's and RoBERTa's dictionaries list: stdin to stdout.

Example:
    gpt2_bpe.py --encoder-json encoder.json --vocab-bpe vocab.bpe < train.source > train.bpe.source
"""

from __future__ import annotations

import multiprocessing
import os
import sys
from typing import Any

from corpus import parser_of, use_utf8

from fairseq_sam.flags.number_types import num_workers

_encoder: Any = None


def _start(encoder_json: str, vocab_bpe: str) -> None:
    from fairseq.data.encoders.gpt2_bpe_utils import get_encoder

    global _encoder
    _encoder = get_encoder(encoder_json, vocab_bpe)


def _encode(line: str) -> str:
    return " ".join(map(str, _encoder.encode(line.strip())))


def main() -> int:
    """Encodes every line; empty ones stay, so that parallel files keep their lines."""
    parser = parser_of(__doc__)
    parser.add_argument("--encoder-json", required=True, help="GPT-2's encoder.json")
    parser.add_argument("--vocab-bpe", required=True, help="GPT-2's vocab.bpe")
    parser.add_argument("--workers", type=num_workers, default=os.cpu_count() or 1)
    args = parser.parse_args()
    for path in (args.encoder_json, args.vocab_bpe):
        if not os.path.isfile(path):
            parser.error(f"{path}: no such file")
    use_utf8()
    files = (args.encoder_json, args.vocab_bpe)
    with multiprocessing.Pool(args.workers, _start, files) as pool:
        for line in pool.imap(_encode, sys.stdin, 100):
            print(line)
    return 0


if __name__ == "__main__":
    sys.exit(main())
