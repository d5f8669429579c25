"""Makes the training and validation sets of sentence classification out of one file a class.

python split_reviews.py --data DIR --out DIR [--train N] [--valid N]

DIR/{pos,neg}, plain or .gz, hold one tokenised sentence a line, as the movie reviews of Pang and
Lee (2005) do. The classes are made equally frequent, the order is drawn with a fixed seed, and what
occurs twice is used once. Writes {train,valid}.{input0,label}. Standard library only.
"""

import argparse
import gzip
import random
import sys
from pathlib import Path
from typing import Dict, List, Sequence, Tuple

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from fairseq_sam.flags.number_types import count

CLASSES = ("neg", "pos")


def read_sentences(directory: Path, name: str) -> List[str]:
    """Returns the different sentences of a class, in the file's order."""
    for path, opener in ((directory / name, open), (directory / f"{name}.gz", gzip.open)):
        if path.exists():
            with opener(path, "rt", encoding="utf-8") as lines:
                return list(dict.fromkeys(filter(None, (line.strip() for line in lines))))
    sys.exit(f"error: {directory / name}: neither that file nor {name}.gz is there")


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
            sys.exit(f"error: {sum(sizes)} sentences asked for, {2 * fewest} there")
        rng.shuffle(part)
        parts.append(part)
        begin = end
    return parts


def write(pairs: Sequence[Tuple[str, str]], prefix: Path) -> None:
    """Writes PREFIX.input0 and PREFIX.label."""
    for suffix, column in ((".input0", 0), (".label", 1)):
        text = "".join(f"{pair[column]}\n" for pair in pairs)
        prefix.with_name(prefix.name + suffix).write_text(text, encoding="utf-8")


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="directory with pos and neg")
    parser.add_argument("--out", type=Path, required=True, help="directory to write into")
    parser.add_argument("--train", type=count, default=4000, help="sentences (default: 4000)")
    parser.add_argument("--valid", type=count, default=1000, help="sentences (default: 1000)")
    args = parser.parse_args()
    sentences = {name: read_sentences(args.data, name) for name in CLASSES}
    train, valid = draw(sentences, (args.train, args.valid))
    args.out.mkdir(parents=True, exist_ok=True)
    write(train, args.out / "train")
    write(valid, args.out / "valid")


if __name__ == "__main__":
    main()
