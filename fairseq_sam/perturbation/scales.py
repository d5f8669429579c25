"""The scales T of the constraint set ‖T⁻¹a‖_p ≤ ρ, one value per group (SPEC §1).

Each scale is a formula in the group's ‖w_i‖, ‖g_i‖ and n_i and in the number n of all perturbed
weights. Adding a scale is adding a line to :data:`SCALES`.
"""

from dataclasses import dataclass
from typing import Callable, Dict

import torch
from torch import Tensor

Formula = Callable[[Tensor, Tensor, Tensor, float], Tensor]


@dataclass(frozen=True)
class Scale:
    """A scale T.

    Attributes:
        formula: ``(weight_norm, gradient_norm, size, num_weights) -> T``, elementwise.
        uses_weights: whether it needs ‖w_i‖ (which costs a pass over the weights).
        divides_by_gradient: whether ‖g_i‖ stands below the line, which needs a floor.
        source: where it comes from.
    """

    formula: Formula
    uses_weights: bool
    divides_by_gradient: bool
    source: str


SCALES: Dict[str, Scale] = {
    "none": Scale(lambda w, g, size, n: torch.ones_like(g), False, False, "Foret et al. 2021"),
    "weight": Scale(lambda w, g, size, n: w, True, False, "Kwon et al. 2021"),
    "weight-over-gradient": Scale(lambda w, g, size, n: w / g, True, True, "Liu et al. 2021"),
    "gradient-strength": Scale(
        lambda w, g, size, n: size.sqrt() / (g * n**0.5), False, True, "GA-SAM Eq. 13"
    ),
    "inverse-gradient": Scale(lambda w, g, size, n: 1 / g, False, True, "GA-SAM Table 2"),
    "weight-strength": Scale(lambda w, g, size, n: w / size.sqrt(), True, False, "GA-SAM Table 2"),
}


def scale_of_groups(
    scale: Scale,
    weight_norm: Tensor,
    gradient_norm: Tensor,
    size: Tensor,
    num_weights: int,
    noise: Tensor,
) -> Tensor:
    """Returns T of each group; 0, never infinite or NaN, for groups that must not move.

    A group without gradient does not move. With a scale that divides by the gradient neither does
    one whose gradient is rounding noise: a softmax ignores the bias of the key projection, whose
    "gradient" of 1e-8 of the others' would make T a billion times too large (SPEC §3).

    Args:
        scale: the formula.
        weight_norm: ‖w_i‖, any shape; ignored by scales that do not use it.
        gradient_norm: ‖g_i‖ of the loss as the scale is to see it, same shape.
        size: n_i, broadcasting over that shape.
        num_weights: n.
        noise: the strength ‖g_i‖/√n_i at or below which a gradient is rounding noise, a scalar.
    """
    live = gradient_norm > 0
    if scale.divides_by_gradient:
        live = live & (gradient_norm > noise * size.sqrt())
    safe_norm = torch.where(live, gradient_norm, torch.ones_like(gradient_norm))
    values = scale.formula(weight_norm, safe_norm, size, float(num_weights))
    return torch.where(live, values, torch.zeros_like(values))
