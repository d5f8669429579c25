"""``fairseq-sam search``: the radius for a ``fairseq-train`` command."""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, List, Optional

from fairseq_sam.commands.figures import check_can_plot, plot_file
from fairseq_sam.commands.refusals import CommandError, require_fairseq
from fairseq_sam.commands.user_dir import package_dir
from fairseq_sam.flags.number_types import at_least_zero, count, power_of_ten, seeds, shares

if TYPE_CHECKING:
    from fairseq_sam.experiments.search.course import Plan
    from fairseq_sam.experiments.search.summary import Summary
    from fairseq_sam.experiments.search.training_command import TrainingCommand

_EPILOG = """\
examples:
  fairseq-sam search --out runs/search -- data-bin --optimizer ga_sam \\
      --arch transformer_iwslt_de_en --lr 5e-4 --max-tokens 4096 --max-epoch 30
  fairseq-sam search --out runs/search --shares -- data-bin --optimizer sam --max-epoch 30
  fairseq-sam search --out runs/search --dry-run -- data-bin --optimizer sam --max-epoch 5
  fairseq-sam search --out runs/search --seeds 1,2,3 --json found.json -- data-bin \\
      --optimizer sam --max-epoch 10 --best-checkpoint-metric accuracy \\
      --maximize-best-checkpoint-metric

What comes after -- is for fairseq-train, without --sam-rho and --save-dir. First a run without
perturbation; then the order of magnitude, by bisection over powers of ten for the largest that
does no harm; then 1, 2, 5 and 8 times it, and the decade below if the smallest of them is the
best. With --shares each share of the loss in its list is tried once: these mean the same on every
model, and need no order of magnitude. Radii are compared by the best value of
--best-checkpoint-metric on validation data.

Each run has a directory in DIR with its train.log and fairseq's checkpoints. After an interruption
the same command goes on from them. Where nothing is perturbed until --sam-start-epoch, --start-from
saves training these epochs again and again.
"""


_SHARES = "1%,2%,5%,10%,20%"


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Adds this subcommand's parser."""
    parser = subparsers.add_parser(
        "search",
        help="find the radius (--sam-rho) for a training command",
        description="Finds the radius for a fairseq-train command on its validation data.",
        usage="fairseq-sam search --out DIR [options] -- DATA --optimizer NAME …",
        epilog=_EPILOG,
    )
    parser.add_argument(
        "arguments", nargs="+", metavar="ARGUMENT", help="the arguments of fairseq-train, after --"
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="where runs go")
    _add_range_arguments(parser)
    _add_run_arguments(parser)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures here as well")
    parser.add_argument(
        "--plot", type=plot_file, metavar="FILE", help="the picture (default: DIR/search.png)"
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="print the first training commands and do nothing"
    )
    parser.set_defaults(run=run, misuse=parser.error)


def _add_range_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    # fmt: off
    add("--shares", type=shares, nargs="?", const=shares(_SHARES), metavar="S%,S%…",
        help=f"try these shares of the loss in place of absolute radii ({_SHARES} where no list "
             "follows)".replace("%", "%%"))
    add("--lowest", type=power_of_ten, metavar="RHO",
        help="the least power of ten to try (default: 1e-6)")
    add("--highest", type=power_of_ten, metavar="RHO",
        help="the greatest power of ten to try (default: 10)")
    add("--margin", type=at_least_zero, default=0.01, metavar="SHARE",
        help="a power of ten does harm if it is worse than no perturbation by more than this share "
             "of its value; above the noise between runs (default: %(default)s)")
    add("--max-runs", type=count, metavar="N", help="train no more than N times")
    add("--seeds", type=seeds, metavar="N,N…",
        help="train each radius with each of these seeds, and compare the means")
    # fmt: on


def _add_run_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    # fmt: off
    add("--stop-margin", type=at_least_zero, default=0.1, metavar="SHARE",
        help="stop a run early that is worse than the run without perturbation was after as many "
             "updates, by more than this share (default: %(default)s)…")
    add("--stop-after", type=count, default=3, metavar="N",
        help="…at N validations in a row (default: %(default)s); one that is not a number is "
             "enough")
    add("--parallel", type=count, metavar="N",
        help="runs at once (default: as many as the GPUs are for; 1 without a GPU)")
    add("--gpus-per-run", type=count, default=1, metavar="N",
        help="GPUs of each run: as many as the command is meant for, because its batch grows with "
             "them (default: %(default)s)")
    add("--start-from", type=Path, metavar="FILE",
        help="the checkpoint that every run begins with, copied as its checkpoint_last.pt; it must "
             "stay as it is until the search is done")
    # fmt: on


