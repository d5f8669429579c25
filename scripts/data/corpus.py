"""What the programs that prepare corpora share: reading, writing, limits, and how they end."""

import argparse
import gzip
import sys
from pathlib import Path
from typing import Any, Callable, Dict, Iterable, List, Mapping, Optional, Sequence, Tuple

from fairseq_sam.flags.number_types import count


class CorpusError(Exception):
    """A corpus that cannot be used; the message is one line that names the file."""


def find(root: Path, *names: str) -> Path:
    """Returns the first of these files in a folder, plain or .gz.

    Raises:
        CorpusError: none is there.
    """
    for name in names:
        for path in (root / name, root / f"{name}.gz"):
            if path.is_file():
                return path
    wanted = " nor ".join(names)
    raise CorpusError(f"{root}: neither {wanted} is there, nor packed as .gz")


def read_text(path: Path, otherwise: Optional[str] = None) -> str:
    """Returns the text of a file, plain or .gz.

    Args:
        path: the file.
        otherwise: the encoding of what is no UTF-8.

    Raises:
        CorpusError: it is damaged, or no text.
    """
    try:
        content = path.read_bytes()
        content = gzip.decompress(content) if path.suffix == ".gz" else content
    except (OSError, EOFError) as error:
        raise CorpusError(f"{path}: damaged ({error})") from error
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        if otherwise is None:
            raise CorpusError(f"{path}: not UTF-8 ({error})") from error
        return content.decode(otherwise)


def read_lines(path: Path, otherwise: Optional[str] = None) -> List[str]:
    """Returns the lines of a file, as they end on Unix or Windows; nothing else ends a line."""
    text = read_text(path, otherwise).replace("\r\n", "\n")
    return text[:-1].split("\n") if text.endswith("\n") else text.split("\n")


def write_lines(lines: Iterable[str], path: Path) -> None:
    """Writes a line each."""
    path.write_bytes("".join(f"{line}\n" for line in lines).encode("utf-8"))


def pair_up(sides: Sequence[Sequence[str]], names: Sequence[str]) -> List[Tuple[str, str]]:
    """Returns the pairs of two sides, which must be equally long."""
    if len(sides[0]) != len(sides[1]):
        counts = ", ".join(f"{name} has {len(side)} lines" for name, side in zip(names, sides))
        raise CorpusError(f"the sides differ in their number of lines: {counts}")
    return list(zip(*sides))


def add_limit_argument(parser: argparse.ArgumentParser) -> None:
    """Adds the flag that takes a part of the examples: ``[train, others]``."""
    parser.add_argument(
        "--limit",
        type=count,
        nargs=2,
        metavar=("N", "M"),
        help="only N examples to train, M others",
    )


def limited(splits: Mapping[str, Sequence[Any]], limits: Optional[List[int]]) -> Dict[str, Any]:
    """Keeps the first examples: limits[0] of the training set, limits[1] of the others."""
    sizes = {split: limits[split != "train"] if limits else None for split in splits}
    return {split: examples[: sizes[split]] for split, examples in splits.items()}


def parser_of(doc: str) -> argparse.ArgumentParser:
    """Returns the parser of a program."""
    return argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )


def use_utf8() -> None:
    """Makes stdin and stdout UTF-8, with a line feed at the end of a line and nowhere else."""
    for stream in (sys.stdin, sys.stdout):
        stream.reconfigure(encoding="utf-8", newline="\n")  # type: ignore[union-attr]


def run(
    parser: argparse.ArgumentParser,
    prepare: Callable[[argparse.Namespace], None],
    to_file: bool = False,
) -> int:
    """Makes ``--out`` (or its folder), prepares, returns the exit status; a failure is one line."""
    args = parser.parse_args()
    try:
        (args.out.parent if to_file else args.out).mkdir(parents=True, exist_ok=True)
        prepare(args)
    except (CorpusError, OSError) as error:
        print(f"{parser.prog}: error: {error}", file=sys.stderr)
        return 1
    return 0
