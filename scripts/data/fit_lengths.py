#!/usr/bin/env python3
"""Fits parallel text to a model: DIR/SPLIT.bpe.LANG becomes DIR/SPLIT.fit.LANG.

Training pairs with an empty or very long side would only waste a batch and are left out. A model
has 1024 positions, and one longer sentence would end validation or the translation: those of valid
and test are cut. The reference that a translation is compared with stays whole.

Example:
    fit_lengths.py --dir text --source de --target en
"""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import List

from corpus import CorpusError, pair_up, parser_of, read_lines, write_lines
from parallel_text import clean

LONGEST = 1000


def shortened(lines: List[str], name: str) -> List[str]:
    """Returns lines of at most ``LONGEST`` tokens, and says which were cut."""
    for number, line in enumerate(lines, 1):
        size = len(line.split())
        if size > LONGEST:
            print(f"{name}: line {number} has {size} tokens, cut to {LONGEST}", file=sys.stderr)
            lines[number - 1] = " ".join(line.split()[:LONGEST])
    return lines


def main() -> int:
    """Reads and writes."""
    parser = parser_of(__doc__)
    parser.add_argument("--dir", type=Path, required=True, help="directory of the text")
    parser.add_argument("--source", required=True, help="source language")
    parser.add_argument("--target", required=True, help="target language")
    args = parser.parse_args()
    languages = (args.source, args.target)
    try:
        for split in ("train", "valid", "test"):
            names = [f"{split}.bpe.{language}" for language in languages]
            sides = [read_lines(args.dir / name) for name in names]
            if split == "train":
                pairs = list(clean(pair_up(sides, names), max_ratio=math.inf))
                if not pairs:
                    raise CorpusError(f"{args.dir}: no usable training pair")
                sides = [[pair[side] for pair in pairs] for side in (0, 1)]
            else:
                sides = [shortened(side, name) for side, name in zip(sides, names)]
            for side, language in zip(sides, languages):
                write_lines(side, args.dir / f"{split}.fit.{language}")
    except (CorpusError, OSError) as error:
        print(f"{parser.prog}: error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
