"""Makes the training and validation sets of sentence classification out of one file a class.

python split_reviews.py --data DIR --out DIR [--train N] [--valid N]

DIR/{pos,neg}, plain or .gz, hold one tokenised sentence a line, as the movie reviews of Pang and
Lee (2005) do. The classes are made equally frequent, the order is drawn with a fixed seed, and what
occurs twice is used once. Writes {train,valid}.{input0,label}.
"""

import argparse
import random
import sys
from pathlib import Path
from typing import Dict, List, Sequence, Tuple

from corpus import CorpusError, count, find, parser_of, read_lines, run, write_lines

CLASSES = ("neg", "pos")


def read_sentences(directory: Path, name: str) -> List[str]:
    """Returns the different sentences of a class, in the file's order."""
    lines = (line.strip() for line in read_lines(find(directory, name)))
    return list(dict.fromkeys(filter(None, lines)))


def draw(sentences: Dict[str, List[str]], sizes: Sequence[int]) -> List[List[Tuple[str, str]]]:
    """Returns disjoint sets of (sentence, class) of these sizes, each class half of it."""
    rng = random.Random(1)
    twice = set(sentences["neg"]) & set(sentences["pos"])
    shuffled = {}
    for name in CLASSES:
        shuffled[name] = [text for text in sentences[name] if text not in twice]
        rng.shuffle(shuffled[name])
    begin, parts = 0, []
    for size in sizes:
        end = begin + size // 2
        part = [(text, name) for name in CLASSES for text in shuffled[name][begin:end]]
        if len(part) < size // 2 * 2:
            fewest = min(map(len, shuffled.values()))
            raise CorpusError(f"{sum(sizes)} sentences asked for, {2 * fewest} there")
        rng.shuffle(part)
        parts.append(part)
        begin = end
    return parts


def prepare(args: argparse.Namespace) -> None:
    """Reads and writes."""
    sentences = {name: read_sentences(args.data, name) for name in CLASSES}
    for part, pairs in zip(("train", "valid"), draw(sentences, (args.train, args.valid))):
        write_lines((text for text, _ in pairs), args.out / f"{part}.input0")
        write_lines((name for _, name in pairs), args.out / f"{part}.label")


def main() -> int:
    """Runs the command line."""
    parser = parser_of(__doc__)
    parser.add_argument("--data", type=Path, required=True, help="directory with pos and neg")
    parser.add_argument("--out", type=Path, required=True, help="directory to write into")
    parser.add_argument("--train", type=count, default=4000, help="sentences (default: 4000)")
    parser.add_argument("--valid", type=count, default=1000, help="sentences (default: 1000)")
    return run(parser, prepare)


if __name__ == "__main__":
    sys.exit(main())
