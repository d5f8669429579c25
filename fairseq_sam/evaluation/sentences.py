"""The sentences that a trained model is measured on, as mini-batches on its device."""

from __future__ import annotations

import contextlib
import random
from typing import Any, Dict, Iterator, List, Optional, Sequence, Tuple

import torch

from fairseq_sam.evaluation.trained_model import LoadError, TrainedModel, reason_of


def single_sentences(
    trained: TrainedModel,
    subset: str,
    max_sentences: Optional[int] = None,
    seed: int = 1,
    skip_too_long: bool = False,
) -> Tuple[int, Iterator[Dict[str, Any]]]:
    """Returns the sentences of a data set as mini-batches of one, and how many there are.

    Args:
        trained: the model; the mini-batches are on its device.
        subset: name of the split.
        max_sentences: only so many, drawn at random from all, those too long included.
        seed: of that draw.
        skip_too_long: leave out what the model is too short for, which is otherwise an error.

    Raises:
        LoadError: the split cannot be read, is empty, or has sentences too long for the model.
    """
    chosen = _sentences(trained, subset, max_sentences, seed, skip_too_long)
    return len(chosen), (_collate(trained, subset, [index]) for index in chosen)


def mini_batches(
    trained: TrainedModel,
    subset: str,
    max_tokens: int,
    max_sentences: Optional[int] = None,
    seed: int = 1,
    skip_too_long: bool = False,
) -> List[Dict[str, Any]]:
    """Returns the sentences of a data set in mini-batches of like lengths, on the model's device.

    Args:
        trained: the model.
        subset: name of the split.
        max_tokens: padded size of a mini-batch, in tokens.
        max_sentences: as for :func:`single_sentences`.
        seed: as there.
        skip_too_long: as there.

    Raises:
        LoadError: as there.
    """
    chosen = _sentences(trained, subset, max_sentences, seed, skip_too_long)
    dataset = trained.task.dataset(subset)
    batches: List[List[int]] = [[]]
    for index in sorted(chosen, key=dataset.num_tokens):
        longest = dataset.num_tokens(index)  # of the batch too, for they come in order
        if batches[-1] and longest * (len(batches[-1]) + 1) > max_tokens:
            batches.append([])
        batches[-1].append(index)
    return [_collate(trained, subset, batch) for batch in batches]


def sentence_batches(
    trained: TrainedModel,
    subset: str,
    batch_size: int,
    max_sentences: Optional[int] = None,
    seed: int = 1,
    skip_too_long: bool = False,
) -> List[Dict[str, Any]]:
    """Returns mini-batches of exactly so many sentences each, put together at random.

    Sentences that would make an incomplete mini-batch are left out.

    Args:
        trained: the model; the mini-batches are on its device.
        subset: as for :func:`single_sentences`.
        batch_size: number of sentences.
        max_sentences: as there.
        seed: of both draws.
        skip_too_long: as there.

    Raises:
        LoadError: as there, or there are fewer sentences than one mini-batch takes.
    """
    chosen = _sentences(trained, subset, max_sentences, seed, skip_too_long)
    if len(chosen) < batch_size:
        raise LoadError(
            f"subset {subset} has {len(chosen)} sentences, fewer than a mini-batch of {batch_size}"
        )
    shuffled = random.Random(seed).sample(chosen, len(chosen) // batch_size * batch_size)
    starts = range(0, len(shuffled), batch_size)
    return [_collate(trained, subset, shuffled[i : i + batch_size]) for i in starts]


def _sentences(
    trained: TrainedModel,
    subset: str,
    max_sentences: Optional[int],
    seed: int,
    skip_too_long: bool,
) -> List[int]:
    from fairseq import utils

    task, model = trained.task, trained.model
    try:
        if subset not in task.datasets:  # translation_multi_simple_epoch loads none twice
            task.load_dataset(subset, combine=False, epoch=1, task_cfg=trained.cfg.task)
        dataset = task.dataset(subset)
        if hasattr(dataset, "set_epoch"):
            dataset.set_epoch(1)
        positions = utils.resolve_max_positions(task.max_positions(), model.max_positions())
        indices = dataset.ordered_indices()
        fitting = task.filter_indices_by_size(indices, dataset, positions, skip_too_long)
    except Exception as error:
        raise _unusable(trained, subset, error) from error
    chosen = sorted(map(int, indices))  # some data sets break ties of length at random
    if max_sentences is not None and max_sentences < len(chosen):
        chosen = random.Random(seed).sample(chosen, max_sentences)  # the same of all models
    kept = set(map(int, fitting))
    chosen = [index for index in chosen if index in kept]
    if not chosen:
        raise LoadError(f"subset {subset} has no sentences that the model takes")
    return chosen


def _unusable(trained: TrainedModel, subset: str, error: Exception) -> LoadError:
    data = getattr(trained.cfg.task, "data", "the data")
    return LoadError(f"{data}: subset {subset} cannot be used ({reason_of(error)})")


@contextlib.contextmanager
def _drawing_by(number: int) -> Iterator[None]:
    """Context in which random numbers depend on a sentence's number alone.

    Some data sets draw what they do to a sentence, such as the noise of denoising. All models, and
    mini-batches of all sizes, are to see the same.
    """
    from fairseq.data.data_utils import numpy_seed

    with torch.random.fork_rng(devices=()), numpy_seed(number):
        torch.default_generator.manual_seed(number)  # and not those of GPUs
        yield


def _collate(trained: TrainedModel, subset: str, indices: Sequence[int]) -> Dict[str, Any]:
    from fairseq import utils

    dataset, examples = trained.task.dataset(subset), []
    try:
        for index in indices:
            with _drawing_by(index):
                examples.append(dataset[index])
        with _drawing_by(indices[0]):
            sample = dataset.collater(examples)
    except Exception as error:  # a file that was cut off, for instance
        raise _unusable(trained, subset, error) from error
    _refuse_several(trained, sample)
    device = next(trained.model.parameters()).device
    moved: Dict[str, Any] = utils.apply_to_sample(lambda tensor: tensor.to(device), sample)
    return moved


def _refuse_several(trained: TrainedModel, sample: Dict[str, Any]) -> None:
    """Refuses a dictionary of mini-batches, as of several languages, which no criterion takes."""
    several = [
        key for key, part in sample.items() if isinstance(part, dict) and "net_input" in part
    ]
    if several:
        raise LoadError(
            f"the task {trained.cfg.task._name} is not supported: each of its mini-batches holds "
            f"one of {', '.join(map(str, several))}"
        )
