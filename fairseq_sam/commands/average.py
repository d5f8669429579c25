"""``fairseq-sam average``: the mean of the last checkpoints of a run."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import List

from fairseq_sam.commands.progress import counting
from fairseq_sam.commands.refusals import CommandError, load_fairseq, refuse_unwritable
from fairseq_sam.flags.number_types import count

_EPILOG = """\
examples:
  fairseq-sam average checkpoints --last-epochs 10 --output checkpoints/average.pt
  fairseq-sam average checkpoints --last-updates 5 --upper-bound 40000 --output average.pt
  fairseq-sam average seed1/checkpoint_best.pt seed2/checkpoint_best.pt --output average.pt

The result keeps the settings and the history of the last checkpoint and no optimizer state:
fairseq-generate, --finetune-from-model and --restore-file (with --reset-optimizer) read it.
Half-precision weights come back as float32. Integer buffers keep the last checkpoint's value.
"""


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Adds this subcommand's parser."""
    text = "average the weights of checkpoints"
    parser = subparsers.add_parser(
        "average",
        help=text,
        description=f"{text[0].upper()}{text[1:]}, one file in memory at a time.",
        epilog=_EPILOG,
    )
    parser.add_argument(
        "inputs",
        nargs="+",
        metavar="DIR|FILE",
        help="a --save-dir (with --last-epochs or --last-updates), or the files, oldest first",
    )
    which = parser.add_mutually_exclusive_group()
    which.add_argument(
        "--last-epochs", type=count, metavar="N", help="the last N checkpoint<epoch>.pt of DIR"
    )
    which.add_argument(
        "--last-updates",
        type=count,
        metavar="N",
        help="the last N checkpoint_<epoch>_<update>.pt of DIR",
    )
    parser.add_argument(
        "--upper-bound", type=count, metavar="M", help="none after this epoch (or update)"
    )
    parser.add_argument("--output", required=True, metavar="FILE", help="where to write")
    parser.add_argument("--force", action="store_true", help="overwrite FILE if it exists")
    parser.add_argument(
        "--dtype",
        choices=("float64", "float32"),
        default="float64",
        help="type of the sums; float32 needs half the memory (default: %(default)s)",
    )
    parser.set_defaults(run=run, misuse=parser.error)


def run(args: argparse.Namespace) -> int:
    """Averages and writes."""
    _check_arguments(args)
    if not args.output or os.path.isdir(args.output):
        raise CommandError(f"--output {args.output!r}: is no file to write")
    if os.path.exists(args.output) and not args.force:
        raise CommandError(f"{args.output}: exists (--force overwrites it)")
    refuse_unwritable(args.output)

    import torch

    load_fairseq()
    from fairseq_sam.checkpoints.averaging import average_checkpoints
    from fairseq_sam.checkpoints.checkpoint_files import write_checkpoint

    paths = _input_paths(args)
    with counting("checkpoint", "reading", len(paths)) as after_each:
        state = average_checkpoints(
            paths, dtype=getattr(torch, args.dtype), on_read=lambda path: after_each()
        )
    write_checkpoint(state, args.output)
    print(f"{args.output}: mean of {len(paths)} checkpoints")
    return 0


def _check_arguments(args: argparse.Namespace) -> None:
    """Stops with status 2 where arguments do not fit together."""
    by_number = args.last_epochs is not None or args.last_updates is not None
    if by_number and len(args.inputs) != 1:
        args.misuse("--last-epochs and --last-updates take exactly one DIR")
    if not by_number and args.upper_bound is not None:
        args.misuse("--upper-bound needs --last-epochs or --last-updates")
    if not by_number and any(os.path.isdir(path) for path in args.inputs):
        args.misuse("a DIR needs --last-epochs N or --last-updates N")
    if len({os.path.realpath(path) for path in args.inputs}) < len(args.inputs):
        args.misuse("a FILE is given twice")


def _input_paths(args: argparse.Namespace) -> List[Path]:
    from fairseq_sam.checkpoints.checkpoint_files import last_checkpoints

    if args.last_epochs is not None:
        return last_checkpoints(
            args.inputs[0], args.last_epochs, by="epoch", upper_bound=args.upper_bound
        )
    if args.last_updates is not None:
        return last_checkpoints(
            args.inputs[0], args.last_updates, by="update", upper_bound=args.upper_bound
        )
    return [Path(path) for path in args.inputs]
