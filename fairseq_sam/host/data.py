"""Faults in how fairseq forms batches and blocks of text."""

import functools
import inspect
import types
import warnings
from typing import Any, Callable, List, Optional, Sequence, Tuple, Union

import numpy as np

from .patching import Repair, rebind

Indices = Union[np.ndarray, Sequence[int]]


def _drops_sentences() -> bool:
    from fairseq.data import data_utils

    batches = data_utils.batch_by_size(
        np.arange(3), None, np.ones(3, dtype=np.int64), required_batch_size_multiple=2
    )
    return sum(len(batch) for batch in batches) < 3


def _keep_all_sentences() -> None:
    """Puts back the last batch, which fairseq-fixed drops when its size is no multiple of 8.

    Batches are consecutive slices of the indices, so whatever is missing at the end is exactly the
    batch that was cut off; the result is that of fairseq 0.12.2.
    """
    from fairseq.data import data_utils

    original = data_utils.batch_by_size

    @functools.wraps(original)
    def batch_by_size(
        indices: Indices,
        num_tokens_fn: Optional[Callable[[int], int]],
        num_tokens_vec: Optional[Indices] = None,
        max_tokens: Optional[int] = None,
        max_sentences: Optional[int] = None,
        required_batch_size_multiple: int = 1,
        fixed_shapes: Optional[Sequence[Tuple[int, int]]] = None,
    ) -> List[np.ndarray]:
        if not isinstance(indices, np.ndarray):
            indices = np.fromiter(indices, dtype=np.int64, count=-1)
        if len(indices) == 0 and fixed_shapes is None:
            return []  # the original looks at the last of no batches
        batches: List[np.ndarray] = original(
            indices,
            num_tokens_fn,
            num_tokens_vec,
            max_tokens,
            max_sentences,
            required_batch_size_multiple,
            fixed_shapes,
        )
        batched = sum(len(batch) for batch in batches)
        if fixed_shapes is None and batched < len(indices):
            batches = [*batches, indices[batched:]]
        return batches

    rebind("batch_by_size", original, batch_by_size)


def _buckets_fail() -> bool:
    from fairseq.data import data_utils

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            data_utils.get_buckets(np.arange(1, 5), 2)
        except TypeError:
            return True
    return False


def _bucket_with_current_numpy() -> None:
    """Replaces ``percentile(interpolation="lower")``, which numpy 2.4 no longer understands."""
    from fairseq.data import data_utils

    original = data_utils.get_buckets

    @functools.wraps(original)
    def get_buckets(sizes: np.ndarray, num_buckets: int) -> np.ndarray:
        quantiles = np.linspace(0, 100, num_buckets + 1)
        return np.unique(np.percentile(sizes, quantiles, method="lower")[1:])

    rebind("get_buckets", original, get_buckets)


def _batches_depend_on_first_epoch() -> bool:
    from fairseq.tasks.fairseq_task import FairseqTask

    build = FairseqTask.get_batch_iterator
    if hasattr(build, "__wrapped__"):
        return False
    nested = [code for code in build.__code__.co_consts if isinstance(code, types.CodeType)]
    return any("epoch" in code.co_varnames and "seed" in code.co_freevars for code in nested)


def _form_batches_as_in_epoch_one() -> None:
    """Makes a resumed run train on the batches that the interrupted one trained on.

    fairseq-fixed orders the sentences by ``seed + epoch`` and keeps the batches for all later
    epochs; with the epoch that the *process* starts in, a resumed run forms other batches, and in
    mid-epoch repeats some sentences and skips others. A run that is not interrupted starts in epoch
    1 and stays as it is.
    """
    from fairseq.tasks.fairseq_task import FairseqTask

    build = FairseqTask.get_batch_iterator
    signature = inspect.signature(build)

    @functools.wraps(build)
    def get_batch_iterator(self: Any, *args: Any, **kwargs: Any) -> Any:
        call = signature.bind(self, *args, **kwargs)
        call.apply_defaults()
        given = call.arguments
        reused = (
            not given["disable_iterator_cache"]
            and not given["update_epoch_batch_itr"]
            and not getattr(self.cfg, "rebuild_batches", False)
            and self.can_reuse_epoch_itr(given["dataset"])
        )
        epoch, is_kept = given["epoch"], given["dataset"] in self.dataset_to_epoch_iter
        if not reused or is_kept or epoch <= 1:
            return build(*call.args, **call.kwargs)
        given["epoch"] = 1
        iterator = build(*call.args, **call.kwargs)
        iterator.epoch = epoch
        given["dataset"].set_epoch(epoch)
        return iterator

    FairseqTask.get_batch_iterator = get_batch_iterator


REPAIRS = (
    Repair("batch_by_size drops the last sentences", _drops_sentences, _keep_all_sentences),
    Repair(
        "--num-batch-buckets fails with numpy >= 2.4", _buckets_fail, _bucket_with_current_numpy
    ),
    Repair(
        "a resumed run forms other batches",
        _batches_depend_on_first_epoch,
        _form_batches_as_in_epoch_one,
    ),
)
