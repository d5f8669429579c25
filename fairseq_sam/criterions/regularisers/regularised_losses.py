"""FreeLB, R-Drop, R3F and SMART: from forward passes to the loss of each sentence.

Written against :class:`Passes`, which knows how to run the model and how far two of its outputs lie
apart, so that the same lines serve translation, classification and regression. What they return is
one loss a sentence, attached to the graph, so that any weighting of sentences (δ-SAM) and any
perturbation of the weights can sit on top.
"""

import contextlib
from typing import Any, Callable, Dict, Optional, Tuple

import torch
from torch import Tensor

from fairseq_sam.criterions.recording import RecordedModel
from fairseq_sam.criterions.regularisers.embedding_ascent import Moving, l2_step, linf_step
from fairseq_sam.criterions.regularisers.embeddings import Perturbation, perturbed_embeddings
from fairseq_sam.perturbation.replay import RandomState


class Passes:
    """Forward passes of one mini-batch.

    Args:
        model: the model.
        run: runs one pass of a recorded model and returns the losses ``[batch]``.
        divergence: how far two recorded models' outputs lie apart: ``[batch]``, in nats (or squared
            units in regression), summed over tokens; symmetric KL.
        at_average: runs a pass, without dropout and without a graph, at the moving average of the
            weights.
    """

    def __init__(
        self,
        model: Any,
        run: Callable[[RecordedModel], Tensor],
        divergence: Callable[[RecordedModel, RecordedModel], Tensor],
        at_average: Callable[[], RecordedModel],
    ) -> None:
        self.model = model
        self._run = run
        self.divergence = divergence
        self.at_average = at_average

    def __call__(self, perturbation: Optional[Perturbation] = None) -> Tuple[Tensor, RecordedModel]:
        """Runs a pass, with perturbed embeddings or as it is; returns losses and output."""
        recorded = RecordedModel(self.model)
        perturbed = (
            contextlib.nullcontext()
            if perturbation is None
            else perturbed_embeddings(self.model, perturbation)
        )
        with perturbed:
            return self._run(recorded), recorded

    def random_state(self) -> RandomState:
        """Returns the generators' state, for a later pass to have the same dropout masks."""
        return RandomState(self.model.parameters())


def r_drop(passes: Passes, cfg: Any) -> Tuple[Tensor, Tensor]:
    """R-Drop (Liang et al. 2021, Eqs. 1-3): two passes with dropout masks of their own.

    ½ (l(1) + l(2) + α (KL(p‖q) + KL(q‖p)) / 2), which is half the paper's loss: so α is the
    paper's and α = 0 is plain training.

    Args:
        passes: of one mini-batch.
        cfg: with the fields of :class:`~.regulariser_flags.RDropConfig`.

    Returns:
        The loss of each sentence ``[batch]``, and the penalty in it, without a graph.
    """
    losses, first = passes()
    more, second = passes()
    penalty = 0.25 * cfg.r_drop_alpha * passes.divergence(first, second)
    return 0.5 * (losses + more) + penalty, penalty.detach()


def r3f(passes: Passes, cfg: Any) -> Tuple[Tensor, Tensor]:
    """R3F (Aghajanyan et al. 2020, Eq. 8): a second pass with noise on the embeddings.

    l(x) + λ (KL(p‖q) + KL(q‖p)), z ~ U(−σ, σ) or N(0, σ²). Each pass has a dropout mask of its own.
    Unlike in fairseq's own for sentence prediction, the second pass's gradient reaches the
    embeddings; and where that weighs D by tokens a sentence (for sequences), λ is as in the paper.

    Args:
        passes: of one mini-batch.
        cfg: with the fields of :class:`~.regulariser_flags.R3FConfig`.

    Returns:
        As :func:`r_drop`.
    """

    def noise(embeddings: Tensor, mask: Tensor) -> Tensor:
        if str(cfg.r3f_noise) == "normal":
            return torch.randn_like(embeddings) * cfg.r3f_radius
        return (torch.rand_like(embeddings) * 2 - 1) * cfg.r3f_radius

    losses, clean = passes()
    _, noisy = passes(noise)
    penalty = cfg.r3f_lambda * passes.divergence(clean, noisy)
    return losses + penalty, penalty.detach()


