"""The parameter shift: that a shift between distributions acts like one of the weights.

    δ = θ* − θ,   θ = argmin L(w; D),   θ* = argmin L(w; D*)               (GA-SAM §2.3)
    L(w; D*) ≈ L(w − δ; D) + constant,  constant = L(θ*; D*) − L(θ; D)     (Eq. 5, Theorem 1)
    ‖δ(η)‖₂ ≈ η ‖δ(1)‖₂   for   D* replaced by (1 − η) D + η D*            (Eq. 9, Proposition 2)

These are the analytic trials of GA-SAM §2.4 (Figures 1 and 2; Appendix C.1). As there, the minimum
for D* is reached from θ, and losses are compared on the line w = αθ + (1 − α)θ*. What the paper
leaves open, and what is done otherwise:

- The weights of a network that fits its training set have no minimum, and the theory wants a
  strongly convex basin (Proposition 1). So L contains a weight decay, the same for D and D*, and is
  minimised in float64 by L-BFGS on all examples at once until its gradient almost vanishes.
- The hidden layers have tanh, since the theory differentiates the loss twice.
- Trials follow the minimum from one η to the next larger one, where the line through the last two
  minima points. Within a basin that finds what starting at θ every time would, but much sooner.
- "Mixed" means weighted: L(w; D_mix) = (1 − η) L(w; D) + η L(w; D*), which is Proposition 2's p_mix
  exactly. Examples may be drawn instead:
  :func:`~fairseq_sam.analysis.digit_network.drawn_mixture` says what that does to δ.

Equation 5 holds near the minimum: a correlation of curves depends on how far they reach. And where
the basin bends or ends on the way, ‖δ(η)‖₂ has kinks. Small data sets, which a network can fit
closely, and a small weight decay make both worse: they enlarge the shift.

Losses are means over examples, in nats. Imports nothing of fairseq.

Example:
    >>> import torch
    >>> w = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    >>> def bowl(x):
    ...     return lambda: ((w - x) ** 2).sum()
    >>> trials = ShiftTrials([w], weighted_mixture(bowl(1.0), bowl(4.0)))
    >>> [round(length, 6) for _, length in trials.lengths([0.5, 1.0])]
    [2.12132, 4.242641]
"""

from __future__ import annotations

import math
from typing import Callable, Iterator, List, NamedTuple, Sequence, Tuple

import numpy as np
import torch
from torch import Tensor

Loss = Callable[[], Tensor]
"""Evaluates a loss at the present weights: a scalar with a graph."""
Mixture = Callable[[float], Loss]
"""Returns the loss on (1 − η) D + η D* for a share η of D*; η = 0 is D, η = 1 is D*."""

ALPHAS = [i / 20 for i in range(-20, 41)]
"""Where the losses are compared: the line from θ* to θ, and as much again beyond either."""


class Curves(NamedTuple):
    """Losses along w = αθ + (1 − α)θ*, in nats (Figure 1).

    Attributes:
        alphas: α; 1 is the minimum of the training loss, 0 that of the test loss.
        train: L(w; D).
        test: L(w; D*).
        shifted: L(w − δ; D) + constant, which the theory expects to be ``test``.
    """

    alphas: List[float]
    train: List[float]
    test: List[float]
    shifted: List[float]


class LinearFit(NamedTuple):
    """Least squares: y ≈ slope · x + intercept, which explains ``r_squared`` of y's variance."""

    slope: float
    intercept: float
    r_squared: float


class ShiftSummary(NamedTuple):
    """What the trials show.

    Attributes:
        shares: η of each trial.
        lengths: ‖δ(η)‖₂ of each.
        curves: the losses along the line.
        fit: of the lengths against the shares.
        correlation: of ``curves.shifted`` with ``curves.test``.
        unshifted_correlation: of ``curves.train`` with it, for comparison.
        largest_gradient: as in :class:`ShiftTrials`.
    """

    shares: List[float]
    lengths: List[float]
    curves: Curves
    fit: LinearFit
    correlation: float
    unshifted_correlation: float
    largest_gradient: float


