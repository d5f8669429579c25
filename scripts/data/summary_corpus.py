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
import gzip
import hashlib
import sys
from pathlib import Path
from typing import Iterator, List, Optional, Tuple

from corpus import CorpusError

from fairseq_sam.flags.number_types import count

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


def read_ready(root: Path, split: str) -> Iterator[Summary]:
    """Yields the pairs of ready text."""
    sides = [_read_side(root, split, side) for side in ("source", "target")]
    if len(sides[0]) != len(sides[1]):
        raise CorpusError(
            f"{root}: {split}.source has {len(sides[0])} lines, {split}.target {len(sides[1])}"
        )
    return zip(*sides)


def main() -> int:
    """Writes the splits."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="directory of the corpus")
    parser.add_argument("--out", type=Path, required=True, help="directory to write to")
    parser.add_argument(
        "--limit",
        type=count,
        nargs=2,
        metavar=("TRAIN", "OTHER"),
        help="only so many of each split",
    )
    args = parser.parse_args()
    try:
        args.out.mkdir(parents=True, exist_ok=True)
        counts = {split: write_split(args.data, split, args.out, args.limit) for split in SPLITS}
    except (CorpusError, OSError) as error:
        print(f"{parser.prog}: error: {error}", file=sys.stderr)
        return 1
    print(", ".join(f"{split} {count}" for split, count in counts.items()))
    return 0


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


def _read_side(root: Path, split: str, side: str) -> List[str]:
    for name in SPLITS[split]:
        plain, packed = root / f"{name}.{side}", root / f"{name}.{side}.gz"
        if plain.is_file():
            return plain.read_text(encoding="utf-8").rstrip("\n").split("\n")
        if packed.is_file():
            with gzip.open(packed, "rt", encoding="utf-8", newline="\n") as file:
                return file.read().rstrip("\n").split("\n")
    raise CorpusError(f"{root}: there is no {split}.{side}, plain or .gz")


if __name__ == "__main__":
    sys.exit(main())
