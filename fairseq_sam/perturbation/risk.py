"""The sharpness-aware gradient of a loss, computed around an ordinary ``loss.backward()``.

:class:`SharpnessAwareLoss` runs the K inner passes, leaves the weights at w + a_K, and returns a
loss tensor for the last pass. Whoever then calls ``backward()`` on it gets the gradient of the
sharpness-aware risk in ``p.grad``, added to what was there; when that backward ends the weights
are back at w. Loss scaling, gradient accumulation and data-parallel reduction therefore need to
know nothing of it.

Example:
    >>> import torch
    >>> from fairseq_sam.perturbation import ForwardPass, SharpnessAwareLoss, method_settings
    >>> w = torch.nn.Parameter(torch.tensor([3.0, 4.0], dtype=torch.float64))
    >>> sharpness_aware = SharpnessAwareLoss([w], method_settings("sam", rho=0.5))
    >>> outcome = sharpness_aware(lambda: ForwardPass(0.5 * (w * w).sum()))
    >>> outcome.loss.backward()
    >>> w.grad  # of L at w + 0.5 w / ‖w‖
    tensor([3.3000, 4.4000], dtype=torch.float64)
    >>> w.detach()
    tensor([3., 4.], dtype=torch.float64)
"""

import contextlib
from typing import Any, Callable, ContextManager, NamedTuple, Optional, Sequence, Union

import torch
from torch import Tensor, nn
from torch.autograd import Variable

from fairseq_sam.perturbation.autocast import autocast_dtype, autocast_off
from fairseq_sam.perturbation.gradients import (
    Gradients,
    add_gradients_,
    carry_gradients,
    put_gradients,
    take_gradients,
)
from fairseq_sam.perturbation.groups import at_least_float32
from fairseq_sam.perturbation.rng import RandomState
from fairseq_sam.perturbation.running_statistics import RunningStatistics
from fairseq_sam.perturbation.settings import PerturbationSettings
from fairseq_sam.perturbation.weights import PerturbedWeights


class ForwardPass(NamedTuple):
    """What one forward pass gives.

    Attributes:
        loss: scalar with a graph, summed as the training loop wants it.
        sample_size: what the loss is divided by for its mean (``loss_reduction="mean"``).
        extra: anything else; handed through.
    """

    loss: Tensor
    sample_size: Union[int, float, Tensor] = 1
    extra: Any = None


class Outcome(NamedTuple):
    """What one sharpness-aware evaluation gives.

    Attributes:
        loss: the tensor to call ``backward()`` on.
        clean: the pass at w.
        perturbed: the pass at w + a_K.
        norm: ‖a_K‖₂, a scalar tensor.
        realised: ⟨r, a⟩/⟨a, a⟩ over the half-precision weights, r being what the last ascent step
            changed in them and a what it asked for; None where all weights have full precision.
        finite: boolean scalar tensor; false where an inner pass overflowed and the batch was
            therefore trained on without perturbation.
    """

    loss: Tensor
    clean: ForwardPass
    perturbed: ForwardPass
    norm: Tensor
    realised: Optional[Tensor]
    finite: Tensor


