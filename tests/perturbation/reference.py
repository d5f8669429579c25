"""The maths of GA-SAM (Eqs. 13-18) once more: slow, obviously right, with nothing of the package.

All weights lie in one flat float64 vector; a group is a list of positions in it; everything is a
loop over groups or over entries.
"""

import math
from typing import Callable, List, Optional, Sequence, Tuple

import torch
from torch import Tensor

Gradients = List[Optional[Tensor]]
GradientAt = Callable[[List[Tensor]], Gradients]

NOISE = 1e-12
"""Relative strength below which a float64 gradient is rounding noise."""


def groups_of(shapes: Sequence[Sequence[int]], granularity: str) -> List[List[int]]:
    """Returns the positions of the weights of each group."""
    groups, start = [], 0
    for shape in shapes:
        count = torch.Size(shape).numel()
        places = list(range(start, start + count))
        start += count
        if granularity == "layer":
            groups.append(places)
        elif granularity == "element" or len(shape) < 2:
            groups.extend([place] for place in places)
        else:  # filter: slices along the first dimension
            width = count // shape[0]
            groups.extend(places[row * width : (row + 1) * width] for row in range(shape[0]))
    if granularity == "model":
        return [list(range(start))]
    return groups


def length(values: Sequence[float]) -> float:
    return math.sqrt(sum(value * value for value in values))


def scale_of(
    name: str, granularity: Optional[str], shapes: Sequence[Sequence[int]], w: Tensor, g: Tensor
) -> List[float]:
    """Returns T of each weight."""
    w, g = w.tolist(), g.tolist()
    n = len(g)
    T = [0.0] * n
    for group in groups_of(shapes, granularity or "element"):
        n_i = len(group)
        w_i, g_i = length([w[i] for i in group]), length([g[i] for i in group])
        divides = name in ("weight-over-gradient", "gradient-strength", "inverse-gradient")
        if divides and g_i / math.sqrt(n_i) <= NOISE * length(g) / math.sqrt(n):
            continue
        if name == "none":
            value = 1.0
        elif name == "weight":
            value = w_i
        elif name == "weight-over-gradient":
            value = w_i / g_i
        elif name == "gradient-strength":
            value = math.sqrt(n_i) / (g_i * math.sqrt(n))
        elif name == "inverse-gradient":
            value = 1.0 / g_i
        elif name == "weight-strength":
            value = w_i / math.sqrt(n_i)
        else:
            raise KeyError(f"{name}: its formula is to stand here (CONTRIBUTING.md, Add a scale)")
        for i in group:
            T[i] = value
    return T


def constraint_norm(a: Sequence[float], T: Sequence[float], norm: str) -> float:
    """Returns ‖T⁻¹a‖_p over the weights that may move."""
    inside = [a_i / T_i for a_i, T_i in zip(a, T) if T_i > 0]
    return length(inside) if norm == "l2" else max([abs(x) for x in inside], default=0.0)


def ascent_step(g: Sequence[float], T: Sequence[float], norm: str, step_size: float) -> List[float]:
    """Returns u = argmax of uᵀg over ‖T⁻¹u‖_p = η (Eq. 15)."""
    if norm == "linf":
        return [step_size * T_i * ((g_i > 0) - (g_i < 0)) for g_i, T_i in zip(g, T)]
    Tg = length([T_i * g_i for g_i, T_i in zip(g, T)])
    return [step_size * T_i * T_i * g_i / Tg if Tg > 0 else 0.0 for g_i, T_i in zip(g, T)]


def project(v: Sequence[float], T: Sequence[float], norm: str, rho: float) -> List[float]:
    """Returns Π_S(v) (Eqs. 17, 18)."""
    if norm == "linf":
        return [T_i * min(max(v_i / T_i, -rho), rho) if T_i > 0 else 0.0 for v_i, T_i in zip(v, T)]
    size = constraint_norm(v, T, norm)
    return [v_i * min(size, rho) / size if size > 0 else 0.0 for v_i in v]


def flat(tensors: Sequence[Tensor]) -> Tensor:
    return torch.cat([tensor.detach().double().flatten() for tensor in tensors])


def unflat(vector: Sequence[float], shapes: Sequence[Sequence[int]]) -> List[Tensor]:
    sizes = [torch.Size(shape).numel() for shape in shapes]
    parts = torch.as_tensor(vector, dtype=torch.float64).split(sizes)
    return [part.reshape(shape) for part, shape in zip(parts, shapes)]


def sharpness_aware_gradient(
    gradient_at: GradientAt,
    weights: Sequence[Tensor],
    rho: float,
    norm: str,
    scale: str,
    granularity: Optional[str],
    risk: str,
    num_steps: int,
    divisor: float = 1.0,
) -> Tuple[Gradients, List[List[Tensor]]]:
    """Algorithm 1 for one batch.

    Args:
        gradient_at: gradient of the summed loss at given weights; None for weights without one.
        weights: w.
        rho: radius.
        norm: ``l2`` or ``linf``.
        scale: name of T.
        granularity: of its groups.
        risk: ``mean`` or ``perturbed``.
        num_steps: K.
        divisor: the scales see the gradient divided by this.

    Returns:
        The gradient of the risk, and a_1 .. a_K (zeros for weights without a gradient).
    """
    weights = [weight.detach().double() for weight in weights]
    gradients = [gradient_at(list(weights))]
    moving = [i for i, gradient in enumerate(gradients[0]) if gradient is not None]
    shapes = [weights[i].shape for i in moving]
    w = flat([weights[i] for i in moving])
    g = flat([gradients[0][i] for i in moving])
    T = scale_of(scale, granularity, shapes, w, g / divisor)
    a = [0.0] * len(w)
    perturbations = []
    for _ in range(num_steps):
        u = ascent_step(g.tolist(), T, norm, 1.5 * rho / num_steps)
        a = project([a_i + u_i for a_i, u_i in zip(a, u)], T, norm, rho)
        placed = [torch.zeros_like(weight) for weight in weights]
        for i, part in zip(moving, unflat(a, shapes)):
            placed[i] = part
        perturbations.append(placed)
        gradients.append(gradient_at([x + y for x, y in zip(weights, placed)]))
        g = flat([gradients[-1][i] for i in moving])
    if risk == "perturbed":
        return gradients[-1], perturbations
    mean: Gradients = []
    for parts in zip(*gradients):
        mean.append(None if parts[0] is None else sum(parts) / (num_steps + 1))
    return mean, perturbations
