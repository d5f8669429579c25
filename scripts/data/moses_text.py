"""Tokenises text with sacremoses, by Moses' rules."""

from __future__ import annotations

import functools
import re
from typing import Any, NamedTuple

_LAST_STOP = re.compile(r"([^\s.])\.$")


class TextStyle(NamedTuple):
    """How tokenised text is written.

    Attributes:
        cased: upper case is kept.
        keep_abbreviations: the full stop stays on an abbreviation that ends a line. Older versions
            of Moses (Stanford's text) did that and sacremoses does; newer ones part it.
        normalise: typographic quotation marks, dashes and the like become plain ones before.
    """

    cased: bool = False
    keep_abbreviations: bool = False
    normalise: bool = False


def tokenize(line: str, language: str, style: TextStyle) -> str:
    """Tokenises a line by Moses' rules, with its escapes (&apos; &quot; …).

    Example: tokenize("It's 5 a.m.", "en", TextStyle()) is "it &apos;s 5 a.m .".
    """
    if style.normalise:
        line = _normalizer(language).normalize(line.strip())
    text = str(_tokenizer(language).tokenize(line, return_str=True))
    if not style.keep_abbreviations:
        text = _LAST_STOP.sub(r"\1 .", text)
    return text if style.cased else text.lower()


@functools.lru_cache(maxsize=None)
def _tokenizer(language: str) -> Any:
    from sacremoses import MosesTokenizer

    return MosesTokenizer(language)


@functools.lru_cache(maxsize=None)
def _normalizer(language: str) -> Any:
    from sacremoses import MosesPunctNormalizer

    return MosesPunctNormalizer(language)
