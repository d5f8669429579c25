#!/usr/bin/env python3
"""Brings ready parallel text into the form that the translation scripts train on.

Reads DIR/{train,valid,test}.{SRC,TGT}, plain or .gz, and writes SPLIT.LANG, tokenised, and
test.raw.LANG, the untokenised test set that sacreBLEU compares with. Stanford's names tst2012 and
tst2013 stand for valid and test. Text that is tokenised already is not tokenised again, and its
test.raw is made by detokenising. Training pairs are cleaned as Moses' clean-corpus-n does.

Example:
    parallel_text.py --data corpus --source de --target en --out text
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import re
import sys
from functools import partial
from pathlib import Path
from typing import Iterable, Iterator, List, Mapping, Sequence, Tuple

from corpus import (
    CorpusError,
    add_limit_argument,
    find,
    limited,
    pair_up,
    parser_of,
    read_lines,
    run,
    write_lines,
)
from moses_text import TextStyle, tokenize

from fairseq_sam.flags.number_types import num_workers

Pair = Tuple[str, str]
Languages = Tuple[str, str]

MAX_LENGTH = 175
MAX_RATIO = 1.5
SPLITS = {"train": ("train",), "valid": ("valid", "tst2012"), "test": ("test", "tst2013")}

_FINAL = re.compile(r"(\s?)[.?!]$")


def clean(
    pairs: Iterable[Pair], max_ratio: float = MAX_RATIO, max_length: int = MAX_LENGTH
) -> Iterator[Pair]:
    """Yields the pairs that Moses' clean-corpus-n would keep.

    Dropped are pairs with an empty side, with one of more than ``max_length`` tokens, or with one
    that has more than ``max_ratio`` times the tokens of the other.

    >>> list(clean([("a b", "c"), ("a b c", "d e"), ("", "f")]))
    [('a b c', 'd e')]
    """
    for source, target in pairs:
        shorter, longer = sorted((len(source.split()), len(target.split())))
        if shorter >= 1 and longer <= max_length and longer <= max_ratio * shorter:
            yield source, target


def tokenize_pairs(
    pairs: Sequence[Pair], languages: Languages, style: TextStyle, workers: int = 1
) -> List[Pair]:
    """Tokenises both sides, in several processes."""
    sides = []
    with multiprocessing.Pool(workers) as pool:
        for side, language in enumerate(languages):
            lines = [pair[side] for pair in pairs]
            sides.append(pool.map(partial(tokenize, language=language, style=style), lines, 500))
    return list(zip(*sides))


def is_tokenized(lines: Iterable[str]) -> bool:
    """Tells whether final punctuation mostly stands apart.

    >>> is_tokenized(["Stop!", "Go on ."]), is_tokenized(["stop !", "go on ."])
    (False, True)
    """
    ends = [match.group(1) for match in map(_FINAL.search, lines) if match]
    return 2 * ends.count(" ") > len(ends)


def write_splits(out: Path, languages: Languages, splits: Mapping[str, Sequence[Pair]]) -> None:
    """Writes every split's two files and says how many pairs they have."""
    for split, pairs in splits.items():
        if not pairs:
            raise CorpusError(f"no pair is left for {split}")
        for side, language in enumerate(languages):
            write_lines((pair[side] for pair in pairs), out / f"{split}.{language}")
        print(f"{split}: {len(pairs)} pairs")


def add_common_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds what all programs have that prepare parallel text."""
    parser.add_argument("--source", required=True, help="source language")
    parser.add_argument("--target", required=True, help="target language")
    parser.add_argument("--out", type=Path, required=True, help="directory to write to")
    parser.add_argument("--cased", action="store_true", help="keep upper case")
    parser.add_argument(
        "--keep-abbreviations",
        action="store_true",
        help="leave the full stop on an abbreviation that ends a line, as older versions of Moses",
    )
    parser.add_argument(
        "--keep-all",
        action="store_true",
        help="keep training pairs that are empty, very long, or very different in length",
    )
    add_limit_argument(parser)
    parser.add_argument(
        "--workers",
        type=num_workers,
        default=os.cpu_count() or 1,
        help="processes for tokenising (default: one per core)",
    )


def prepare(args: argparse.Namespace) -> None:
    """Reads the text and writes the splits."""
    from sacremoses import MosesDetokenizer

    languages = (args.source, args.target)
    read = {split: _read_split(args.data, names, languages) for split, names in SPLITS.items()}
    read = limited(read, args.limit)
    tokenized = is_tokenized([pair[1] for pair in read["train"][:1000]])
    if args.text == "tokenized" or (args.text == "auto" and tokenized):
        splits = read if args.cased else {s: _lower(pairs) for s, pairs in read.items()}
        detokenizers = [MosesDetokenizer(language) for language in languages]
        raw = [
            tuple(d.detokenize(side.split()) for d, side in zip(detokenizers, pair))
            for pair in read["test"]
        ]
    else:
        style = TextStyle(args.cased, args.keep_abbreviations, args.normalise)
        splits = {
            split: tokenize_pairs(pairs, languages, style, args.workers)
            for split, pairs in read.items()
        }
        raw = read["test"]
    if not args.keep_all:
        splits["train"] = list(clean(splits["train"]))
    write_splits(args.out, languages, {**splits, "test.raw": raw})


def main() -> int:
    """Prepares one corpus."""
    parser = parser_of(__doc__)
    parser.add_argument("--data", type=Path, required=True, help="directory of the files")
    parser.add_argument(
        "--text",
        choices=("auto", "raw", "tokenized"),
        default="auto",
        help="whether it is tokenised already (default: look at it)",
    )
    parser.add_argument("--normalise", action="store_true", help="make quotation marks plain first")
    add_common_arguments(parser)
    return run(parser, prepare)


def _read_split(root: Path, names: Sequence[str], languages: Languages) -> List[Pair]:
    paths = [find(root, *(f"{name}.{lang}" for name in names)) for lang in languages]
    return pair_up(list(map(read_lines, paths)), list(map(str, paths)))


def _lower(pairs: Sequence[Pair]) -> List[Pair]:
    return [(source.lower(), target.lower()) for source, target in pairs]


if __name__ == "__main__":
    sys.exit(main())
