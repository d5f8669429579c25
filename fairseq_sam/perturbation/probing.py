"""Losses per sentence at random displacements of the weights (papers/SPEC §4: w ± r)."""

from typing import Callable, List, Optional, Tuple

import torch
from torch import Tensor

from fairseq_sam.perturbation import foreach
from fairseq_sam.perturbation.rng import RandomState
from fairseq_sam.perturbation.weights import PerturbedWeights


def random_direction(weights: List[Tensor]) -> List[Tensor]:
    """Returns r ~ N(0, I) rescaled to ‖r‖₂ = 1, one tensor a weight, float32 at least.

    The numbers come from a generator of their own, seeded from torch's: drawn from torch's, they
    would be the very numbers that the dropout masks are made of.
    """
    seed = int(torch.randint(2**62, ()))
    direction: List[Tensor] = []
    generators = {}
    for weight in weights:
        if weight.device not in generators:
            generators[weight.device] = torch.Generator(weight.device).manual_seed(seed)
        direction.append(
            torch.randn(
                weight.shape,
                generator=generators[weight.device],
                device=weight.device,
                dtype=torch.float64 if weight.dtype == torch.float64 else torch.float32,
            )
        )
    length = torch.linalg.vector_norm(foreach.norms(direction))
    torch._foreach_div_(direction, [length.to(part) for part in direction])
    return direction


@torch.no_grad()
def probe_losses(
    weights: PerturbedWeights,
    losses: Callable[[], Tensor],
    length: float,
    two_sided: bool,
    random_state: RandomState,
) -> Tuple[Tensor, Optional[Tensor]]:
    """Returns l_j(w + h r) and, two-sided, l_j(w − h r), each from one forward pass.

    Args:
        weights: at w, and back there afterwards.
        losses: runs a forward pass and returns the sentences' losses [batch].
        length: h.
        two_sided: whether to look at w − h r as well.
        random_state: restored before each pass, so that all see the same dropout masks.
    """
    direction = random_direction(weights.weights)
    plus = minus = None
    for sign in (1.0, -1.0) if two_sided else (1.0,):
        weights.displace(direction, sign * length)
        random_state.restore()
        plus, minus = (losses(), None) if plus is None else (plus, losses())
        weights.restore()
    random_state.restore()
    assert plus is not None
    return plus, minus
