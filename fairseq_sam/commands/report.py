"""``fairseq-sam report``: finished runs as a table, as figures and as curves."""

from __future__ import annotations

import argparse
import importlib.util
import math
import os
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Dict, Iterable, List, Optional, Sequence

from fairseq_sam.commands.figures import (
    check_output_arguments,
    explaining_plots,
    plot_file,
    write_figures,
)
from fairseq_sam.commands.refusals import CommandError
from fairseq_sam.experiments.recipes import published
from fairseq_sam.reporting.runs_table import SUMMARIES

if TYPE_CHECKING:
    from fairseq_sam.reporting.runs import Run

_EPILOG = """\
example:
  fairseq-sam report runs/adam runs/ga_sam --output report.md --json report.json \\
      --plot curves.png
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
    )
    parser.add_argument("runs", nargs="+", metavar="RUN_DIR", help="directories of one run each")
    parser.add_argument(
        "--output", type=Path, metavar="FILE", help="write the Markdown table here as well"
    )
    parser.add_argument(
        "--plot", type=plot_file, metavar="FILE", help="draw the curves here: .pdf, .png or .svg"
    )
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="write the figures of each run here as well"
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
        choices=sorted(published()),
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
    parser.add_argument(
        "--metrics", type=_list, metavar="LIST", help="only these scores, by comma, in this order"
    )
    parser.add_argument(
        "--against",
        type=_list,
        default=[],
        metavar="LIST",
        help="rows, by comma: say how the others differ from each of them, paired by what "
        "--group-by matches: 95 %% intervals, p-values corrected for their number (Holm), effects",
    )
    parser.add_argument(
        "--cost-plot",
        type=plot_file,
        metavar="FILE",
        help="draw the first metric's difference from --against's first row by training time",
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Reads the runs, prints the table, writes what was asked for."""
    from fairseq_sam.files.writing import write_text
    from fairseq_sam.reporting.runs import RunError, read_run, run_names
    from fairseq_sam.reporting.runs_table import markdown_table

    check_output_arguments(args)
    _check_comparison(args)
    directories = _different(map(Path, args.runs))
    try:
        names = run_names(directories, args.relative_to)
        runs, read, failures = [], [], []
        for path, name in zip(directories, names):
            try:
                runs.append(read_run(path, name, _pass_over))
                read.append(path)
            except RunError as error:  # the others are shown all the same
                failures.append(str(error))
        if not runs:
            raise RunError("; ".join(failures))
        for failure in failures:
            _pass_over(failure)
        table = markdown_table(
            runs,
            args.group_by,
            published().get(args.paper),
            args.summary,
            args.paper_remark,
            args.metrics,
        )
        text = f"# {args.title}\n\n{table}" if args.title else table
        text += _comparisons(runs, args)
        print(text, end="")
        if args.output is not None:
            write_text(args.output, text)
        if args.json is not None:
            _write_figures(read, runs, args.json)
        if args.plot is not None:
            _plot(runs, args)
        if args.cost_plot is not None:
            _plot_cost(runs, args)
    except OSError as error:
        raise CommandError(f"{error.filename}: cannot write ({error.strerror})") from error
    return 1 if failures else 0


def _different(directories: Iterable[Path]) -> List[Path]:
    """Returns the directories without those that are there under another name before."""
    found: Dict[str, Path] = {}
    for path in directories:
        name = os.path.realpath(path) if os.path.isdir(path) else str(path)
        first = found.setdefault(name, path)
        if first is not path:
            _pass_over(f"{path}: is {first}")
    return list(found.values())


def _check_comparison(args: argparse.Namespace) -> None:
    """Refuses comparisons that cannot be made.

    Raises:
        CommandError: naming what is missing.
    """
    if args.against and not args.group_by:
        raise CommandError("--against needs --group-by, which tells what is a pair")
    if args.against and importlib.util.find_spec("scipy") is None:
        raise CommandError("--against needs scipy: pip install scipy")
    if args.cost_plot is not None and not (args.against and args.metrics):
        raise CommandError("--cost-plot needs --against and --metrics")


def _comparisons(runs: Sequence[Run], args: argparse.Namespace) -> str:
    from fairseq_sam.reporting.comparison import comparison_table
    from fairseq_sam.reporting.runs import group_runs

    known = list(dict.fromkeys(name for run in runs for name in run.scores))
    metrics = args.metrics or known
    _tell_of_nothing("--metrics", args.metrics, known)
    groups = list(group_runs(runs, args.group_by))
    _tell_of_nothing("--against", args.against, groups)
    tables = [comparison_table(runs, args.group_by, name, metrics) for name in args.against]
    if not any(tables) and len(groups) > 1 and set(args.against) & set(groups):
        _tell(
            f"argument --group-by: {args.group_by} makes no pairs: it must match the same, such "
            "as a seed, in the names of two runs that are to be compared"
        )
    return "".join(f"\n{table}" for table in tables if table)


def _tell_of_nothing(flag: str, wanted: Optional[Sequence[str]], found: Sequence[str]) -> None:
    """Tells where none of what a flag names is there; some may be, as of methods not yet run."""
    if wanted and not set(wanted) & set(found):
        there = f"there are {', '.join(found)}" if found else "there are none"
        _tell(f"argument {flag}: {', '.join(wanted)} not found; {there}")


def _pass_over(fault: str) -> None:
    _tell(f"passed over: {fault}")


def _tell(what: str) -> None:
    print(f"fairseq-sam report: {what}", file=sys.stderr)


def _plot(runs: list, args: argparse.Namespace) -> None:
    from fairseq_sam.reporting.runs_plot import write_plot

    with explaining_plots(args.plot):
        write_plot(runs, args.plot, args.title, args.group_by)


def _plot_cost(runs: Sequence[Run], args: argparse.Namespace) -> None:
    from fairseq_sam.reporting.cost_plot import write_cost_plot

    against, metric = args.against[0], args.metrics[0]
    with explaining_plots(args.cost_plot):
        write_cost_plot(runs, args.group_by, against, metric, args.cost_plot, args.title)


def _write_figures(directories: Sequence[Path], runs: Sequence[Run], path: Path) -> None:
    rows: List[Dict[str, Any]] = [
        {
            "run": str(directory),
            "name": run.name,
            "method": run.method,
            "radius": run.radius,
            "radius_is_share": run.is_share,
            "scores": {
                metric: {
                    "score": _finite(score.value),
                    "p_value": score.p_value,
                    "signature": score.signature,
                }
                for metric, score in run.scores.items()
            },
            "best_valid_loss": run.best_valid_loss(),
            "first_perturbed_epoch": run.first_perturbed_epoch(),
            "seconds_per_epoch": run.seconds_per_epoch(perturbed=False),
            "seconds_per_perturbed_epoch": run.seconds_per_epoch(perturbed=True),
            "epochs": [
                {
                    "epoch": epoch.epoch,
                    "valid_loss": _finite(epoch.valid.get("loss")),
                    "sharpness": _finite(epoch.train.get("sharpness")),
                }
                for epoch in run.epochs
            ],
        }
        for directory, run in zip(directories, runs)
    ]
    write_figures({"unit": "bits", "runs": rows}, path)


def _finite(value: Optional[float]) -> Optional[float]:
    """JSON has no NaN (of a run that diverged)."""
    return value if value is not None and math.isfinite(value) else None


def _list(text: str) -> List[str]:
    return [part for part in text.split(",") if part]


def _regular_expression(text: str) -> str:
    try:
        re.compile(text)
    except re.error as error:
        raise argparse.ArgumentTypeError(f"bad regular expression {text!r}: {error}") from None
    return text