def run(args: argparse.Namespace) -> int:
    """Searches, prints, writes."""
    command = _training_command(args)
    _check_arguments(args)
    require_fairseq()
    from fairseq_sam.experiments.conduct import tell
    from fairseq_sam.experiments.errors import MisuseError
    from fairseq_sam.experiments.processes import termination_interrupts
    from fairseq_sam.experiments.search.course import check_before, conduct

    try:
        check_before(_plan(args), command)
    except MisuseError as error:
        args.misuse(str(error))
    if args.dry_run:
        return _print_commands(args, command)
    try:
        with termination_interrupts():
            summary = conduct(_plan(args), command, _slots(args, command), tell)
            _show(args, summary)
    except OSError as error:
        raise CommandError(f"{error.filename or args.out}: {error.strerror}") from error
    except KeyboardInterrupt:
        tell("fairseq-sam search: stopped; the same command goes on")
        return 130
    return 0


def _training_command(args: argparse.Namespace) -> TrainingCommand:
    from fairseq_sam.experiments.errors import MisuseError
    from fairseq_sam.experiments.search.training_command import read_training_command
    from fairseq_sam.perturbation.settings import METHODS

    try:
        return read_training_command(
            args.arguments,
            METHODS,
            package_dir(),
            seeds_given=args.seeds is not None,
            shares=args.shares is not None,
        )
    except MisuseError as error:
        args.misuse(str(error))
        raise


def _check_arguments(args: argparse.Namespace) -> None:
    for flag in ("lowest", "highest"):
        if args.shares is not None and getattr(args, flag) is not None:
            args.misuse(
                f"argument --{flag}: it is for absolute radii, and does not go with --shares"
            )
    args.lowest = -6 if args.lowest is None else args.lowest
    args.highest = 1 if args.highest is None else args.highest
    if args.lowest > args.highest:
        low, high = f"1e{args.lowest}", f"1e{args.highest}"
        args.misuse(f"argument --lowest: {low} is above --highest {high}")
    if args.max_runs is not None and args.max_runs < 2 * len(args.seeds or [None]):
        args.misuse(
            f"argument --max-runs: {args.max_runs} is too few: the run without perturbation and one"
            " with, for each seed"
        )
    if args.start_from is not None and not args.start_from.is_file():
        args.misuse(f"argument --start-from: {args.start_from} is not a file")
    for flag, path in (("--json", args.json), ("--plot", args.plot)):
        inside = path is not None and path.absolute().parent == args.out.absolute()
        if path is not None and not inside and not path.absolute().parent.is_dir():
            args.misuse(f"argument {flag}: the directory of {path} does not exist")
    check_can_plot(args.plot)


def _plan(args: argparse.Namespace) -> Plan:
    from fairseq_sam.experiments.search.course import Plan
    from fairseq_sam.experiments.search.trials import StopRule

    return Plan(
        directory=args.out,
        lowest=args.lowest,
        highest=args.highest,
        margin=args.margin,
        seeds=list(args.seeds or [None]),
        max_runs=args.max_runs,
        rule=StopRule(args.stop_margin, args.stop_after),
        start_from=args.start_from,
        shares=args.shares or (),
        gpus_per_run=args.gpus_per_run,
    )


def _slots(args: argparse.Namespace, command: TrainingCommand) -> List[Optional[str]]:
    from fairseq_sam.experiments.processes import gpu_slots, visible_gpus

    gpus = [] if command.on_cpu else visible_gpus()
    if gpus and args.gpus_per_run > len(gpus):
        args.misuse(f"argument --gpus-per-run: {args.gpus_per_run}, but there are {len(gpus)} GPUs")
    return gpu_slots(gpus, args.gpus_per_run, args.parallel)


def _print_commands(args: argparse.Namespace, command: TrainingCommand) -> int:
    """Prints what would be trained first: the baseline, and what would be tried along with it."""
    from fairseq_sam.experiments.search.course import first_commands

    for line in first_commands(_plan(args), command, len(_slots(args, command))):
        print(shlex.join(line))
    return 0


def _show(args: argparse.Namespace, summary: Summary) -> None:
    from fairseq_sam.experiments.search.radius_plot import write_plot
    from fairseq_sam.experiments.search.summary import as_json, markdown
    from fairseq_sam.files.writing import write_json, write_text

    table = markdown(summary)
    print(table, end="")
    write_text(args.out / "search.md", table)
    if args.json is not None:
        write_json(as_json(summary), args.json)
    try:
        write_plot(summary, args.plot or args.out / "search.png")
    except ImportError as error:
        print(f"no plot, since matplotlib is missing ({error})", file=sys.stderr)
    if summary.best is not None:
        print()
        arguments = summary.command.with_radius(summary.best.rho)
        print(shlex.join(["fairseq-train", *arguments]))
