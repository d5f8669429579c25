"""Taking a fairseq mini-batch apart into its sentences; pure torch."""

from typing import Any, Dict, List

from torch import Tensor


def split_sentences(sample: Dict[str, Any], padding_idx: int) -> List[Dict[str, Any]]:
    """Returns one mini-batch per sentence, padded as it was.

    Every tensor or list whose first dimension is the number of sentences is sliced; anything else
    is shared.

    Args:
        sample: fairseq's mini-batch, with ``id`` or ``nsentences``.
        padding_idx: the index that pads ``target`` and ``src_tokens``.

    >>> whole = {"id": torch.tensor([7, 8]), "target": torch.tensor([[5, 2], [2, 1]]), "ntokens": 3}
    >>> [(part["id"].tolist(), part["ntokens"]) for part in split_sentences(whole, padding_idx=1)]
    [([7], 2), ([8], 1)]
    """
    count = len(sample["id"]) if "id" in sample else int(sample["nsentences"])
    parts = [_row(sample, index, count) for index in range(count)]
    for part in parts:
        if "nsentences" in part:
            part["nsentences"] = 1
        if "ntokens" in part:
            part["ntokens"] = _num_tokens(part, padding_idx)
    return parts


def _row(value: Any, index: int, count: int) -> Any:
    if isinstance(value, dict):
        return {key: _row(entry, index, count) for key, entry in value.items()}
    if isinstance(value, Tensor) and value.dim() > 0 and value.size(0) == count:
        return value[index : index + 1]
    if isinstance(value, (list, tuple)) and len(value) == count:
        return value[index : index + 1]
    return value


def _num_tokens(part: Dict[str, Any], padding_idx: int) -> int:
    """The target's tokens where it is text, otherwise the source's, as fairseq counts them."""
    target = part.get("target")
    if not (isinstance(target, Tensor) and target.dim() == 2 and not target.is_floating_point()):
        target = part["net_input"]["src_tokens"]
    return int((target != padding_idx).sum())
