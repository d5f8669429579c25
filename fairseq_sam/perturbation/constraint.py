"""The ascent step and the projection onto S = {a : ‖T⁻¹a‖_p ≤ ρ} (GA-SAM Eqs. 15-18, SPEC §2).

For a gradient g and a step size η the step is

    p = 2:  u = η T² g / ‖T g‖₂          p = ∞:  u = η T sgn(g)

that is u = c ⊙ v with a direction v (g or sgn g) and one coefficient c per group. Norms run over
all perturbed weights together. A group with T = 0 stays where it is.
"""

from typing import Sequence

import torch
from torch import Tensor

from fairseq_sam.perturbation import foreach
from fairseq_sam.perturbation.groups import Blocks, Groups, total_norm


def step_coefficients_(
    norm: str, scale: Blocks, gradient_norms: Blocks, step_size: float, keep: Tensor
) -> Blocks:
    """Turns T into c of the ascent step u = c ⊙ v, in place.

    Args:
        norm: ``l2`` or ``linf``.
        scale: T of each group, overwritten.
        gradient_norms: ‖g_i‖ of each group (``l2`` only).
        step_size: η.
        keep: boolean scalar; false makes every coefficient 0 (a gradient that overflowed).

    Returns:
        ``scale``, now holding c. All 0 where ‖T g‖ is 0: there is no direction to go.
    """
    if norm == "linf":
        return [T.mul_(keep.to(T) * step_size) for T in scale]
    length = total_norm(T * norms for T, norms in zip(scale, gradient_norms))
    keep = keep & (length > 0)
    length = torch.where(keep, length, torch.ones_like(length))
    factor = torch.where(keep, step_size / length, torch.zeros_like(length))
    return [T.mul_(T).mul_(factor.to(T)) for T in scale]


def step_length(coefficients: Blocks, direction_norms: Blocks) -> Tensor:
    """Returns ‖c ⊙ v‖₂ from the coefficients and the L2 norm of v in each group."""
    return total_norm(c * norms for c, norms in zip(coefficients, direction_norms))


def project_(
    norm: str, perturbation: Sequence[Tensor], groups: Groups, scale: Blocks, rho: float
) -> None:
    """Projects a perturbation onto S in place (Eqs. 17, 18).

    Eq. 17 shrinks the whole of a by min(1, ρ / ‖T⁻¹a‖₂); Eq. 18 clips each entry to ±ρT, which
    needs no T⁻¹. Groups with T = 0 hold zeros and are left out of ‖T⁻¹a‖.

    Args:
        norm: ``l2`` or ``linf``.
        perturbation: a, one tensor a parameter.
        groups: the groups that ``scale`` refers to.
        scale: T of each group.
        rho: the radius ρ.
    """
    if norm == "linf":
        foreach.clamp_(perturbation, groups.spread([T * rho for T in scale]))
        return
    inside = (
        norms / torch.where(T > 0, T, torch.ones_like(T)) * (T > 0)
        for norms, T in zip(groups.norms(perturbation), scale)
    )
    length = total_norm(inside)
    factor = torch.where(length > rho, rho / length, torch.ones_like(length))
    torch._foreach_mul_(list(perturbation), [factor.to(part) for part in perturbation])
