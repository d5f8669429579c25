"""``fairseq-sam report``: finished runs as a table and as curves."""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

from fairseq_sam.commands.errors import CommandError
from fairseq_sam.reporting.published import PUBLISHED
from fairseq_sam.reporting.table import SUMMARIES

_EPILOG = """\
example:
  fairseq-sam report runs/adam runs/ga_sam --output report.md --plot curves.png
  fairseq-sam report runs/* --group-by 'seed[0-9]+'

A run directory holds the log of one fairseq-train (any *.log, --log-format json or plain) and, if
there are any, the results of `sacrebleu --format json` (*.json) and of fairseq-generate
(generate*.txt). Losses and sharpness are in bits, as fairseq logs them; seconds per epoch are
training time without validation. Where a method has runs of several radii, the plot shows their
lowest validation losses by radius as well.

A file or a directory that cannot be read is named on stderr, and the rest is shown. The exit status
is 1 if a directory held no run.
"""


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Adds this subcommand's parser."""
    parser = subparsers.add_parser(
        "report",
        help="tabulate and plot finished runs",
        description="Puts runs side by side: scores, losses, time, learning curves, sharpness.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("runs", nargs="+", metavar="RUN_DIR", help="directories of one run each")
    parser.add_argument(
        "--output", type=Path, metavar="FILE", help="write the Markdown table here as well"
    )
    parser.add_argument(
        "--plot", type=Path, metavar="FILE", help="draw the curves into FILE (.png, .pdf, .svg)"
    )
    parser.add_argument("--title", help="heading of the table and of the plot")
    parser.add_argument(
        "--group-by",
        type=_regular_expression,
        metavar="REGEX",
        help="runs whose names differ only in what REGEX matches share row and line: mean ± std",
    )
    parser.add_argument(
        "--relative-to",
        type=Path,
        metavar="DIR",
        help="name the runs by their paths within DIR (default: the part that tells them apart)",
    )
    parser.add_argument(
        "--paper",
        choices=sorted(PUBLISHED),
        help="show a paper's results beside those of runs (or groups) that have its methods' names",
    )
    parser.add_argument(
        "--paper-remark",
        default="",
        metavar="TEXT",
        help="what to say of the comparison beside them, e.g. 'not comparable: small model'",
    )
    parser.add_argument(
        "--summary",
        choices=SUMMARIES,
        default=SUMMARIES[0],
        help="what to show of the scores of runs that share a row (default: %(default)s)",
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Reads the runs, prints the table, writes what was asked for."""
    from fairseq_sam.files import write_text
    from fairseq_sam.reporting.runs import RunError, read_run, run_names
    from fairseq_sam.reporting.table import markdown_table

    directories = [Path(path) for path in args.runs]
    try:
        names = run_names(directories, args.relative_to)
        runs, failures = [], []
        for path, name in zip(directories, names):
            try:
                runs.append(read_run(path, name, _pass_over))
            except RunError as error:  # the others are shown all the same
                failures.append(str(error))
        if not runs:
            raise RunError("; ".join(failures))
        for failure in failures:
            _pass_over(failure)
        table = markdown_table(
            runs, args.group_by, PUBLISHED.get(args.paper), args.summary, args.paper_remark
        )
        text = f"# {args.title}\n\n{table}" if args.title else table
        print(text, end="")
        if args.output is not None:
            write_text(args.output, text)
        if args.plot is not None:
            _plot(runs, args)
    except RunError as error:
        raise CommandError(str(error)) from error
    except OSError as error:
        raise CommandError(f"{error.filename}: cannot write ({error.strerror})") from error
    return 1 if failures else 0


def _pass_over(fault: str) -> None:
    print(f"fairseq-sam report: passed over: {fault}", file=sys.stderr)


def _plot(runs: list, args: argparse.Namespace) -> None:
    try:
        from fairseq_sam.reporting.plot import write_plot

        write_plot(runs, args.plot, args.title, args.group_by)
    except ImportError as error:
        raise CommandError(f"--plot needs matplotlib ({error}): pip install matplotlib") from error
    except ValueError as error:
        raise CommandError(f"{args.plot}: {error}".splitlines()[0]) from error


def _regular_expression(text: str) -> str:
    try:
        re.compile(text)
    except re.error as error:
        raise argparse.ArgumentTypeError(f"bad regular expression {text!r}: {error}") from None
    return text
