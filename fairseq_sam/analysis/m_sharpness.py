"""m-sharpness: how much the loss of m sentences grows within reach (Foret et al. 2021, §4.1).

    s_m(ρ) = mean over B of  max over ‖a_B‖₂ ≤ ρ of  L_B(w + a_B) − L_B(w)

with mini-batches B of m sentences, whose mean loss is L_B. Each mini-batch has a perturbation of
its own, as in training; with m = 1 this is the adversarial risk's difference (per unit of the loss
instead of per sentence), with m = all sentences the sharpness of the data set's loss. The maximum
is approximated by one ascent step, a_B = ρ ∇L_B / ‖∇L_B‖₂, as SAM does.

Imports nothing of fairseq.
"""

from typing import Any, Dict, Iterator

from torch import Tensor

from fairseq_sam.analysis.adversarial_risk import AdversarialRisk
from fairseq_sam.analysis.dataset_loss import DatasetLoss


def batch_sharpness(loss: DatasetLoss, rho: float) -> Iterator[float]:
    """Yields L_B(w + a_B) − L_B(w) of each mini-batch; weights and gradients stay as they were.

    Args:
        loss: its mini-batches are the B, all of m sentences.
        rho: the radius ρ.

    Raises:
        ValueError: the radius is not a positive number.
        FloatingPointError: a loss or gradient is not finite.
    """
    risk = AdversarialRisk(loss.weights, rho)
    for sample in loss.samples:
        with loss.evaluating():
            found = risk(lambda sample=sample: _mean_loss(loss, sample))  # type: ignore[misc]
        yield found.adversarial - found.clean


def _mean_loss(loss: DatasetLoss, sample: Dict[str, Any]) -> Tensor:
    total, sample_size, _ = loss.criterion(loss.model, sample)
    mean: Tensor = total / sample_size
    return mean
