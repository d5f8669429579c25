"""The ``fairseq-sam`` command: everything that is not ``fairseq-train``'s job.

    fairseq-sam COMMAND DATA CHECKPOINT… [--json FILE] [--plot FILE] [--out DIR]

Data come before checkpoints in every command. ``--plot`` is a picture, ``--json`` the figures,
``--out`` a folder, ``--output`` a file that the command exists to make. Flags may stand anywhere.

One module per subcommand, each with ``add_parser`` (its arguments) and ``run`` (its work, which
returns the exit status). Heavy libraries are imported inside ``run`` so that ``--help`` is quick.
Exit status: 0 for success, 1 when the work failed, 2 for misuse, 130 after Ctrl-C; errors are one
line on stderr, which names the command.
"""

from __future__ import annotations

import argparse
import sys
from typing import List, Optional

from fairseq_sam import FairseqSamError
from fairseq_sam.commands import (
    average,
    convert,
    gradients,
    landscape,
    methods,
    report,
    risk,
    robustness,
    search,
    shift,
    spectrum,
    sts,
    user_dir,
)
from fairseq_sam.commands.arguments import IntermixedParser, OneLineEach, Parser, ShowVersion
from fairseq_sam.commands.quiet import no_foreign_warnings
from fairseq_sam.commands.refusals import explain_import
from fairseq_sam.commands.terminal import write_on_any_terminal

# In the order of a user's work: train, compare, look inside; other models last.
SUBCOMMANDS = (
    user_dir,
    methods,
    search,
    average,
    report,
    risk,
    robustness,
    landscape,
    spectrum,
    gradients,
    shift,
    convert,
    sts,
)

_EPILOG = """\
examples:
  fairseq-train DATA --user-dir $(fairseq-sam user-dir) --optimizer ga_sam
  fairseq-sam risk DATA adam/checkpoint_best.pt ga_sam/checkpoint_best.pt --plot risk.png

Data come before checkpoints. --plot draws a picture, --json writes the figures, --out is a folder,
--output a file that the command exists to make. `fairseq-sam COMMAND --help` has the rest.
"""


def build_parser() -> argparse.ArgumentParser:
    """Returns the parser of ``fairseq-sam`` with all its subcommands."""
    parser = Parser(
        prog="fairseq-sam",
        description="Companion of the fairseq_sam plugin: find a radius, compare runs, look inside "
        "trained models.",
        epilog=_EPILOG,
        formatter_class=OneLineEach,
    )
    parser.add_argument(
        "--version", action=ShowVersion, help="show the versions of fairseq_sam, fairseq and torch"
    )
    subparsers = parser.add_subparsers(
        dest="command", metavar="COMMAND", required=True, parser_class=IntermixedParser
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
    write_on_any_terminal()
    args = build_parser().parse_args(argv)
    with no_foreign_warnings():
        return _run(args)


def _run(args: argparse.Namespace) -> int:
    try:
        return int(args.run(args))
    except FairseqSamError as error:
        return _fail(args, str(error))
    except ImportError as error:
        return _fail(args, explain_import(error))
    except BrokenPipeError:
        return 1
    except KeyboardInterrupt:
        print(f"fairseq-sam {args.command}: stopped", file=sys.stderr)
        return 130


def _fail(args: argparse.Namespace, message: str) -> int:
    print(f"fairseq-sam {args.command}: error: {message}", file=sys.stderr)
    return 1
