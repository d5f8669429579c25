"""Taking a fairseq mini-batch apart into its sentences; pure torch."""

from typing import Any, Dict, List

from torch import Tensor


def split_sentences(sample: Dict[str, Any], padding_idx: int) -> List[Dict[str, Any]]:
    """Returns one mini-batch per sentence, as if the sentence had been collated alone.

    Every tensor or list whose first dimension is the number of sentences is sliced, anything else
    is shared. Columns of tokens that are padding are dropped: recurrent encoders insist on it.

    Args:
        sample: fairseq's mini-batch, with ``id`` or ``nsentences``.
        padding_idx: the index that pads tokens.

    >>> import torch
    >>> tokens = torch.tensor([[1, 5, 2], [6, 7, 2]])
    >>> whole = {"id": torch.tensor([7, 8]), "net_input": {"src_tokens": tokens}, "ntokens": 5}
    >>> [part["net_input"]["src_tokens"].tolist() for part in split_sentences(whole, padding_idx=1)]
    [[[5, 2]], [[6, 7, 2]]]
    """
    count = len(sample["id"]) if "id" in sample else int(sample["nsentences"])
    counted = _counted_tokens(sample, padding_idx)
    parts = [_row(sample, index, count) for index in range(count)]
    for part in parts:
        if "nsentences" in part:
            part["nsentences"] = 1
        if "ntokens" in part:
            part["ntokens"] = int(_tokens(part, counted).ne(padding_idx).sum())
        _trim(part, padding_idx)
    return parts


def _tokens(sample: Dict[str, Any], name: str) -> Tensor:
    tokens: Tensor = sample["target"] if name == "target" else sample["net_input"][name]
    return tokens


def _is_text(value: Any) -> bool:
    return isinstance(value, Tensor) and value.dim() == 2 and not value.is_floating_point()


def _counted_tokens(sample: Dict[str, Any], padding_idx: int) -> str:
    """Returns what fairseq counted as ``ntokens``: the target's tokens, or else the source's."""
    target: Any = sample.get("target")
    if _is_text(target) and int(target.ne(padding_idx).sum()) == sample.get("ntokens"):
        return "target"
    return "src_tokens"


def _trim(part: Dict[str, Any], padding_idx: int) -> None:
    """Drops the columns that are padding, in place of the dictionaries but not of the tensors."""
    net_input = part["net_input"]
    source = net_input["src_tokens"]
    kept = source.ne(padding_idx).any(0)
    net_input["src_tokens"] = source[:, kept]
    if not (_is_text(part.get("target")) and kept.any()):
        return
    target: Tensor = part["target"]
    if "prev_output_tokens" in net_input:  # its padding lies where the target's does
        kept = target.ne(padding_idx).any(0)
        net_input["prev_output_tokens"] = net_input["prev_output_tokens"][:, kept]
    if target.size(1) == len(kept):  # a class label has one column
        part["target"] = target[:, kept]


def _row(value: Any, index: int, count: int) -> Any:
    if isinstance(value, dict):
        return {key: _row(entry, index, count) for key, entry in value.items()}
    if isinstance(value, Tensor) and value.dim() > 0 and value.size(0) == count:
        return value[index : index + 1]
    if isinstance(value, (list, tuple)) and len(value) == count:
        return value[index : index + 1]
    return value
