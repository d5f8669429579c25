"""The parameters of a run: which are trained, and which of these are perturbed."""

import logging
import re
from typing import List, Optional, Sequence, Tuple

from torch import Tensor, nn

logger = logging.getLogger(__name__)


def trained_parameters(model: nn.Module, criterion: nn.Module) -> List[Tuple[str, Tensor]]:
    """Returns the trained parameters with their names, the model's and the criterion's."""
    return [
        (name, weight)
        for module in (unwrap(model), criterion)
        for name, weight in module.named_parameters()
        if weight.requires_grad
    ]


def select_perturbed(named: Sequence[Tuple[str, Tensor]], exclude: Optional[str]) -> List[Tensor]:
    """Returns the parameters that ``--sam-exclude`` leaves to be perturbed.

    Raises:
        SystemExit: if none is left. (Not an error that fairseq's trainer would take for a crash
            of the run and write a checkpoint of: nothing was trained yet.)
    """
    chosen = [
        (name, weight) for name, weight in named if not (exclude and re.search(exclude, name))
    ]
    if not chosen:
        names = ", ".join(name for name, _ in named[:3])
        raise SystemExit(
            f"error: argument --sam-exclude: {exclude} is found in the names of all {len(named)} "
            f"trained parameters ({names} ...): it must leave at least one to perturb"
        )
    if exclude:
        logger.info(f"--sam-exclude leaves {len(chosen)} of {len(named)} parameters perturbed")
    return [weight for _, weight in chosen]


def unwrap(model: nn.Module) -> nn.Module:
    """Returns the model inside fairseq's and torch's data-parallel wrappers."""
    from fairseq.models import BaseFairseqModel

    while not isinstance(model, BaseFairseqModel) and isinstance(
        getattr(model, "module", None), nn.Module
    ):
        model = model.module  # type: ignore[assignment]
    return model
