"""What the base optimizer remembers of the gradients, whatever is wrapped around it; read only.

fairseq's half-precision optimizers keep float32 copies of the weights, in one flat tensor or one by
one, and the base optimizer knows only these. Here its state is found for the model's own weights.
"""

from typing import Any, Dict, Iterator, List, Optional, Sequence, Tuple

import torch
from fairseq.optim.adamax import Adamax
from fairseq.optim.nag import NAG
from torch import Tensor

from fairseq_sam.perturbation.ascent import SecondMoment
from fairseq_sam.training.configuration import carrier_of


def has_momentum(base: Any) -> bool:
    """Returns whether a base optimizer keeps a running mean of the gradients."""
    return all(
        "betas" in group or bool(group.get("momentum")) or group.get("beta1") is not None
        for inner in _inner(base)
        for group in inner.param_groups
    )


def momentum_of(optimizer: Any, trained: Sequence[Tensor]) -> List[Optional[Tensor]]:
    """Returns m of each weight, uphill as the gradients are; None where there is none yet.

    It is as it stood after the update before. NAG's buffer, which fairseq keeps as the step to
    take, is turned around.

    Args:
        optimizer: what fairseq's trainer holds.
        trained: the model's weights.
    """
    found: Dict[int, Tensor] = {}
    for inner in _inner(carrier_of(optimizer)):
        sign = -1.0 if isinstance(inner, NAG) else 1.0
        for parameter, state in inner.state.items():
            m = state.get("exp_avg", state.get("momentum_buffer"))
            if m is None:
                continue
            factor = sign * state.get("exp_avg_scale", 1.0)
            for weight, part in _parts(optimizer, parameter, m):
                found[id(weight)] = part if factor == 1.0 else part.float() * factor
    return [found.get(id(weight)) for weight in trained]


def has_second_moments(base: Any) -> bool:
    """Returns whether a base optimizer keeps a running mean of the squared gradients."""
    return all(
        "decay_rate" in group  # Adafactor
        or ("betas" in group and not isinstance(inner, (Adamax, torch.optim.Adamax)))
        for inner in _inner(base)
        for group in inner.param_groups
    )


def second_moments_of(optimizer: Any, trained: Sequence[Tensor]) -> List[Optional[SecondMoment]]:
    """Returns v̂ of each weight as it stood after the update before; None where there is none yet.

    Args:
        optimizer: what fairseq's trainer holds.
        trained: the model's weights.
    """
    found: Dict[int, SecondMoment] = {}
    for inner in _inner(carrier_of(optimizer)):
        for group in inner.param_groups:
            for parameter in group["params"]:
                state = inner.state.get(parameter, {})
                rows = state.get("exp_avg_sq_row")
                v = state.get("exp_avg_sq") if rows is None else rows
                if v is None:
                    continue
                for weight, part in _parts(optimizer, parameter, v):
                    found[id(weight)] = SecondMoment(
                        part,
                        state.get("exp_avg_sq_col"),
                        **_decay(group, state),
                        factor=state.get("exp_avg_sq_scale", 1.0),
                    )
    return [found.get(id(weight)) for weight in trained]


def _decay(group: Dict[str, Any], state: Dict[str, Any]) -> Dict[str, Any]:
    """Returns decay, correction and δ of the update to come."""
    step = state.get("step", group.get("step", 0)) + 1
    if "betas" not in group:  # Adafactor's decay grows from 0, so that there is no bias
        return {"decay": 1 - step ** group["decay_rate"]}
    decay = group["betas"][1]
    return {"decay": decay, "correction": 1 / (1 - decay**step), "delta": group["eps"]}


def _inner(base: Any) -> Iterator[torch.optim.Optimizer]:
    """Goes through the optimizers of torch's kind inside one of fairseq's."""
    inner = base.optimizer
    members = getattr(inner, "optimizers", None)  # of fairseq's composite
    if isinstance(members, dict):
        for member in members.values():
            yield from _inner(member)
    else:
        yield inner


def _parts(optimizer: Any, parameter: Tensor, value: Tensor) -> Iterator[Tuple[Tensor, Tensor]]:
    """Goes through the model's weights that a parameter of the base optimizer stands for."""
    halves = getattr(optimizer, "fp16_params", None)
    copies = getattr(optimizer, "fp32_params", None)
    if halves is None or copies is None:
        yield parameter, value
    elif optimizer.has_flat_params:
        flat = [weight for weight in halves if weight.requires_grad]
        if isinstance(copies, dict) and len(copies) > 1:  # one for each device
            device = next(key for key, each in copies.items() if each is parameter)
            flat = [weight for weight in flat if weight.device.index == device]
        sizes = [weight.numel() for weight in flat]
        for weight, part in zip(flat, value.split(sizes)):
            yield weight, part.view_as(weight)
    else:
        for weight, each in zip(halves, copies):
            if each is parameter:
                yield weight, value
