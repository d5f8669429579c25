"""The gradients of a step's passes: for the ascent, for the risk, with sentence weights or not."""

from __future__ import annotations

from typing import TYPE_CHECKING, Callable, List, Optional, Union

import torch
from torch import Tensor

from fairseq_sam.perturbation import foreach
from fairseq_sam.perturbation.ascent import Radius
from fairseq_sam.perturbation.foreach import Gradients
from fairseq_sam.perturbation.outputs import Outputs
from fairseq_sam.perturbation.passes import ForwardPass
from fairseq_sam.perturbation.replay import autocast_off
from fairseq_sam.perturbation.sentence_weights import SentenceProbes

if TYPE_CHECKING:
    from fairseq_sam.perturbation.risk import SharpnessAwareLoss


class StepGradients:
    """What the backward passes of one step add up to.

    Args:
        loss: what the step belongs to.
        backward: ``loss.backward()`` as the training loop does it, with its loss scaling.
        scale_loss: that loss scaling alone.
        sentences: the sentences' losses and weights.
        outputs: of the functional risk.
        reach: multiplies the radius.
    """

    def __init__(
        self,
        loss: SharpnessAwareLoss,
        backward: Callable[[Tensor], None],
        scale_loss: Callable[[Tensor], Tensor],
        sentences: SentenceProbes,
        outputs: Optional[Outputs],
        reach: float,
    ) -> None:
        self._loss, self._settings = loss, loss.settings
        self._backward, self._scale_loss = backward, scale_loss
        self._sentences, self._outputs = sentences, outputs
        self._reach = reach
        self._is_first = True
        self._part = 1.0 / (self._settings.num_steps + 1) if self._settings.risk == "mean" else 1.0
        self._ascended: Optional[Tensor] = None
        self._deferred: List[Tensor] = []
        self._unweighted: Gradients = []
        self._risk: Gradients = []

    def backward_of_ascent(self, loss: Tensor, weighs: bool) -> None:
        """Runs backward for the ascent's gradient.

        Without sentence weights it is that of the loss, too. With them the loss's, which the mean
        and the functional risk and the share look at, takes a backward pass of its own.
        """
        loss = loss * self._part if self._part != 1.0 else loss
        if self._settings.share is not None and self._is_first:
            seen = foreach.at_least_float32(loss.detach())
            self._ascended = seen if self._ascended is None else self._ascended + seen
            if weighs:
                self._deferred.append(loss)
                return
        if weighs:
            self._note_unweighted([loss])
            self._sentences.apply_weights(self._settings.rho * self._reach)
        self._backward(loss)

    def end_pass(
        self, output: ForwardPass, compute_dtype: Optional[torch.dtype]
    ) -> Optional[Radius]:
        """Runs what backward passes had to wait for the end of the pass; returns ρ if it is known.

        With sentence weights and a share, ρ follows from the gradient without the weights, for
        which all mini-batches of the pass and its sample size are needed; the weights follow from
        ρ, and the ascent's gradient from them.
        """
        if not self._deferred:
            return None
        self._note_unweighted(self._deferred)
        rise = self.rise()
        assert rise is not None  # what is deferred was looked at
        radius = self._loss.weights.radius_of_rise(
            [self._unweighted[i] for i in self._loss.chosen],
            rise,
            self._settings.rho * self._reach,
            self.divisor(output),
            compute_dtype,
        )
        self._sentences.apply_weights(radius)
        for loss in self._deferred:
            self._backward(loss)
        self._deferred = []
        return radius

    def take(self) -> tuple[Gradients, Gradients]:
        """Takes the ascent's gradients of a pass, and those of its loss (often the same)."""
        gradients = foreach.take_gradients(self._loss.trained)
        of_loss, self._unweighted = self._unweighted or gradients, []
        self._is_first = False
        if self._settings.risk == "mean":
            foreach.add_gradients_(self._risk, of_loss)
        return gradients, of_loss

    def _note_unweighted(self, losses: List[Tensor]) -> None:
        """Runs backward without sentence weights, for all that is to follow the loss itself."""
        of_outputs = self._outputs is not None and self._is_first
        if not (of_outputs or self._deferred or self._settings.risk == "mean"):
            return
        trained = self._loss.trained
        before = foreach.take_gradients(trained)
        self._sentences.drop_weights()
        for loss in losses:
            if loss.requires_grad:
                with autocast_off(loss.device):
                    torch.autograd.backward(self._scale_loss(loss), retain_graph=True)
        foreach.add_gradients_(self._unweighted, foreach.take_gradients(trained))
        foreach.put_gradients(trained, before)
        if self._outputs is not None:
            self._outputs.captures = False

    def backward_of_training(self, loss: Tensor) -> None:
        """Runs backward for the gradient that is trained on.

        The inner passes' part joins just before: what is in ``p.grad`` by then is reduced across
        workers with the rest, like that of the micro-batches before.
        """
        self.add_risk()
        if self._settings.risk == "mean":
            # Where an inner pass overflowed, the loss alone: it was computed at w.
            finite = self._loss.weights.finite.to(loss.device)
            one = torch.ones_like(loss.detach())
            loss = loss * torch.where(finite, one * self._part, one)
        self._backward(loss)

    @torch.no_grad()
    def add_risk(self) -> None:
        """Adds the inner passes' part of the mean risk to ``p.grad``, once."""
        gradients, self._risk = self._risk, []
        present = [gradient for gradient in gradients if gradient is not None]
        if not present:
            return
        finite = self._loss.weights.finite
        foreach.discard_non_finite_(present, finite)
        torch._foreach_mul_(present, [finite.to(gradient) for gradient in present])
        own = foreach.take_gradients(self._loss.trained)
        foreach.add_gradients_(own, gradients)
        foreach.put_gradients(self._loss.trained, own)

    def backward_of_outputs(self, product: Tensor) -> Tensor:
        """Runs backward from ⟨u, F⟩; returns it without what its u was multiplied by."""
        unscaled = product / self.scale_of(product)
        self._backward(unscaled)
        return unscaled.detach()

    def rise(self) -> Optional[Tensor]:
        """Returns how far the loss is to rise to first order, multiplied as the gradients are.

        None without a share, and where there was no loss at all, hence no gradient.
        """
        if self._ascended is None or self._settings.share is None:
            return None
        return self._scale_loss(self._ascended).abs() * (self._settings.share * self._reach)

    def scale_of(self, loss: Union[Tensor, float]) -> Tensor:
        """Returns what the gradients of a loss are multiplied by."""
        like = loss if isinstance(loss, Tensor) else self._loss.trained[0]
        one = foreach.at_least_float32(torch.ones((), dtype=like.dtype, device=like.device))
        return self._scale_loss(one) * self._part

    def divisor(self, output: ForwardPass) -> Tensor:
        """Returns what gradients are to be divided by to become those that the scales see."""
        is_mean = self._settings.loss_reduction == "mean"
        return self.unit(output) if is_mean else self.scale_of(output.loss)

    def unit(self, output: ForwardPass) -> Tensor:
        """Returns what the gradients of the mean loss are multiplied by."""
        size = output.sample_size
        # A batch without targets has sample size 0 and no gradient either.
        return self.scale_of(output.loss) * (
            size.clamp(min=1) if isinstance(size, Tensor) else max(size, 1)
        )
