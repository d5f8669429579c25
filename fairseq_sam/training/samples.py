"""Taking a fairseq mini-batch apart into its sentences; pure torch."""

import math
from typing import Any, Dict, List, Optional

import torch
from torch import Tensor


def split_sentences(sample: Dict[str, Any], padding_idx: int) -> List[Dict[str, Any]]:
    """Returns one mini-batch per sentence, as if the sentence had been collated alone.

    Every tensor or list whose first dimension is the number of sentences is sliced, anything else
    is shared. Columns of tokens that are padding are dropped: recurrent encoders insist on it. Of
    several mini-batches in a dictionary (multilingual tasks), each gets its sentences in turn.

    Args:
        sample: fairseq's mini-batch, with ``id`` or ``nsentences``, or a dictionary of such.
        padding_idx: the index that pads tokens.

    Raises:
        ValueError: it has alignments, which point into the whole mini-batch, targets that are not
            of its sentences, or cannot be told apart into sentences.

    >>> import torch
    >>> tokens = torch.tensor([[1, 5, 2], [6, 7, 2]])
    >>> whole = {"id": torch.tensor([7, 8]), "net_input": {"src_tokens": tokens}, "ntokens": 5}
    >>> [part["net_input"]["src_tokens"].tolist() for part in split_sentences(whole, padding_idx=1)]
    [[[5, 2]], [[6, 7, 2]]]
    """
    if "id" not in sample and "nsentences" not in sample:
        return _split_each(sample, padding_idx)
    return [_rows_of(sample, [index], padding_idx) for index in range(num_rows(sample))]


def sub_batch(
    sample: Dict[str, Any], padding_idx: int, fraction: float, draw: float
) -> Dict[str, Any]:
    """Returns a mini-batch of some sentences, evenly spaced, as if collated without the others.

    fairseq's mini-batches are ordered by length, so that these have the lengths of the whole. Over
    many draws each sentence is chosen equally often. Of several mini-batches in a dictionary
    (multilingual tasks) each gives its part.

    Args:
        sample: as of :func:`split_sentences`.
        padding_idx: the index that pads tokens.
        fraction: q; of B sentences there are ⌈q B⌉.
        draw: from [0, 1), which of the sentences.

    Raises:
        ValueError: as :func:`split_sentences`.

    >>> import torch
    >>> whole = {"id": torch.arange(8), "net_input": {}}
    >>> sub_batch(whole, 1, fraction=0.25, draw=0.5)["id"]
    tensor([2, 6])
    """
    if "id" not in sample and "nsentences" not in sample:
        _refuse_unknown(sample)
        return {
            key: part and sub_batch(part, padding_idx, fraction, draw)
            for key, part in sample.items()
        }
    count = num_rows(sample)
    chosen = math.ceil(fraction * count - 1e-9)
    if chosen == count:
        return sample
    rows = [int((draw + i) * count / chosen) for i in range(chosen)]
    return _rows_of(sample, rows, padding_idx)


def num_sentences(sample: Dict[str, Any]) -> int:
    """Returns how many sentences a mini-batch has, by their numbers where it has them.

    (``nsentences`` of fairseq's denoising is how many words the first one has.)
    """
    numbers: Any = sample.get("id")
    return int(sample["nsentences"]) if _is_unnumbered(numbers) else len(numbers)


def num_rows(sample: Dict[str, Any]) -> int:
    """Returns the number of rows: of sentences, and of those that only pad to a fixed number."""
    count = num_sentences(sample)
    tokens: Any = _net_input(sample).get("src_tokens")
    if _is_unnumbered(sample.get("id")) or not _is_text(tokens):
        return count
    return max(count, int(tokens.size(0)))


def _is_unnumbered(numbers: Any) -> bool:
    return numbers is None or isinstance(numbers, int)


def _rows_of(sample: Dict[str, Any], rows: List[int], padding_idx: int) -> Dict[str, Any]:
    if "alignments" in sample:
        raise ValueError("the alignments of words (--load-alignments) are of the whole mini-batch")
    count = num_rows(sample)
    if rows == list(range(count)):
        return dict(sample)
    _refuse_other_targets(sample.get("target"), count)
    part: Dict[str, Any] = _row(sample, rows, count)
    if "nsentences" in part:
        part["nsentences"] = len(rows)
    if "ntokens" in part:
        counted = _tokens_of_rows(sample, padding_idx)
        part["ntokens"] = (
            part["ntokens"] * len(rows) / count if counted is None else int(counted[rows].sum())
        )
    _trim(part, sample, padding_idx)
    return part


def _split_each(samples: Dict[str, Any], padding_idx: int) -> List[Dict[str, Any]]:
    """Splits several mini-batches; a part has the sentence of one, and None for the others."""
    _refuse_unknown(samples)
    return [
        {**dict.fromkeys(samples), key: part}
        for key, sample in samples.items()
        if sample
        for part in split_sentences(sample, padding_idx)
    ]


def _refuse_unknown(samples: Dict[str, Any]) -> None:
    if not all(sample is None or isinstance(sample, dict) for sample in samples.values()):
        raise ValueError("the mini-batch has neither id nor nsentences")


def _is_text(value: Any) -> bool:
    return isinstance(value, Tensor) and value.dim() == 2 and not value.is_floating_point()


