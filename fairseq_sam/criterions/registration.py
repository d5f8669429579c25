"""Registers per-sentence criterions under the name of the criterion each stands in for."""

from typing import Callable, Dict, Optional, Type, TypeVar, Union

from fairseq.criterions import (
    CRITERION_DATACLASS_REGISTRY,
    CRITERION_REGISTRY,
    FairseqCriterion,
    register_criterion,
)

from fairseq_sam.criterions.per_sentence import PerSentenceCriterion

PREFIX = "per_sentence_"

Criterion = TypeVar("Criterion", bound=Type[PerSentenceCriterion])

_stand_ins: Dict[str, str] = {}


def register_per_sentence(stock_name: str) -> Callable[[Criterion], Criterion]:
    """Registers a class as ``per_sentence_<stock_name>``, with the flags of the stock criterion.

    The class also takes over the stock class's ``__name__``. fairseq writes that name into
    checkpoints and refuses to resume under another one; with it a run can be continued with the
    stand-in and back.

    Args:
        stock_name: the name under which the stock criterion is registered.

    Returns:
        A class decorator.

    Raises:
        ValueError: No such criterion, or the class does not derive from both
            :class:`PerSentenceCriterion` and the stock criterion, in this order.
    """
    if stock_name not in CRITERION_REGISTRY:
        raise ValueError(f"there is no criterion {stock_name!r} to stand in for")
    stock = CRITERION_REGISTRY[stock_name]

    def register(cls: Criterion) -> Criterion:
        if not (issubclass(cls, PerSentenceCriterion) and issubclass(cls, stock)):
            raise ValueError(
                f"{cls.__name__} must derive from PerSentenceCriterion, {stock.__name__}"
            )
        dataclass = CRITERION_DATACLASS_REGISTRY.get(stock_name)
        register_criterion(PREFIX + stock_name, dataclass=dataclass)(cls)
        cls.__name__ = stock.__name__
        _stand_ins[stock_name] = PREFIX + stock_name
        return cls

    return register


def add_stand_in(name: str, stand_in: str) -> None:
    """Says which per-sentence criterion has the losses of ``name`` without its regularisation."""
    _stand_ins[name] = stand_in


def per_sentence_name_of(criterion: Union[str, FairseqCriterion]) -> Optional[str]:
    """Names the per-sentence stand-in of a criterion, for error messages.

    Args:
        criterion: the registered name of a criterion, or a criterion.

    Returns:
        The name to give to ``--criterion`` instead (a per-sentence criterion is its own stand-in),
        or ``None`` if there is none.

    >>> per_sentence_name_of("masked_lm")
    'per_sentence_masked_lm'
    """
    if isinstance(criterion, str):
        return criterion if criterion in _stand_ins.values() else _stand_ins.get(criterion)
    for name, cls in CRITERION_REGISTRY.items():
        if cls is type(criterion):
            return per_sentence_name_of(name)
    return None