class SharpnessAwareLoss:
    """Evaluates the sharpness-aware risk of a replayable forward pass.

    Args:
        trained: the weights that gradients are wanted for.
        settings: the method; its rho must be positive for anything to happen.
        perturbed: those of ``trained`` that are perturbed (default: all).
        model: the module whose normalisation statistics are to move once a step.
    """

    def __init__(
        self,
        trained: Sequence[Tensor],
        settings: PerturbationSettings,
        perturbed: Optional[Sequence[Tensor]] = None,
        model: Optional[nn.Module] = None,
    ) -> None:
        self.settings = settings
        self.trained = list(trained)
        chosen = {id(weight) for weight in (self.trained if perturbed is None else perturbed)}
        self._chosen = [i for i, weight in enumerate(self.trained) if id(weight) in chosen]
        self.weights = PerturbedWeights([self.trained[i] for i in self._chosen], settings)
        self._model = model
        self._share = 1.0 / (settings.num_steps + 1) if settings.risk == "mean" else 1.0

    def restore(self) -> None:
        """Puts the weights back if an interrupted step left them perturbed."""
        self.weights.restore()

    def __call__(
        self,
        forward: Callable[[], ForwardPass],
        scale_loss: Callable[[Tensor], Tensor] = lambda loss: loss,
        no_sync: Callable[[], ContextManager[Any]] = contextlib.nullcontext,
    ) -> Outcome:
        """Runs the inner passes and the last forward pass.

        Args:
            forward: runs the model on the batch; called K + 1 times with the same random numbers.
            scale_loss: the loss scaling of mixed-precision training, for the inner passes.
            no_sync: context in which backward does not reduce gradients across workers.

        Returns:
            The outcome; the weights stay perturbed until the backward of its loss has ended.

        Raises:
            Exception: whatever ``forward`` or its backward raise; the weights and the gradients
                accumulated before are back in place by then.
        """
        self.restore()
        accumulated = take_gradients(self.trained)
        statistics = RunningStatistics(self._model or nn.Module())
        try:
            inner = self._inner_passes(forward, scale_loss, no_sync, statistics)
            perturbed = forward()
            statistics.restore()
        except BaseException:
            self.restore()
            raise
        finally:
            put_gradients(self.trained, accumulated)
        return self._outcome(inner, perturbed)

    def _inner_passes(
        self,
        forward: Callable[[], ForwardPass],
        scale_loss: Callable[[Tensor], Tensor],
        no_sync: Callable[[], ContextManager[Any]],
        statistics: RunningStatistics,
    ) -> "_InnerPasses":
        """Runs the K passes at w + a_0 .. w + a_{K−1} and leaves the weights at w + a_K."""
        random_state = RandomState(self.trained)
        inner: Optional[_InnerPasses] = None
        for step in range(self.settings.num_steps):
            with no_sync():
                output = forward()
                scale = self._backward(output.loss, scale_loss)
            gradients = take_gradients(self.trained)
            if inner is None:
                clean = ForwardPass(output.loss.detach(), output.sample_size, output.extra)
                inner = _InnerPasses(clean, scale, [])
                statistics.save()
            if self.settings.risk == "mean":
                add_gradients_(inner.gradients, gradients)
            self.weights.ascend(
                [gradients[i] for i in self._chosen],
                divisor=self._divisor(inner),
                compute_dtype=autocast_dtype(clean.loss.device),
                consume=self.settings.risk == "perturbed" or step > 0,
            )
            del output, gradients
            random_state.restore()
        assert inner is not None  # num_steps >= 1
        return inner

    def _backward(self, loss: Tensor, scale_loss: Callable[[Tensor], Tensor]) -> Tensor:
        """Runs backward on this pass's share of the risk; returns the loss scale used."""
        with autocast_off(loss.device):
            scale = scale_loss(at_least_float32(torch.ones_like(loss.detach())))
            scale_loss(loss * self._share).backward()
        return scale

    def _divisor(self, inner: "_InnerPasses") -> Tensor:
        """What the gradients are to be divided by to become those that the scales see."""
        divisor = inner.scale * self._share
        if self.settings.loss_reduction == "mean":
            size = inner.clean.sample_size
            # A batch without targets has sample size 0 and no gradient either.
            divisor = divisor * (size.clamp(min=1) if torch.is_tensor(size) else max(size, 1))
        return divisor

    def _outcome(self, inner: "_InnerPasses", perturbed: ForwardPass) -> Outcome:
        loss, finite = perturbed.loss, self.weights.finite
        if self.settings.risk == "mean":
            loss = self._mean_risk(loss, inner, finite)
        if loss.requires_grad:
            loss.register_hook(self._restore_when_backward_ends)
        else:
            self.restore()
        perturbed = ForwardPass(perturbed.loss.detach(), perturbed.sample_size, perturbed.extra)
        realised = self.weights.realised if self.weights.low_precision else None
        return Outcome(loss, inner.clean, perturbed, self.weights.norm, realised, finite)

    def _mean_risk(self, loss: Tensor, inner: "_InnerPasses", finite: Tensor) -> Tensor:
        """Returns this pass's share of the risk, carrying the inner passes' gradients.

        Where an inner pass overflowed, the loss alone: it was computed at w.
        """
        finite = finite.to(loss.device)
        one = torch.ones_like(loss.detach())
        share = torch.where(finite, one * self._share, one)
        unscale = torch.where(finite, 1.0 / inner.scale, torch.zeros_like(inner.scale))
        return carry_gradients(loss, share, self.trained, inner.gradients, unscale, finite)

    def _restore_when_backward_ends(self, gradient: Tensor) -> None:
        Variable._execution_engine.queue_callback(self.restore)


class _InnerPasses(NamedTuple):
    """The pass at w, the loss scale, and the gradients summed over the passes (mean risk)."""

    clean: ForwardPass
    scale: Tensor
    gradients: Gradients