def smart(passes: Passes, cfg: Any) -> Tuple[Tensor, Tensor]:
    """SMART (Jiang et al. 2020): two regularisers, of the embeddings and of the weights.

    Smoothness-inducing adversarial regularisation (§3.1): l(x) + λ_s max over ‖z‖∞ ≤ ε of
    (KL(p‖q) + KL(q‖p)); z starts at N(0, σ²) and climbs the divergence by steps of η g / ‖g‖∞, the
    norm being each sentence's (the paper: the batch's). Each pass has a dropout mask of its own, as
    in R3F.

    With μ > 0 the momentum Bregman proximal point method (§3.2) as well: + μ (KL(p‖r) + KL(r‖p)),
    r being the output, without dropout, at the moving average of the weights so far.

    Args:
        passes: of one mini-batch.
        cfg: with the fields of :class:`~.regulariser_flags.SmartConfig`.

    Returns:
        As :func:`r_drop`.
    """
    losses, clean = passes()
    moving = Moving(
        lambda embeddings, mask: torch.randn_like(embeddings) * cfg.smart_init,
        linf_step(cfg.smart_step_size, cfg.smart_radius),
    )
    for _ in range(cfg.smart_steps):
        _, output = passes(moving)
        moving.ascend(passes.divergence(clean, output).sum())
    _, output = passes(moving)
    penalty = cfg.smart_lambda * passes.divergence(clean, output)
    if cfg.smart_mu > 0:
        penalty = penalty + cfg.smart_mu * passes.divergence(clean, passes.at_average())
    return losses + penalty, penalty.detach()


def free_lb(passes: Passes, cfg: Any) -> Tuple[Tensor, Tensor]:
    """FreeLB (Zhu et al. 2020, Algorithm 1): the mean loss over an ascent in the embeddings.

    mean over t = 0..K of l(x + z_t), z_0 ~ U(−ε, ε) / √n with n the sentence's number of entries,
    z_t = Π(z_{t−1} + α g / ‖g‖), norms being each sentence's; the same dropout masks throughout
    (their §3.3). L∞, with the same z_0, is GA-SAM's variant (its Appendix C.4). Algorithm 1 counts
    passes, its K is ours plus one. All K + 1 graphs live until the backward pass: memory for
    activations grows with K.

    Args:
        passes: of one mini-batch.
        cfg: with the fields of :class:`~.regulariser_flags.FreeLBConfig`.

    Returns:
        The loss of each sentence ``[batch]``, and how much it is above the first pass's.
    """
    steps, radius = cfg.free_lb_steps, cfg.free_lb_radius
    size = 1.5 * radius / steps if cfg.free_lb_step_size is None else cfg.free_lb_step_size
    step = l2_step if str(cfg.free_lb_norm) == "l2" else linf_step

    # From a generator of its own, since the other passes draw masks only, and the same ones.
    seed = int(torch.randint(2**62, ()))

    def start(embeddings: Tensor, mask: Tensor) -> Tensor:
        generator = torch.Generator(embeddings.device).manual_seed(seed)
        uniform = torch.rand(embeddings.shape, generator=generator, device=embeddings.device)
        entries = mask.flatten(1).sum(1).clamp(min=1) * embeddings.size(-1)
        return (uniform * 2 - 1) * (radius / entries.to(uniform).sqrt())[:, None, None]

    moving = Moving(start, step(size, radius))
    state = passes.random_state()
    first, _ = passes(moving)
    losses = total = first
    for _ in range(steps):
        moving.ascend(losses.sum())
        state.restore()
        losses, _ = passes(moving)
        total = total + losses
    mean = total / (steps + 1)
    return mean, (mean - first).detach()


METHODS: Dict[str, Callable[[Passes, Any], Tuple[Tensor, Tensor]]] = {
    "free_lb": free_lb,
    "r3f": r3f,
    "r_drop": r_drop,
    "smart": smart,
}
"""By the prefix of the criterion's registered name."""

ASCENDING = ("free_lb", "smart")
"""Those that need gradients even for a loss that is only looked at."""

REDRAWING = ("r3f", "r_drop", "smart")
"""Those of which each pass draws dropout masks of its own, and the layers that LayerDrop drops."""
