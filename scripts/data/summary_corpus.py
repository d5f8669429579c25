#!/usr/bin/env python3
"""Brings CNN/DailyMail, or another corpus of summaries, into SPLIT.source and SPLIT.target.

Two layouts are understood. Stories: DIR/cnn/stories and DIR/dailymail/stories with one .story file
an article, and url_lists/all_{train,val,test}.txt (or these lists in DIR itself), which tell the
split; a story's name is the SHA-1 of its URL. An article is its paragraphs, a summary its
highlights, each closed with a full stop if it has no final punctuation; text stays untokenised and
cased, as BART has it. Ready text: DIR/{train,val,test}.{source,target}, plain or .gz (valid will do
for val).

Example:
    summary_corpus.py --data cnn-dailymail --out text
"""

from __future__ import annotations

import argparse
import hashlib
import sys
from pathlib import Path
from typing import Iterator, List, Optional, Tuple

from corpus import CorpusError, add_limit_argument, find, pair_up, parser_of, read_lines, run

SPLITS = {"train": ("train",), "val": ("val", "valid"), "test": ("test",)}
FINAL = (".", "!", "?", "...", "'", "`", '"', "\u2019", "\u201d", ")")

Summary = Tuple[str, str]


def parse_story(text: str) -> Summary:
    r"""Returns a story's article and summary, on one line each.

    >>> parse_story("A man ran.\n\nHe won\n\n@highlight\n\nMan wins\n\n@highlight\n\nHe ran")
    ('A man ran. He won.', 'Man wins. He ran.')
    """
    article: List[str] = []
    highlights: List[str] = []
    destination = article
    for line in (line.strip() for line in text.splitlines()):
        if line == "@highlight":
            destination = highlights
        elif line:
            destination.append(" ".join(_closed(line).split()))
    return " ".join(article), " ".join(highlights)


def story_name(url: str) -> str:
    """Returns the file name of the story at a URL."""
    return hashlib.sha1(url.strip().encode("utf-8")).hexdigest() + ".story"


def read_stories(root: Path, split: str) -> Iterator[Summary]:
    """Yields a split's stories in the order of its list, but for those without text or summary."""
    names = [f"url_lists/all_{split}.txt", f"all_{split}.txt"]
    lists = [root / name for name in names if (root / name).is_file()]
    if not lists:
        raise CorpusError(f"{root}: there is no {names[0]}")
    for url in lists[0].read_text(encoding="utf-8").split():
        name = story_name(url)
        found = [p for s in ("cnn", "dailymail") if (p := root / s / "stories" / name).is_file()]
        if not found:
            raise CorpusError(
                f"{root}: {name} of {url} is in neither cnn/stories nor dailymail/stories"
            )
        article, summary = parse_story(found[0].read_text(encoding="utf-8"))
        if article and summary:
            yield article, summary


def read_ready(root: Path, split: str) -> List[Summary]:
    """Returns the pairs of ready text."""
    paths = [
        find(root, *(f"{name}.{side}" for name in SPLITS[split])) for side in ("source", "target")
    ]
    return pair_up([read_lines(path) for path in paths], [path.name for path in paths])


def prepare(args: argparse.Namespace) -> None:
    """Writes the splits."""
    for split in SPLITS:
        print(split, write_split(args.data, split, args.out, args.limit))


def main() -> int:
    """Runs the command line."""
    parser = parser_of(__doc__)
    parser.add_argument("--data", type=Path, required=True, help="directory of the corpus")
    parser.add_argument("--out", type=Path, required=True, help="directory to write to")
    add_limit_argument(parser)
    return run(parser, prepare)


def write_split(root: Path, split: str, out: Path, limit: Optional[List[int]]) -> int:
    """Writes one split and returns how many summaries it has."""
    stories = (root / "cnn" / "stories").is_dir() or (root / "dailymail" / "stories").is_dir()
    most = None if limit is None else limit[0 if split == "train" else 1]
    count = 0
    with open(out / f"{split}.source", "w", encoding="utf-8", newline="\n") as source, open(
        out / f"{split}.target", "w", encoding="utf-8", newline="\n"
    ) as target:
        for article, summary in (read_stories if stories else read_ready)(root, split):
            if count == most:
                break
            source.write(article + "\n")
            target.write(summary + "\n")
            count += 1
    if not count:
        raise CorpusError(f"{root}: nothing for {split}")
    return count


def _closed(line: str) -> str:
    return line if line.endswith(FINAL) else f"{line}."


if __name__ == "__main__":
    sys.exit(main())
