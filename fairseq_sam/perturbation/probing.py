"""Losses per sentence at random displacements of the weights (papers/SPEC §4: w ± r)."""

from typing import Callable, Dict, List, Optional, Sequence, Tuple

import torch
from torch import Tensor

from fairseq_sam.perturbation import foreach
from fairseq_sam.perturbation.rng import RandomState
from fairseq_sam.perturbation.settings import PerturbationSettings
from fairseq_sam.perturbation.weights import PerturbedWeights


def probe_length(settings: PerturbationSettings, norm: Tensor, dtype: torch.dtype) -> Tensor:
    """Returns h, how far the random displacement reaches.

    The differences are wanted at ρ, where rounding drowns them at the paper's radii. The published
    weights' second difference has a rounding error of about eps (‖w‖/h)² and, scaled back from h,
    a truncation error of about (h/‖w‖)²: ½ eps^¼ ‖w‖ balances the two. The draft's first
    difference is one-sided, with errors of eps ‖w‖/h and h/‖w‖: eps^½ takes the place of eps^¼.
    Measured in docs/results/delta_weights.md.

    Args:
        settings: its ``probe_radius``, if given, is h.
        norm: ‖w‖₂, a scalar.
        dtype: the format that losses are computed in.
    """
    if settings.probe_radius is not None:
        return torch.full_like(norm, settings.probe_radius)
    exponent = 0.25 if settings.weighting == "published" else 0.5
    reach: float = 0.5 * torch.finfo(dtype).eps ** exponent
    return (norm * reach).clamp(min=settings.rho)


def random_direction(weights: Sequence[Tensor]) -> List[Tensor]:
    """Returns r ~ N(0, I) rescaled to ‖r‖₂ = 1, one tensor a weight, float32 at least.

    The numbers come from a generator of their own, seeded from torch's: drawn from torch's, they
    would be the very numbers that the dropout masks are made of.
    """
    seed = int(torch.randint(2**62, ()))
    generators: Dict[torch.device, torch.Generator] = {}
    direction: List[Tensor] = []
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
    random_state: RandomState,
    compute_dtype: Optional[torch.dtype] = None,
) -> Tuple[Tensor, Optional[Tensor], Tensor]:
    """Returns l_j(w + h r), for the published weights l_j(w − h r), and ρ / h.

    Args:
        weights: at w, and back there afterwards.
        losses: runs a forward pass and returns the sentences' losses [batch].
        random_state: restored before each pass, so that all see the same dropout masks.
        compute_dtype: the format that losses are computed in, where it is not the weights'.
    """
    settings = weights.settings
    norm = torch.linalg.vector_norm(foreach.norms(weights.weights))
    length = probe_length(settings, norm, compute_dtype or weights.weights[0].dtype)
    direction = random_direction(weights.weights)
    torch._foreach_mul_(direction, [length.to(part) for part in direction])
    found: List[Tensor] = []
    for sign in (1.0, -1.0) if settings.weighting == "published" else (1.0,):
        weights.displace(direction, sign)
        random_state.restore()
        found.append(losses())
        weights.restore()
    random_state.restore()
    return found[0], found[1] if len(found) > 1 else None, settings.rho / length
