"""The passes of a training step that is run several times, as those see them who run it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Callable, NamedTuple, Optional, Union

from torch import Tensor

from fairseq_sam import FairseqSamError

if TYPE_CHECKING:
    from fairseq_sam.perturbation.step import RepeatedStep


class ForwardPass(NamedTuple):
    """What one pass gives.

    Attributes:
        loss: scalar with a graph, summed as the training loop wants it.
        sample_size: what the loss is divided by for its mean (``loss_reduction="mean"``).
        extra: anything else; handed through.
        losses: the loss of each sentence [batch], whose sum ``loss`` is; only δ-SAM asks for it.
    """

    loss: Union[Tensor, float]
    sample_size: Union[int, float, Tensor] = 1
    extra: Any = None
    losses: Optional[Tensor] = None


class Outcome(NamedTuple):
    """What one sharpness-aware step gives.

    Attributes:
        clean: the pass at w; None where there was none, or one on a part of the batch only.
        perturbed: the pass at w + a_K.
        norm: ‖a_K‖₂, a scalar tensor.
        rho: ρ of the step, a scalar tensor.
        realised: ⟨r, a⟩/⟨a, a⟩ over the half-precision weights, r being what the last ascent step
            changed in them and a what it asked for; None where all weights have full precision.
        finite: boolean scalar tensor; false where an inner pass overflowed and the batch was
            therefore trained on without perturbation.
        uniform: boolean scalar tensor; true where δ-SAM's sentence weights told nothing (all
            zero, or not finite) and uniform ones took their place; None without δ-SAM.
        cosine: of a momentum direction with the gradient that is trained on; None without.
    """

    clean: Optional[ForwardPass]
    perturbed: ForwardPass
    norm: Tensor
    rho: Tensor
    realised: Optional[Tensor]
    finite: Tensor
    uniform: Optional[Tensor] = None
    cosine: Optional[Tensor] = None

    @property
    def logged(self) -> ForwardPass:
        """The pass on the whole batch that was nearest to w."""
        return self.perturbed if self.clean is None else self.clean


class BackwardPassedBy(FairseqSamError, RuntimeError):
    """A pass left gradients without having called :meth:`Pass.backward`."""


class Pass:
    """One pass of a step, for whoever runs it.

    Attributes:
        ascends: whether it only serves to find the perturbation.
        probes: whether it is only looked at, without gradients, and for the losses alone.
        weighs: whether the loss is to be :meth:`weigh` of the sentences' losses.
        follows: whether it is trained on the model's outputs, and its loss is not looked at.
        is_part: whether it sees a part of the batch only (``ascent_fraction``).
    """

    def __init__(
        self,
        step: RepeatedStep,
        ascends: bool,
        probes: bool = False,
        weighs: bool = False,
        follows: bool = False,
        is_part: bool = False,
    ) -> None:
        self.ascends, self.probes, self.weighs, self.follows = ascends, probes, weighs, follows
        self.is_part = is_part
        self._step = step
        self.num_backward = 0

    def backward(self, loss: Tensor) -> None:
        """Stands in for ``loss.backward()``; as often a pass as there are losses."""
        self.num_backward += 1
        if self.probes:
            return
        if self.ascends:
            self._step.gradients.backward_of_ascent(loss, self.weighs)
        elif not self.follows:
            self._step.gradients.backward_of_training(loss)

    def weigh(self, losses: Tensor) -> Tensor:
        """Returns the sum of the losses [batch] of a mini-batch, to go :meth:`backward` from."""
        return self._step.sentences.weigh(losses, self.probes)

    def at_w(self, function: Callable[[], Any]) -> Any:
        """Calls a function with the weights at w, wherever this pass has them."""
        return self._step.call_at_w(function)

    def once(self, function: Callable[[], Any]) -> None:
        """Calls a function at w, whose effect all later passes of the step start from.

        For what a training step does that must happen once, and not again in its repetitions.
        """
        self._step.call_at_w(lambda: self._step.replay.once(function))
