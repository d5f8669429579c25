"""The adversarial risk: how much worse each sentence gets by moving the weights for it alone.

    L_adv(w) = mean over j of  max over ‖a_j‖ ≤ ρ of  l_j(w + a_j)         (δ-SAM Eq. 2 and Table 4)

Unlike the sharpness of a batch, every sentence j has a perturbation a_j of its own. The maximum is
approximated from below, by K steps of projected gradient ascent; K = 1 under L2 is the first-order
solution a_j = ρ ∇l_j / ‖∇l_j‖₂. Of the K points visited the one with the largest loss counts.

Imports nothing of fairseq: a criterion is anything with ``losses_only(model, sample)``.

Example:
    >>> import torch
    >>> w = torch.tensor([3.0, 4.0], dtype=torch.float64, requires_grad=True)
    >>> AdversarialRisk([w], rho=0.5)(lambda: 0.5 * (w * w).sum())
    SentenceRisk(clean=12.5, adversarial=15.125, length=0.5)
"""

import math
from typing import Any, Callable, Dict, Iterable, Iterator, List, NamedTuple, Optional, Sequence

import torch
from torch import Tensor, nn

from fairseq_sam.analysis.dataset_loss import evaluation_mode
from fairseq_sam.perturbation import PerturbationSettings, PerturbedWeights
from fairseq_sam.perturbation.foreach import put_gradients, take_gradients
from fairseq_sam.training.samples import split_sentences


class SentenceRisk(NamedTuple):
    """Loss of one sentence, in nats summed over its tokens (one label in classification).

    Attributes:
        clean: l_j(w).
        adversarial: the largest l_j(w + a_k), k = 1..K. (A step may overshoot on a loss that bends
            downwards, so it can be less than ``clean``.)
        length: ‖a_K‖₂; 0 where the loss has no gradient.
    """

    clean: float
    adversarial: float
    length: float


class Estimate(NamedTuple):
    """A mean over sentences, or draws, and its standard error (None for fewer than two)."""

    mean: float
    standard_error: Optional[float]


class RiskSummary(NamedTuple):
    """Means over sentences, in nats per sentence.

    Attributes:
        clean: of l_j(w).
        adversarial: of max l_j(w + a_j), which is L_adv.
        difference: of max l_j(w + a_j) − l_j(w); its error is that of paired values.
        num_sentences: how many.
    """

    clean: Estimate
    adversarial: Estimate
    difference: Estimate
    num_sentences: int


class AdversarialRisk:
    """Maximises losses, one after the other, over a ball around the weights.

    Args:
        weights: what is perturbed; norms run over all of them together.
        rho: radius ρ of the ball.
        num_steps: K. Steps are 1.5 ρ / K long and followed by a projection (GA-SAM §3.3).
        norm: ``l2`` or ``linf``.

    Raises:
        ValueError: for a radius that is not a positive number, or another impossible setting.
    """

    def __init__(
        self, weights: Sequence[Tensor], rho: float = 0.05, num_steps: int = 1, norm: str = "l2"
    ) -> None:
        if not (math.isfinite(rho) and rho > 0):
            raise ValueError(f"rho is {rho}: it must be a finite number above 0")
        self._weights = list(weights)
        settings = PerturbationSettings(rho=rho, num_steps=num_steps, norm=norm)
        self._perturbed = PerturbedWeights(self._weights, settings)

    def __call__(self, loss: Callable[[], Tensor]) -> SentenceRisk:
        """Evaluates K + 1 forward and K backward passes; weights and gradients stay as they were.

        Args:
            loss: runs the model on one sentence and returns l_j, a scalar with a graph.

        Raises:
            FloatingPointError: a loss or gradient on the way is not finite.
        """
        earlier = take_gradients(self._weights)
        try:
            return self._ascend(loss)
        finally:
            self._perturbed.restore()
            put_gradients(self._weights, earlier)

    def _ascend(self, loss: Callable[[], Tensor]) -> SentenceRisk:
        losses: List[Tensor] = []
        moves = False
        for _ in range(self._perturbed.settings.num_steps):
            with torch.enable_grad():
                value = loss()
            losses.append(value.detach())
            if value.requires_grad:
                value.backward()
            gradients = take_gradients(self._weights)
            moves = moves or any(gradient is not None for gradient in gradients)
            self._perturbed.ascend(gradients)
        with torch.no_grad():
            losses.append(loss())
        clean, *visited = torch.stack(losses).tolist()
        finite = bool(self._perturbed.finite) or not moves
        if not (finite and all(map(math.isfinite, (clean, *visited)))):
            raise FloatingPointError("a loss or its gradient is not finite")
        return SentenceRisk(clean, max(visited), float(self._perturbed.norm) if moves else 0.0)


def sentence_risks(
    model: nn.Module,
    criterion: Any,
    samples: Iterable[Dict[str, Any]],
    padding_idx: int,
    rho: float = 0.05,
    num_steps: int = 1,
    norm: str = "l2",
) -> Iterator[SentenceRisk]:
    """Measures sentence by sentence, without dropout; a sentence's batch does not matter.

    All weights that are trained take part, those of the criterion too, as in training.

    Args:
        model: a fairseq model; while this runs it is in evaluation mode.
        criterion: a module with ``losses_only(model, sample) -> losses [batch]`` in nats, such as
            :class:`~fairseq_sam.criterions.PerSentenceCriterion`.
        samples: fairseq's mini-batches of any size.
        padding_idx: the index that pads them.
        rho: as in :class:`AdversarialRisk`.
        num_steps: as there.
        norm: as there.

    Raises:
        ValueError: as :class:`AdversarialRisk`.
        FloatingPointError: as its call.
    """
    modules = (model, criterion)
    weights = [w for module in modules for w in module.parameters() if w.requires_grad]
    risk = AdversarialRisk(weights, rho, num_steps, norm)
    with evaluation_mode(*modules):
        for sample in samples:
            for part in _sentences(sample, padding_idx):
                yield risk(lambda part=part: criterion.losses_only(model, part).sum())  # type: ignore[misc]


def _sentences(sample: Dict[str, Any], padding_idx: int) -> List[Dict[str, Any]]:
    """Takes a mini-batch apart, unless it is one sentence (of speech, say) already."""
    return [sample] if sample.get("nsentences") == 1 else split_sentences(sample, padding_idx)


def summarise(risks: Sequence[SentenceRisk]) -> RiskSummary:
    """Returns means and standard errors.

    Raises:
        ValueError: there are no sentences.

    >>> summarise([SentenceRisk(1.0, 2.0, 0.1), SentenceRisk(3.0, 6.0, 0.1)]).difference
    Estimate(mean=2.0, standard_error=1.0)
    """
    if not risks:
        raise ValueError("there are no sentences")
    return RiskSummary(
        clean=estimate([risk.clean for risk in risks]),
        adversarial=estimate([risk.adversarial for risk in risks]),
        difference=estimate([risk.adversarial - risk.clean for risk in risks]),
        num_sentences=len(risks),
    )


def estimate(values: Sequence[float]) -> Estimate:
    """Returns the mean of independent values and its standard error.

    >>> estimate([1.0, 3.0])
    Estimate(mean=2.0, standard_error=1.0)
    """
    found = torch.tensor(values, dtype=torch.float64)
    error = float(found.std()) / math.sqrt(len(values)) if len(values) > 1 else None
    return Estimate(float(found.mean()), error)
