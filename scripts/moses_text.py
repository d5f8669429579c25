#!/usr/bin/env python3
"""Tokenises or detokenises text with sacremoses: stdin to stdout, one sentence a line."""

from __future__ import annotations

import argparse
import sys


def main() -> int:
    """Converts every line."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog="example: moses_text.py tokenize --lang de < train.de > train.tok.de",
    )
    parser.add_argument("action", choices=("tokenize", "detokenize"))
    parser.add_argument("--lang", required=True, help="two-letter code; unknown ones count as en")
    args = parser.parse_args()
    from sacremoses import MosesDetokenizer, MosesPunctNormalizer, MosesTokenizer

    for stream in (sys.stdin, sys.stdout):
        stream.reconfigure(encoding="utf-8", newline="\n")  # type: ignore[attr-defined]
    if args.action == "tokenize":
        normalizer, tokenizer = MosesPunctNormalizer(args.lang), MosesTokenizer(args.lang)
        for line in sys.stdin:
            print(tokenizer.tokenize(normalizer.normalize(line.strip()), return_str=True))
    else:
        detokenizer = MosesDetokenizer(args.lang)
        for line in sys.stdin:
            print(detokenizer.detokenize(line.split()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
