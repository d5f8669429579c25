#!/usr/bin/env python3
"""Brings movie reviews into {train,valid,test}.{input0,label}, tokenised and lower-cased.

Two data sets are understood. IMDB (Maas et al. 2011): a folder with {train,test}/{pos,neg}/*.txt,
or its .tar.gz as published; a tenth of the training reviews, drawn with a fixed seed, is kept for
validation. MR (Pang and Lee 2005): a folder with one tokenised sentence a line in {pos,neg} or
rt-polarity.{pos,neg}, plain or .gz; ten folds as in Kim (2014): one is the test set, a tenth of the
others the validation set.

Example:
    labelled_text.py --data aclImdb_v1.tar.gz --out text
    labelled_text.py --data mr --fold 1 --out text/fold1
"""

from __future__ import annotations

import argparse
import random
import re
import sys
import tarfile
from pathlib import Path
from typing import Callable, Dict, Iterator, List, Sequence, Tuple

from corpus import (
    CorpusError,
    add_limit_argument,
    count,
    find,
    limited,
    parser_of,
    read_lines,
    run,
    write_lines,
)
from moses_text import TextStyle, tokenize

from fairseq_sam.flags.number_types import whole_number

CLASSES = ("neg", "pos")
FOLDS = 10
Example = Tuple[str, str]
_REVIEW = re.compile(r"(?:^|/)(train|test)/(pos|neg)/[^/]+\.txt$")
_TAG = re.compile(r"<[^>]+>")


def read_imdb(data: Path) -> Dict[str, List[Example]]:
    """Returns the reviews and labels of ``train`` and ``test``, in the order of their names."""
    named = sorted(_archived(data) if data.is_file() else _unpacked(data))
    splits: Dict[str, List[Example]] = {"train": [], "test": []}
    for split, name, text in named:
        splits[split].append((text, name.split("/")[0]))
    for split, examples in splits.items():
        if not examples:
            raise CorpusError(f"{data}: no reviews in {split}/pos and {split}/neg")
    return splits


def _archived(path: Path) -> Iterator[Tuple[str, str, str]]:
    try:
        with tarfile.open(path) as archive:
            for member in archive:
                found = _REVIEW.search(member.name)
                file = archive.extractfile(member) if found and member.isfile() else None
                if found and file:
                    name = f"{found.group(2)}/{member.name.rsplit('/', 1)[1]}"
                    yield found.group(1), name, file.read().decode("utf-8")
    except (tarfile.TarError, EOFError, OSError, UnicodeDecodeError) as error:
        reason = str(error).split("\n")[0]
        raise CorpusError(f"{path}: damaged, or not an archive of texts ({reason})") from error


def _unpacked(root: Path) -> Iterator[Tuple[str, str, str]]:
    for split in ("train", "test"):
        for name in CLASSES:
            for path in root.glob(f"{split}/{name}/*.txt"):
                try:
                    yield split, f"{name}/{path.name}", path.read_text(encoding="utf-8")
                except UnicodeDecodeError as error:
                    raise CorpusError(f"{path}: not UTF-8 ({error})") from error


def read_sentences(root: Path) -> List[Example]:
    """Returns the sentences of MR and their labels, each once, in the files' order."""
    examples: Dict[str, str] = {}
    for name in CLASSES:
        # The files as their authors publish them are Latin-1.
        for line in read_lines(find(root, name, f"rt-polarity.{name}"), otherwise="latin-1"):
            if line.strip():
                examples.setdefault(line.strip(), name)
    if len(examples) < 2 * FOLDS:
        raise CorpusError(f"{root}: {len(examples)} sentences are too few for {FOLDS} folds")
    return list(examples.items())


def keep_apart(examples: Sequence[Example], seed: int) -> Tuple[List[Example], List[Example]]:
    """Returns the examples without a tenth, and that tenth, both shuffled."""
    shuffled = list(examples)
    random.Random(seed).shuffle(shuffled)
    size = max(1, len(shuffled) // FOLDS)
    return shuffled[size:], shuffled[:size]


def choose_fold(examples: Sequence[Example], fold: int) -> Dict[str, List[Example]]:
    """Returns the sets of a fold, 1 to 10; the test sets of all folds are the whole data."""
    shuffled = list(examples)
    random.Random(1).shuffle(shuffled)
    test = shuffled[fold - 1 :: FOLDS]
    rest = [e for i, e in enumerate(shuffled) if i % FOLDS != fold - 1]
    train, valid = keep_apart(rest, fold)
    return {"train": train, "valid": valid, "test": test}


def clean_review(text: str, longest: int) -> str:
    """Tokenises a review and cuts it; only as much as is kept is looked at.

    Example: clean_review("Great!<br />Wow.", 4) is "great ! wow .".
    """
    words = _TAG.sub(" ", text).split()[:longest]
    return " ".join(tokenize(" ".join(words), "en", TextStyle()).split()[:longest])


def write(examples: Sequence[Example], prefix: Path, clean: Callable[[str], str]) -> None:
    """Writes PREFIX.input0 and PREFIX.label."""
    texts = [clean(text) for text, _ in examples]
    for suffix, lines in ((".input0", texts), (".label", [label for _, label in examples])):
        write_lines(lines, prefix.with_name(prefix.name + suffix))


def sets_of(args: argparse.Namespace) -> Tuple[Dict[str, List[Example]], Callable[[str], str]]:
    """Returns the three sets, and what cleans their texts."""
    if args.fold is not None:
        return choose_fold(read_sentences(args.data), args.fold), lambda text: text
    splits = read_imdb(args.data)
    train, valid = keep_apart(splits["train"], 1)
    random.Random(2).shuffle(splits["test"])
    sets = {"train": train, "valid": valid, "test": splits["test"]}
    return sets, lambda text: clean_review(text, args.longest)


def prepare(args: argparse.Namespace) -> None:
    """Reads and writes."""
    sets, clean = sets_of(args)
    for name, examples in limited(sets, args.limit).items():
        write(examples, args.out / name, clean)
        print(f"{name} {len(examples)}")


def main() -> int:
    """Runs the command line."""
    parser = parser_of(__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder, or IMDB's archive")
    parser.add_argument("--out", type=Path, required=True, help="folder to write into")
    parser.add_argument("--fold", type=whole_number(1, FOLDS), help="MR: which of its ten folds")
    parser.add_argument(
        "--longest", type=count, default=200, help="words of a review (default: 200)"
    )
    add_limit_argument(parser)
    return run(parser, prepare)


if __name__ == "__main__":
    sys.exit(main())