class ShiftTrials:
    """Finds θ, then θ* for mixtures of training and test data.

    Args:
        weights: the leaves that are minimised over, float64 for minima worth the name. They are
            where training starts, and are changed in place.
        mixture: the losses.
        max_steps: L-BFGS steps for θ; each later minimum, which is near, may take a tenth.
        tolerance: a minimum is where no entry of the gradient is larger.

    Raises:
        FloatingPointError: here or in :meth:`lengths`, a loss on the way is not finite.
    """

    def __init__(
        self,
        weights: Sequence[Tensor],
        mixture: Mixture,
        max_steps: int = 2000,
        tolerance: float = 1e-6,
    ) -> None:
        self._weights = list(weights)
        self._mixture = mixture
        self._max_steps = max_steps
        self._tolerance = tolerance
        self.largest_gradient = 0.0
        """Largest gradient entry at any minimum yet; above the tolerance where steps ran out."""
        self._minimise(mixture(0.0), max_steps)
        self.theta = self._flat()
        """θ, all weights in one vector."""

    def lengths(self, shares: Sequence[float]) -> Iterator[Tuple[float, float]]:
        """Yields η and ‖δ(η)‖₂ for ascending shares η; afterwards the weights are the last θ*."""
        before, before_share, here, here_share = self.theta, 0.0, self.theta, 0.0
        for share in shares:
            ahead = (share - here_share) / ((here_share - before_share) or 1.0)
            self._put(here + ahead * (here - before))
            self._minimise(self._mixture(share), math.ceil(self._max_steps / 10))
            before, before_share, here, here_share = here, here_share, self._flat(), share
            yield share, float(self.delta().norm())

    def delta(self) -> Tensor:
        """Returns δ = w − θ for the weights w as they are now."""
        return self._flat() - self.theta

    def curves(self, delta: Tensor, alphas: Sequence[float]) -> Curves:
        """Evaluates the losses of Figure 1; the weights stay as they were.

        Args:
            delta: δ = θ* − θ for D* itself.
            alphas: where on the line.
        """
        before = self._flat()
        train, test = self._mixture(0.0), self._mixture(1.0)
        constant = self._at(self.theta + delta, test) - self._at(self.theta, train)
        points = [self.theta + (1 - alpha) * delta for alpha in alphas]
        curves = Curves(
            alphas=list(alphas),
            train=[self._at(w, train) for w in points],
            test=[self._at(w, test) for w in points],
            shifted=[self._at(w - delta, train) + constant for w in points],
        )
        self._put(before)
        return curves

    def summarise(self, found: Sequence[Tuple[float, float]]) -> ShiftSummary:
        """Returns figures for what :meth:`lengths` yielded, the last being for η = 1.

        Raises:
            ValueError: the weights did not move, or there are fewer than three trials.
        """
        shares, lengths = map(list, zip(*found))
        fit = linear_fit(shares, lengths)
        curves = self.curves(self.delta(), ALPHAS)
        return ShiftSummary(
            shares,
            lengths,
            curves,
            fit,
            correlation(curves.shifted, curves.test),
            correlation(curves.train, curves.test),
            self.largest_gradient,
        )

    def _minimise(self, loss: Loss, max_steps: int) -> None:
        optimizer = torch.optim.LBFGS(
            self._weights,
            max_iter=max_steps,
            history_size=20,
            tolerance_grad=self._tolerance,
            tolerance_change=0.0,
            line_search_fn="strong_wolfe",
        )

        def evaluate() -> Tensor:
            optimizer.zero_grad()
            value = loss()
            if not bool(torch.isfinite(value.detach())):
                raise FloatingPointError("the loss is not finite")
            value.backward()
            return value

        optimizer.step(evaluate)
        evaluate()
        left = max(float(w.grad.abs().max()) for w in self._weights if w.grad is not None)
        self.largest_gradient = max(self.largest_gradient, left)
        optimizer.zero_grad()

    def _flat(self) -> Tensor:
        return torch.cat([w.detach().flatten() for w in self._weights])

    @torch.no_grad()
    def _put(self, vector: Tensor) -> None:
        parts = vector.split([w.numel() for w in self._weights])
        for weight, part in zip(self._weights, parts):
            weight.copy_(part.view_as(weight))

    @torch.no_grad()
    def _at(self, vector: Tensor, loss: Loss) -> float:
        self._put(vector)
        return float(loss())


def weighted_mixture(train: Loss, test: Loss) -> Mixture:
    """Returns η ↦ (1 − η) L(w; D) + η L(w; D*), the loss under p_mix of Proposition 2."""

    def mixture(share: float) -> Loss:
        if share in (0.0, 1.0):
            return test if share else train
        return lambda: (1 - share) * train() + share * test()

    return mixture


def linear_fit(x: Sequence[float], y: Sequence[float]) -> LinearFit:
    """Fits a line by least squares.

    Raises:
        ValueError: fewer than three points, or all x or all y the same.

    >>> linear_fit([0, 1, 2], [1.0, 3.0, 5.0])
    LinearFit(slope=2.0, intercept=1.0, r_squared=1.0)
    """
    if len(x) < 3 or len(set(x)) == 1 or len(set(y)) == 1:
        raise ValueError("a line needs three points or more that are not all alike")
    dx, dy = np.asarray(x, float) - np.mean(x), np.asarray(y, float) - np.mean(y)
    slope = float(dx @ dy / (dx @ dx))
    residual = dy - slope * dx
    r_squared = 1 - float(residual @ residual) / float(dy @ dy)
    return LinearFit(slope, float(np.mean(y)) - slope * float(np.mean(x)), r_squared)


def correlation(x: Sequence[float], y: Sequence[float]) -> float:
    """Returns Pearson's correlation coefficient."""
    return float(np.corrcoef(x, y)[0, 1])
