"""What subcommands that measure checkpoints on data share: arguments, loading, errors, names."""

from __future__ import annotations

import argparse
import contextlib
import os
from pathlib import Path
from typing import (
    TYPE_CHECKING,
    Any,
    Dict,
    Iterator,
    List,
    NamedTuple,
    Optional,
    Sequence,
    Tuple,
)

from fairseq_sam import FairseqSamError
from fairseq_sam.commands.figures import check_output_arguments
from fairseq_sam.commands.quiet import only_warnings
from fairseq_sam.commands.refusals import CommandError, load_fairseq
from fairseq_sam.flags.number_types import count, seed

if TYPE_CHECKING:
    from fairseq_sam.analysis.dataset_loss import DatasetLoss
    from fairseq_sam.evaluation.trained_model import TrainedModel


def add_checkpoint_arguments(
    parser: argparse.ArgumentParser, about: str = "checkpoints of fairseq-train"
) -> None:
    """Adds the binarised data and the checkpoints, of which ``about`` says what they may be."""
    parser.add_argument("data", metavar="DATA", help="the binarised data, as for fairseq-train")
    parser.add_argument("checkpoints", metavar="CHECKPOINT", nargs="+", help=about)


def add_data_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments that choose the criterion and the sentences."""
    parser.add_argument(
        "--criterion",
        metavar="NAME",
        help="criterion whose losses count (default: the one that the model was trained with)",
    )
    parser.add_argument(
        "--subset", default="valid", help="split of the data (default: %(default)s)"
    )
    parser.add_argument(
        "--max-sentences", type=count, metavar="N", help="only N sentences, drawn at random"
    )
    parser.add_argument("--seed", type=seed, default=1, help="seed of draws (default: %(default)s)")
    parser.add_argument(
        "--skip-invalid-size-inputs-valid-test",
        dest="skip_too_long",
        action="store_true",
        help="leave out sentences that are too long for the model, instead of stopping",
    )
    parser.add_argument(
        "--user-dir", metavar="DIR", help="more code of yours to load, as for fairseq-train"
    )
    parser.add_argument("--cpu", action="store_true", help="do not use a GPU")


def add_batch_arguments(
    parser: argparse.ArgumentParser, about: str = "memory, not the result"
) -> None:
    """Adds the argument that says how much is computed at a time, with what it is ``about``."""
    parser.add_argument(
        "--max-tokens",
        type=count,
        default=4000,
        metavar="N",
        help=f"tokens in a mini-batch: {about} (default: %(default)s)",
    )


def prepare(args: argparse.Namespace) -> List[str]:
    """Refuses files that are not there or cannot be written, loads plugins, names the checkpoints.

    Raises:
        CommandError: naming what is wrong, before anything is computed.
    """
    check_output_arguments(args)
    load_plugins(args.user_dir)
    check_input_arguments(args)
    return checkpoint_names(args.checkpoints)


def check_checkpoints(args: argparse.Namespace) -> None:
    """Refuses checkpoints that are not there, or that would be written to.

    Raises:
        CommandError: naming the file.
    """
    for checkpoint in args.checkpoints:
        if not os.path.isfile(checkpoint):
            raise CommandError(f"{checkpoint}: no such file")
        for path in (args.json, args.plot):
            if path is not None and path.exists() and os.path.samefile(path, checkpoint):
                raise CommandError(f"{path}: is a checkpoint to read, not a file to write")


def check_input_arguments(args: argparse.Namespace) -> None:
    """Refuses data and checkpoints that are not there, the last one too, before any is measured.

    Raises:
        CommandError: naming the file.
    """
    check_checkpoints(args)
    for part in args.data.split(os.pathsep):
        if not os.path.exists(part):
            raise CommandError(f"{part}: no such file or directory")


def load_plugins(user_dir: Optional[str]) -> None:
    """Imports fairseq with the plugin in it, and the user's own code.

    Raises:
        CommandError: there is no such directory, or this fairseq cannot be imported.
    """
    load_fairseq()
    from fairseq.utils import import_user_module

    if user_dir is None:
        return
    if not os.path.isdir(user_dir):
        raise CommandError(f"{user_dir}: no such directory")
    import_user_module(argparse.Namespace(user_dir=user_dir))


def load_dataset_loss(
    args: argparse.Namespace, checkpoint: str, overrides: Optional[Dict[str, Any]] = None
) -> Tuple[TrainedModel, DatasetLoss]:
    """Loads a checkpoint and the mini-batches that the arguments choose, onto a GPU if any.

    Args:
        args: with ``data`` and what :func:`add_data_arguments` and :func:`add_batch_arguments` add.
        checkpoint: fairseq's file.
        overrides: flags of training to replace, by their names in the configuration.

    Raises:
        FairseqSamError: something is missing, damaged, or does not fit.
    """
    from fairseq_sam.analysis.dataset_loss import DatasetLoss
    from fairseq_sam.evaluation import trained_model
    from fairseq_sam.evaluation.sentences import mini_batches

    with only_warnings():
        trained = trained_model.load_trained_model(checkpoint, args.data, overrides)
        criterion = trained_model.build_criterion(trained, args.criterion)
        _use_gpu(args, trained.model, criterion)
        samples = mini_batches(
            trained,
            args.subset,
            args.max_tokens,
            args.max_sentences,
            args.seed,
            args.skip_too_long,
        )
    return trained, DatasetLoss(trained.model, criterion, samples)


class SingleSentences(NamedTuple):
    """A model, what gives the loss of each sentence, and the sentences one by one."""

    trained: TrainedModel
    criterion_name: str
    criterion: Any
    total: int
    samples: Iterator[Dict[str, Any]]


def load_single_sentences(
    args: argparse.Namespace, checkpoint: str, overrides: Optional[Dict[str, Any]] = None
) -> SingleSentences:
    """Loads a checkpoint, its per-sentence criterion and the sentences, onto a GPU if any.

    Args:
        args: with ``data`` and what :func:`add_data_arguments` adds.
        checkpoint: as for :func:`load_dataset_loss`.
        overrides: as there.

    Raises:
        FairseqSamError: something is missing, damaged, or does not fit.
    """
    from fairseq_sam.evaluation import trained_model
    from fairseq_sam.evaluation.sentences import single_sentences

    with only_warnings():
        trained = trained_model.load_trained_model(checkpoint, args.data, overrides)
        name, criterion = trained_model.per_sentence_criterion(trained, args.criterion)
        _use_gpu(args, trained.model, criterion)
        total, samples = single_sentences(
            trained, args.subset, args.max_sentences, args.seed, args.skip_too_long
        )
    return SingleSentences(trained, name, criterion, total, samples)


def _use_gpu(args: argparse.Namespace, model: Any, criterion: Any) -> None:
    import torch

    if torch.cuda.is_available() and not args.cpu:
        model.cuda()
        criterion.cuda()


@contextlib.contextmanager
def explaining(checkpoint: str, data: str) -> Iterator[None]:
    """Turns what models raise when the data does not fit them into one line.

    Raises:
        CommandError: in place of the model's error.
    """
    try:
        yield
    except FloatingPointError as error:
        raise CommandError(f"{checkpoint}: {error}") from error
    except (FairseqSamError, ImportError, MemoryError, OSError):
        raise
    except Exception as error:  # models and criterions complain in any way
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise CommandError(f"{data}: does not fit {checkpoint} ({reason})") from error


def checkpoint_names(checkpoints: Sequence[str]) -> List[str]:
    """Returns the paths without what all of them share at the beginning or at the end.

    >>> checkpoint_names(["runs/adam/last.pt", "runs/ga_sam/last.pt"])
    ['adam', 'ga_sam']
    >>> checkpoint_names(["runs/adam/last.pt", "runs/adam/best.pt"])
    ['last', 'best']
    >>> checkpoint_names(["runs/adam.pt", "runs/adam/last.pt"])
    ['adam', 'adam/last']
    >>> checkpoint_names(["runs/adam/last.pt"])
    ['last']
    """
    parts = [Path(os.path.splitext(path)[0]).absolute().parts for path in checkpoints]
    if len(set(parts)) < len(parts):  # one twice, or only the suffixes differ
        return [f"{number} {path}" for number, path in enumerate(checkpoints, 1)]
    if len(parts) == 1:
        return [parts[0][-1]]
    for first in (True, False):
        while len({part[0 if first else -1] for part in parts}) == 1 < min(map(len, parts)):
            parts = [part[1:] if first else part[:-1] for part in parts]
    return ["/".join(part) for part in parts]
