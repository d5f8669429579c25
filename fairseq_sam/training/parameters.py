"""The parameters of a run: which there are, which are perturbed, and the layer of each."""

import logging
import re
from typing import Dict, List, Optional, Sequence, Tuple

from torch import Tensor, nn

logger = logging.getLogger(__name__)

_SECOND_COPIES = frozenset(
    f"{name}_{kind}"
    for name in ("in_proj", "out_proj", "fc1", "fc2")
    for kind in ("weight", "bias")
)
"""What encoder layers of fairseq 0.12.2 and later hold twice, for faster generation."""

_NUMBERED_LAYER = re.compile(r"^(.*?layers\.\d+)\.")


def named_parameters(model: nn.Module, criterion: nn.Module) -> List[Tuple[str, Tensor]]:
    """Returns the parameters with their names, the model's and the criterion's, each once.

    Frozen ones too: they may thaw during the run. What has no gradient is not perturbed. Encoder
    layers' second copies are left out: nothing trains them, a checkpoint brings other values of
    them, and δ-SAM's probes would be shorter by them.
    """
    distinct: Dict[int, Tuple[str, Tensor]] = {}
    for module in (unwrap(model), unwrap(criterion)):
        second = {
            id(weight)
            for layer in module.modules()
            if hasattr(layer, "BT_version")
            for name, weight in layer.named_parameters(recurse=False)
            if name in _SECOND_COPIES
        }
        for name, weight in module.named_parameters():
            if id(weight) not in second:
                distinct.setdefault(id(weight), (name, weight))
    return list(distinct.values())


def select_perturbed(
    named: Sequence[Tuple[str, Tensor]], exclude: Optional[str], may_thaw: bool = False
) -> List[Tensor]:
    """Returns the parameters that ``--sam-exclude`` leaves to be perturbed.

    Args:
        named: all of them.
        exclude: the flag's value.
        may_thaw: frozen ones count as trained, since nothing is perturbed yet.

    Raises:
        SystemExit: if none is left that is trained. (Not an error that fairseq's trainer would take
            for a crash of the run and write a checkpoint of: nothing was trained yet.)
    """
    if not exclude:
        return [weight for _, weight in named]
    chosen = [weight for name, weight in named if not re.search(exclude, name)]
    trained = [name for name, weight in named if weight.requires_grad]
    if not any(weight.requires_grad or may_thaw for weight in chosen):
        raise SystemExit(
            f"error: argument --sam-exclude: {exclude} is found in the names of all {len(trained)} "
            f"trained parameters ({', '.join(trained[:3])} ...): it must leave at least one to "
            "perturb"
        )
    if not may_thaw:
        logger.info(f"--sam-exclude leaves {len(chosen)} of {len(named)} parameters perturbed")
    return chosen


def unwrap(module: nn.Module) -> nn.Module:
    """Returns the model or criterion inside fairseq's and torch's data-parallel wrappers."""
    from fairseq.criterions import FairseqCriterion
    from fairseq.models import BaseFairseqModel

    while not isinstance(module, (BaseFairseqModel, FairseqCriterion)) and isinstance(
        getattr(module, "module", None), nn.Module
    ):
        module = module.module  # type: ignore[assignment]
    return module


def layer_of(name: str) -> str:
    """Returns the layer that a parameter belongs to.

    >>> layer_of("encoder.layers.3.self_attn.k_proj.bias")
    'encoder.layers.3'
    >>> layer_of("decoder.embed_tokens.weight")
    'decoder.embed_tokens'
    >>> layer_of("scale")
    'scale'
    """
    numbered = _NUMBERED_LAYER.match(name)
    return numbered.group(1) if numbered else (name.rpartition(".")[0] or name)
