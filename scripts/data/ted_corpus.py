#!/usr/bin/env python3
r"""Turns an unpacked IWSLT archive of TED talks into train, valid and test text, ready for BPE.

An archive holds train.tags.SRC-TGT.{SRC,TGT}, one sentence a line between lines of tags, and one
XML file per language for each development and test set. For German-English of 2014 the steps are
those of fairseq's recipe (examples/translation/prepare-iwslt14.sh), with sacremoses in the place of
Moses: title and description lines of the training text count as sentences; training pairs are
dropped if a side is empty, longer than 175 tokens, or 1.5 times as long as the other; every 23rd
pair that is left is for validation; dev2010, dev2012, tst2010, tst2011 and tst2012 in this order
are the test set; all is in lower case.

What is written for each split and language: SPLIT.LANG, tokenised; for the test set also
test.raw.LANG, the segments as the XML has them, which sacreBLEU compares with.

Example:
    ted_corpus.py --archive de-en --source de --target en --out text
    ted_corpus.py --archive en-vi --source en --target vi --out text \
        --valid tst2012 --test tst2013 --cased --keep-abbreviations --keep-all

Measured on the official files: the German-English test set comes out of its XML as fairseq's recipe
has it, all 6750 lines of both sides; the English-Vietnamese development and test sets as Stanford
distributes them, but for one Vietnamese line of 2821 (a tokenised "9,").
"""

from __future__ import annotations

import argparse
import html
import re
import sys
from pathlib import Path
from typing import Iterable, Iterator, List, Sequence, Tuple

from corpus import CorpusError, limited, pair_up, parser_of, read_lines, run
from moses_text import TextStyle
from parallel_text import (
    Languages,
    Pair,
    add_common_arguments,
    clean,
    tokenize_pairs,
    write_splits,
)

TEST_SETS = ("dev2010", "dev2012", "tst2010", "tst2011", "tst2012")
VALID_EVERY = 23

_NOT_TEXT = re.compile(r"<url>|<talkid>|<keywords>")
_TITLE_TAGS = re.compile(r"</?(?:title|description)>")
_SEGMENT = re.compile(r'<seg id="[0-9]*">\s*(.*?)\s*</seg>')


def read_tags(lines: Iterable[str]) -> Iterator[str]:
    """Yields the sentences of a train.tags file, titles and descriptions among them.

    Other tags (<reviewer>, <translator>, <doc>) stay, as in the recipe: the ratio and length of the
    two sides decide about those lines as about any other.

    >>> list(read_tags(["<url>http://x</url>", "<title>A talk</title>", " Hello. "]))
    ['A talk', ' Hello. ']
    """
    for line in lines:
        if not _NOT_TEXT.search(line):
            yield _TITLE_TAGS.sub("", line)


def read_segments(lines: Iterable[str]) -> List[str]:
    """Returns the segments of a development or test set's XML, entities as they are.

    >>> read_segments(["<doc>", '<seg id="1"> One &amp; two. </seg>'])
    ['One &amp; two.']
    """
    return [match.group(1) for match in map(_SEGMENT.search, lines) if match]


def split_every(pairs: Sequence[Pair], every: int = VALID_EVERY) -> Tuple[List[Pair], List[Pair]]:
    """Returns training and validation pairs; each ``every``-th, counted from 1, is for validation.

    >>> split_every([("a", "1"), ("b", "2"), ("c", "3")], every=2)
    ([('a', '1'), ('c', '3')], [('b', '2')])
    """
    train = [pair for i, pair in enumerate(pairs, 1) if i % every]
    return train, list(pairs[every - 1 :: every])


class Archive:
    """The files of an unpacked archive, plain or .gz.

    Args:
        root: its directory.
        languages: codes of the source and the target language.
    """

    def __init__(self, root: Path, languages: Languages) -> None:
        self._root, self._languages, self._pair = root, languages, "-".join(languages)

    def training_pairs(self) -> List[Pair]:
        """Returns the raw training pairs."""
        paths = [self._only(f"train.tags.{self._pair}.{lang}") for lang in self._languages]
        return pair_up([list(read_tags(read_lines(p))) for p in paths], [p.name for p in paths])

    def segments(self, *names: str) -> List[Pair]:
        """Returns the raw pairs of development or test sets, one after the other."""
        pairs: List[Pair] = []
        for name in names:
            paths = [
                self._only(f"IWSLT*.{name}.{self._pair}.{lang}.xml") for lang in self._languages
            ]
            pairs += pair_up([read_segments(read_lines(p)) for p in paths], [p.name for p in paths])
        return pairs

    def _only(self, pattern: str) -> Path:
        found = sorted([*self._root.glob(pattern), *self._root.glob(f"{pattern}.gz")])
        if len(found) != 1:
            names = ", ".join(path.name for path in found) or "none"
            raise CorpusError(f"{self._root / pattern}: one file is wanted, found: {names}")
        return found[0]


def straight_apostrophes(pairs: Iterable[Pair]) -> List[Pair]:
    """Makes curly apostrophes straight; the recipe does so in development and test sets only."""
    return [(source.replace("’", "'"), target.replace("’", "'")) for source, target in pairs]


def prepare(args: argparse.Namespace) -> None:
    """Reads the archive and writes the splits."""
    languages = (args.source, args.target)
    archive = Archive(args.archive, languages)
    style = TextStyle(args.cased, args.keep_abbreviations)

    def tokenized(pairs: List[Pair]) -> List[Pair]:
        return tokenize_pairs(pairs, languages, style, args.workers)

    raw = archive.segments(*args.test)
    training = tokenized(archive.training_pairs())
    splits = {"train": training if args.keep_all else list(clean(training))}
    if args.valid:
        splits["valid"] = tokenized(straight_apostrophes(archive.segments(*args.valid)))
    else:
        splits["train"], splits["valid"] = split_every(splits["train"])
    splits["test"] = tokenized(straight_apostrophes(raw))
    splits["test.raw"] = [(html.unescape(source), html.unescape(target)) for source, target in raw]
    write_splits(args.out, languages, limited(splits, args.limit))


def main() -> int:
    """Prepares one archive."""
    parser = parser_of(__doc__)
    parser.add_argument("--archive", type=Path, required=True, help="directory of the files")
    parser.add_argument(
        "--valid", nargs="+", default=[], help="sets for validation (default: every 23rd pair)"
    )
    parser.add_argument("--test", nargs="+", default=list(TEST_SETS), help="sets to test on")
    add_common_arguments(parser)
    return run(parser, prepare)


if __name__ == "__main__":
    sys.exit(main())
