#!/usr/bin/env python3
"""Gathers sentences, one a line, from a file or from a folder's *.txt, plain or .gz.

Blank lines are left out, white space at the ends as well; repeated sentences stay.

Example:
    sentences.py --data stsbenchmark_train_10k_sents_random_sampled.txt.gz --out train.text
"""

from __future__ import annotations

import argparse
import gzip
import sys
from pathlib import Path
from typing import List, Optional

from corpus import CorpusError, write_lines

from fairseq_sam.flags.number_types import count


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
    sentences = [line.strip() for path in files for line in _lines(path)]
    sentences = [sentence for sentence in sentences if sentence]
    if not sentences:
        raise CorpusError(f"{data}: no sentences in it")
    return sentences


def _lines(path: Path) -> List[str]:
    """Reads lines as they end on Unix or Windows, not as in Unicode."""
    try:
        content = path.read_bytes()
        if path.suffix == ".gz":
            content = gzip.decompress(content)
        return content.decode("utf-8").split("\n")
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise CorpusError(f"{path}: cannot be read ({error})") from error


def main(argv: Optional[List[str]] = None) -> int:
    """Reads and writes."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="a file, or a folder")
    parser.add_argument("--limit", type=count, help="no more than the first so many sentences")
    parser.add_argument("--out", type=Path, required=True, help="file to write")
    args = parser.parse_args(argv)
    try:
        sentences = read_sentences(args.data)[: args.limit]
        write_lines(sentences, args.out)
    except (CorpusError, OSError) as error:
        print(f"{parser.prog}: error: {error}", file=sys.stderr)
        return 1
    print(f"{len(sentences)} sentences")
    return 0


if __name__ == "__main__":
    sys.exit(main())
