#!/usr/bin/env python3
"""Tokenises or detokenises text with sacremoses: stdin to stdout, one sentence a line."""

from __future__ import annotations

import argparse
import re
import sys
from typing import Any, Dict, NamedTuple

_LAST_STOP = re.compile(r"([^\s.])\.$")


class TextStyle(NamedTuple):
    """How tokenised text is written.

    Attributes:
        cased: upper case is kept.
        keep_abbreviations: the full stop stays on an abbreviation that ends a line. Older versions
            of Moses (Stanford's text) did that and sacremoses does; newer ones part it.
    """

    cased: bool = False
    keep_abbreviations: bool = False


def tokenize(line: str, language: str, style: TextStyle) -> str:
    """Tokenises a line by Moses' rules, with its escapes (&apos; &quot; …).

    Example: tokenize("It's 5 a.m.", "en", TextStyle()) is "it &apos;s 5 a.m .".
    """
    text = str(_tokenizer(language).tokenize(line, return_str=True))
    if not style.keep_abbreviations:
        text = _LAST_STOP.sub(r"\1 .", text)
    return text if style.cased else text.lower()


_tokenizers: Dict[str, Any] = {}


def _tokenizer(language: str) -> Any:
    from sacremoses import MosesTokenizer

    if language not in _tokenizers:
        _tokenizers[language] = MosesTokenizer(language)
    return _tokenizers[language]


def main() -> int:
    """Converts every line."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog="example: moses_text.py tokenize --lang de < train.de > train.tok.de",
    )
    parser.add_argument("action", choices=("tokenize", "detokenize"))
    parser.add_argument("--lang", required=True, help="two-letter code; unknown ones count as en")
    args = parser.parse_args()
    from sacremoses import MosesDetokenizer, MosesPunctNormalizer

    for stream in (sys.stdin, sys.stdout):
        stream.reconfigure(encoding="utf-8", newline="\n")  # type: ignore[attr-defined]
    if args.action == "tokenize":
        normalizer = MosesPunctNormalizer(args.lang)
        style = TextStyle(cased=True, keep_abbreviations=True)
        for line in sys.stdin:
            print(tokenize(normalizer.normalize(line.strip()), args.lang, style))
    else:
        detokenizer = MosesDetokenizer(args.lang)
        for line in sys.stdin:
            print(detokenizer.detokenize(line.split()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
