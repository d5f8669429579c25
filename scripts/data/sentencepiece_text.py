#!/usr/bin/env python3
"""Learns a joint SentencePiece model, or splits text with one.

Example:
    sentencepiece_text.py learn --model pieces.model --size 10000 train.de train.en
    sentencepiece_text.py encode --model pieces.model < test.de > test.bpe.de
"""

from __future__ import annotations

import io
import sys
from pathlib import Path
from typing import Iterator, List

from corpus import count, parser_of, use_utf8

from fairseq_sam.files.writing import replaced


def learn(model: Path, size: int, inputs: List[Path]) -> None:
    """Learns a BPE model of ``size`` pieces; the file appears when it is whole."""
    import sentencepiece

    def lines() -> Iterator[str]:
        for path in inputs:
            with open(path, encoding="utf-8", newline="\n") as file:
                yield from (line.rstrip("\n") for line in file)

    written = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=lines(),
        model_writer=written,
        vocab_size=size,
        model_type="bpe",
        character_coverage=1.0,
        # Small corpora do not have the words for so many pieces.
        hard_vocab_limit=False,
        minloglevel=1,
    )
    with replaced(model) as incomplete:
        incomplete.write_bytes(written.getvalue())


def encode(model: Path) -> None:
    """Splits stdin, one sentence a line."""
    import sentencepiece

    processor = sentencepiece.SentencePieceProcessor(model_file=str(model))
    use_utf8()
    for line in sys.stdin:
        print(" ".join(processor.encode(line.rstrip("\n"), out_type=str)))


def main() -> int:
    """Learns or encodes."""
    parser = parser_of(__doc__)
    parser.add_argument("action", choices=("learn", "encode"))
    parser.add_argument("inputs", nargs="*", type=Path, help="text to learn from")
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--size", type=count, default=10000, help="pieces (default: %(default)s)")
    args = parser.parse_intermixed_args()
    if args.action == "learn":
        if not args.inputs:
            parser.error("learn needs the files to learn from")
        learn(args.model, args.size, args.inputs)
    else:
        encode(args.model)
    return 0


if __name__ == "__main__":
    sys.exit(main())
