#!/usr/bin/env python3
"""Gathers sentences, one a line, from a file or from a folder's *.txt, plain or .gz.

Blank lines are left out, white space at the ends as well; repeated sentences stay.

Example:
    sentences.py --data stsbenchmark_train_10k_sents_random_sampled.txt.gz --out train.text
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import List

from corpus import CorpusError, count, parser_of, read_lines, run, write_lines


def read_sentences(data: Path) -> List[str]:
    """Returns the sentences of a file, or of a folder's files in the order of their names.

    Raises:
        CorpusError: there are none, or a file is damaged.
    """
    files = [data]
    if data.is_dir():
        files = sorted(p for p in data.iterdir() if p.name.endswith((".txt", ".txt.gz")))
        if not files:
            raise CorpusError(f"{data}: no *.txt or *.txt.gz in it")
    sentences = [line.strip() for path in files for line in read_lines(path)]
    sentences = [sentence for sentence in sentences if sentence]
    if not sentences:
        raise CorpusError(f"{data}: no sentences in it")
    return sentences


def prepare(args: argparse.Namespace) -> None:
    """Reads and writes."""
    sentences = read_sentences(args.data)[: args.limit]
    write_lines(sentences, args.out)
    print(f"{len(sentences)} sentences")


def main() -> int:
    """Runs the command line."""
    parser = parser_of(__doc__)
    parser.add_argument("--data", type=Path, required=True, help="a file, or a folder")
    parser.add_argument("--limit", type=count, help="no more than the first so many sentences")
    parser.add_argument("--out", type=Path, required=True, help="file to write")
    return run(parser, prepare, to_file=True)


if __name__ == "__main__":
    sys.exit(main())
