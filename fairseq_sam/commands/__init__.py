"""The ``fairseq-sam`` command: everything that is not ``fairseq-train``'s job.

One module per subcommand, each with ``add_parser`` (its arguments) and ``run`` (its work, which
returns the exit status). Heavy libraries are imported inside ``run`` so that ``--help`` is quick.
Exit status: 0 for success, 1 when the work failed, 2 for misuse; errors are one line on stderr.
"""

from __future__ import annotations

import argparse
import sys
from typing import List, NoReturn, Optional

from fairseq_sam.commands import (
    average,
    convert,
    gradients,
    landscape,
    report,
    risk,
    robustness,
    search,
    shift,
    spectrum,
    sts,
    user_dir,
)
from fairseq_sam.commands.errors import CommandError

SUBCOMMANDS = (
    user_dir,
    search,
    average,
    report,
    convert,
    sts,
    robustness,
    risk,
    spectrum,
    landscape,
    gradients,
    shift,
)


class _Parser(argparse.ArgumentParser):
    """A parser whose complaint is one line; the usage text is what ``--help`` is for."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message} (see {self.prog} --help)\n")


def build_parser() -> argparse.ArgumentParser:
    """Returns the parser of ``fairseq-sam`` with all its subcommands."""
    parser = _Parser(
        prog="fairseq-sam",
        description="Companion of the fairseq_sam plugin.",
        epilog="example: fairseq-train DATA --user-dir $(fairseq-sam user-dir) --optimizer ga_sam",
    )
    subparsers = parser.add_subparsers(
        dest="command", metavar="COMMAND", required=True, parser_class=_Parser
    )
    for module in SUBCOMMANDS:
        module.add_parser(subparsers)
    return parser


def main(argv: Optional[List[str]] = None) -> int:
    """Runs one subcommand.

    Args:
        argv: the arguments after the program's name; those of the process when None.

    Returns:
        The exit status: 0, or 1 after a one-line message on stderr.

    Raises:
        SystemExit: with status 2 on misuse, 0 after ``--help`` (argparse's way).
    """
    args = build_parser().parse_args(argv)
    try:
        return int(args.run(args))
    except CommandError as error:
        print(f"fairseq-sam {args.command}: error: {error}", file=sys.stderr)
        return 1
    except BrokenPipeError:
        return 1