def _tokens_of_rows(sample: Dict[str, Any], padding_idx: int) -> Optional[Tensor]:
    """Returns how many tokens of ``ntokens`` are of each sentence; None if that is not known.

    They are the target's, or else the source's; of speech, frames.
    """
    net_input, target = _net_input(sample), sample.get("target")
    targets: List[Any] = target if isinstance(target, list) else [target]
    texts = [*targets, net_input.get("src_tokens")]
    counts = [tokens.ne(padding_idx).sum(1) for tokens in texts if _is_text(tokens)]
    lengths: List[Any] = [sample.get("target_lengths"), net_input.get("src_lengths")]
    for rows in [*counts, *(each for each in lengths if isinstance(each, Tensor))]:
        if int(rows.sum()) == sample.get("ntokens"):
            return rows
    return counts[-1] if counts else None


def _net_input(sample: Dict[str, Any]) -> Dict[str, Any]:
    return sample.get("net_input") or {}


def _trim(part: Dict[str, Any], whole: Dict[str, Any], padding_idx: int) -> None:
    """Drops the columns that are padding, in place of the dictionaries but not of the tensors.

    What has the source's rows and columns is padded where that is: durations, masks. With a
    decoder, its input and whatever else has the target's is padded where the target is. No word
    is dropped.
    """
    net_input = _net_input(part)
    target: Any = part.get("target")
    source, previous = net_input.get("src_tokens"), net_input.get("prev_output_tokens")
    of_source = _used_columns(part, whole, "src_tokens", padding_idx)
    targets = target if isinstance(target, list) else [target]
    of_target = None
    has_decoder = isinstance(previous, list) or _is_like(previous, targets[0])
    if isinstance(targets[0], Tensor) and has_decoder:
        of_target = _used_columns(part, whole, "target", padding_idx)

    def trimmed(key: str, value: Any) -> Any:
        if key == "target" and isinstance(value, list):
            return [trimmed(key, each) for each in value]
        if of_target is not None and _is_like(value, targets[0]):
            return value[:, of_target]
        if of_source is None or not _is_like(value, source):
            return value
        is_text = key in ("target", "prev_output_tokens") and _is_text(value)
        if is_text and bool((value[:, ~of_source] != padding_idx).any()):
            return value
        return value[:, of_source]

    for holder in (net_input, part):
        for key, value in holder.items():
            if key == "src_tokens":
                holder[key] = value if of_source is None else value[:, of_source]
            else:
                holder[key] = trimmed(key, value)


def _used_columns(
    part: Dict[str, Any], whole: Dict[str, Any], key: str, padding_idx: int
) -> Optional[Tensor]:
    """Returns where rows of a part are not padding: of text by its index, else by the lengths."""
    is_source = key == "src_tokens"
    holder, before = (_net_input(part), _net_input(whole)) if is_source else (part, whole)
    value: Any = holder.get(key)
    if isinstance(value, list):
        texts = [each for each in value if _is_text(each)]
        return _or_first(torch.stack([each.ne(padding_idx).any(0) for each in texts]).any(0))
    if _is_text(value):
        return _or_first(value.ne(padding_idx).any(0))
    lengths = "src_lengths" if is_source else "target_lengths"
    now: Any = holder.get(lengths)
    then: Any = before.get(lengths)
    if not (isinstance(value, Tensor) and isinstance(now, Tensor) and value.dim() > 1):
        return None
    width = value.size(1)
    if int(then.max()) != width:  # they count something else
        return None
    return torch.arange(width, device=value.device) < now.max().to(value.device)


def _or_first(used: Tensor) -> Tensor:
    """Takes the first column where there is no other: of rows that only pad."""
    used[:1] |= ~used.any()
    return used


def _is_like(value: Any, other: Any) -> bool:
    """Tells whether two tensors have the same rows and columns."""
    both = isinstance(value, Tensor) and isinstance(other, Tensor)
    return both and value.dim() > 1 and value.shape[:2] == other.shape[:2]


def _refuse_other_targets(target: Any, count: int) -> None:
    """Refuses targets that are not of the sentences, such as those of all words in one row."""
    for each in target.values() if isinstance(target, dict) else [target]:
        if isinstance(each, dict):
            _refuse_other_targets(each, count)
        elif isinstance(each, Tensor) and each.dim() > 0 and each.size(0) != count:
            raise ValueError(f"the mini-batch has {each.size(0)} targets for {count} sentences")


def _row(value: Any, rows: List[int], count: int) -> Any:
    if isinstance(value, dict):
        return {key: _row(entry, rows, count) for key, entry in value.items()}
    if isinstance(value, Tensor) and value.dim() > 0 and value.size(0) == count:
        return value[rows[0] : rows[0] + 1] if len(rows) == 1 else value[rows]
    if isinstance(value, list) and value and all(_has_rows(each, count) for each in value):
        return [_row(each, rows, count) for each in value]  # several targets of each sentence
    if isinstance(value, (list, tuple)) and len(value) == count:
        chosen = [value[row] for row in rows]
        return chosen if isinstance(value, list) else tuple(chosen)
    return value


def _has_rows(value: Any, count: int) -> bool:
    return isinstance(value, Tensor) and value.dim() > 1 and value.size(0) == count
