"""``fairseq-sam user-dir``: where the package lies."""

from __future__ import annotations

import argparse
from pathlib import Path

_EPILOG = """\
examples:
  fairseq-sam user-dir
  fairseq-train DATA --user-dir $(fairseq-sam user-dir) --optimizer ga_sam
"""


def package_dir() -> Path:
    """Returns the absolute path of the package, the value that ``--user-dir`` wants."""
    return Path(__file__).resolve().parents[1]


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Adds this subcommand's parser."""
    text = "print the path to give to fairseq's --user-dir"
    parser = subparsers.add_parser(
        "user-dir",
        help=text,
        description=text,
        epilog=_EPILOG,
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Prints the path."""
    print(package_dir())
    return 0
