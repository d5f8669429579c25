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
from typing import Any, Callable, ContextManager, NamedTuple, Optional, Sequence, Tuple, Union

import torch
from torch import Tensor, nn
from torch.autograd import Variable

from fairseq_sam.perturbation import foreach
from fairseq_sam.perturbation.autocast import autocast_dtype, autocast_off
from fairseq_sam.perturbation.gradients import (
    Gradients,
    add_gradients_,
    add_scaled_gradients_,
    put_gradients,
    take_gradients,
)
from fairseq_sam.perturbation.groups import at_least_float32
from fairseq_sam.perturbation.probing import probe_losses
from fairseq_sam.perturbation.rng import RandomState
from fairseq_sam.perturbation.running_statistics import RunningStatistics
from fairseq_sam.perturbation.sentence_weights import Probes, SentenceWeights, weigh
from fairseq_sam.perturbation.settings import PerturbationSettings
from fairseq_sam.perturbation.unperturbed import call_at
from fairseq_sam.perturbation.weights import PerturbedWeights

_Around = Tuple[Tensor, Optional[Tensor], Tensor]
"""Losses [batch] at w + h r and, where wanted, at w − h r; and ρ / h."""


class ForwardPass(NamedTuple):
    """What one forward pass gives.

    Attributes:
        loss: scalar with a graph, summed as the training loop wants it.
        sample_size: what the loss is divided by for its mean (``loss_reduction="mean"``).
        extra: anything else; handed through.
        losses: the loss of each sentence [batch], whose sum ``loss`` is; only δ-SAM asks for it.
    """

    loss: Tensor
    sample_size: Union[int, float, Tensor] = 1
    extra: Any = None
    losses: Optional[Tensor] = None


class Outcome(NamedTuple):
    """What one sharpness-aware evaluation gives.

    Attributes:
        loss: the tensor to call ``backward()`` on. (Under the mean risk ``autograd.grad`` misses
            the inner passes, whose gradients join ``p.grad`` directly.)
        clean: the pass at w.
        perturbed: the pass at w + a_K.
        norm: ‖a_K‖₂, a scalar tensor.
        realised: ⟨r, a⟩/⟨a, a⟩ over the half-precision weights, r being what the last ascent step
            changed in them and a what it asked for; None where all weights have full precision.
        finite: boolean scalar tensor; false where an inner pass overflowed and the batch was
            therefore trained on without perturbation.
        uniform: boolean scalar tensor; true where δ-SAM's sentence weights told nothing (all
            zero, or not finite) and uniform ones took their place; None without δ-SAM.
    """

    loss: Tensor
    clean: ForwardPass
    perturbed: ForwardPass
    norm: Tensor
    realised: Optional[Tensor]
    finite: Tensor
    uniform: Optional[Tensor] = None


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
        self._unmoved = [i for i, weight in enumerate(self.trained) if id(weight) not in chosen]
        self.weights = PerturbedWeights([self.trained[i] for i in self._chosen], settings)
        self._model = model
        self._ascending = False
        self._share = 1.0 / (settings.num_steps + 1) if settings.risk == "mean" else 1.0

    def restore(self) -> None:
        """Puts the weights back if an interrupted step left them perturbed."""
        self.weights.restore()

    def call_unperturbed(self, module: nn.Module, **inputs: Any) -> Any:
        """Calls a module at w from within ``forward``, wherever the weights are at the time.

        For losses of which one part is to be perturbed and another is not. In the passes that only
        find the perturbation the output has no graph, so that the ascent follows the perturbed
        part; in those whose gradient is trained on, gradients reach the weights from both.
        (A pass of the mean risk is of both kinds, and has a graph.)

        Args:
            module: holds the weights; calling it must be enough to call the model.
            **inputs: of the module.
        """
        only_ascends = self._ascending and self.settings.risk != "mean"
        return call_at(module, self.weights.origins(), not only_ascends, **inputs)

    def __call__(
        self,
        forward: Callable[[], ForwardPass],
        scale_loss: Callable[[Tensor], Tensor] = lambda loss: loss,
        no_sync: Callable[[], ContextManager[Any]] = contextlib.nullcontext,
        per_sentence: Optional[Callable[[], ForwardPass]] = None,
        probe: Optional[Callable[[], Tensor]] = None,
    ) -> Outcome:
        """Runs the inner passes and the last forward pass.

        Args:
            forward: runs the model on the batch; called K + 1 times with the same random numbers.
            scale_loss: the loss scaling of mixed-precision training, for the inner passes.
            no_sync: context in which backward does not reduce gradients across workers.
            per_sentence: like ``forward`` but giving ``losses`` too; needed by δ-SAM's weights.
            probe: returns the losses [batch] alone, for passes without gradient (default: those
                of ``per_sentence``); best in float64, since their differences are small.

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
            self._ascending = True
            around = None
            if self.settings.needs_sentences:
                statistics.save()
                around = self._probe(probe or (lambda: _losses((per_sentence or forward)())))
                statistics.restore()
            inner = self._inner_passes(
                per_sentence or forward, scale_loss, no_sync, statistics, around
            )
            self._ascending = False
            perturbed = forward()
        except BaseException:
            self.restore()
            raise
        finally:
            statistics.restore()
            put_gradients(self.trained, accumulated)
        return self._outcome(inner, perturbed)

    def _inner_passes(
        self,
        forward: Callable[[], ForwardPass],
        scale_loss: Callable[[Tensor], Tensor],
        no_sync: Callable[[], ContextManager[Any]],
        statistics: RunningStatistics,
        around: Optional[_Around],
    ) -> "_InnerPasses":
        """Runs the K passes at w + a_0 .. w + a_{K−1} and leaves the weights at w + a_K."""
        random_state = RandomState(self.trained)
        inner: Optional[_InnerPasses] = None
        for step in range(self.settings.num_steps):
            with no_sync():
                output = forward()
                if inner is None:
                    inner = self._begin(output, scale_loss, around)
                    statistics.save()
                gradients = self._gradients(output, inner, scale_loss)
            self.weights.ascend(
                [gradients[i] for i in self._chosen],
                others=[gradients[i] for i in self._unmoved],
                divisor=self._divisor(inner),
                compute_dtype=autocast_dtype(inner.clean.loss.device),
                # At the first step of an unweighted mean risk these are the risk's own.
                consume=step > 0 or self.settings.risk == "perturbed" or inner.weights is not None,
            )
            del output, gradients
            random_state.restore()
        assert inner is not None  # num_steps >= 1
        return inner

    def _probe(self, losses: Callable[[], Tensor]) -> _Around:
        """Returns the sentences' losses around w, from passes without gradient."""
        device = self.trained[0].device
        return probe_losses(self.weights, losses, RandomState(self.trained), autocast_dtype(device))

    def _begin(
        self,
        output: ForwardPass,
        scale_loss: Callable[[Tensor], Tensor],
        around: Optional[_Around],
    ) -> "_InnerPasses":
        """Returns what the pass at w settles for the passes to come."""
        clean = ForwardPass(output.loss.detach(), output.sample_size, output.extra)
        with autocast_off(clean.loss.device):
            scale = scale_loss(at_least_float32(torch.ones_like(clean.loss)))
        weights = None
        if around is not None:
            plus, minus, ratio = around
            probes = Probes(_losses(output).detach(), plus, minus)
            weights = weigh(
                self.settings.weighting, probes, self.settings.eta, self.settings.beta, ratio
            )
        return _InnerPasses(clean, scale, weights, [])

    def _gradients(
        self, output: ForwardPass, inner: "_InnerPasses", scale_loss: Callable[[Tensor], Tensor]
    ) -> Gradients:
        """Runs backward; adds the risk's gradient to ``inner`` and returns the ascent's.

        Without sentence weights the two are one. With them the mean risk, which is unweighted,
        takes a backward pass of its own.
        """
        weights = inner.weights
        with autocast_off(output.loss.device):
            if self.settings.risk == "mean" or weights is None:
                loss = scale_loss(output.loss * self._share)
                loss.backward(retain_graph=weights is not None)
                gradients = take_gradients(self.trained)
                if self.settings.risk == "mean":
                    add_gradients_(inner.gradients, gradients)
            if weights is not None:
                weighted = (weights.values * _losses(output)).sum()
                scale_loss(weighted * self._share).backward()
                gradients = take_gradients(self.trained)
        return gradients

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
            one = torch.ones_like(loss.detach())
            # Where an inner pass overflowed, the loss alone: it was computed at w.
            loss = loss * torch.where(finite.to(loss.device), one * self._share, one)
        if loss.requires_grad:
            loss.register_hook(lambda gradient: self._begin_backward(gradient, inner, finite))
        else:
            self.restore()
        perturbed = ForwardPass(perturbed.loss.detach(), perturbed.sample_size, perturbed.extra)
        realised = self.weights.realised if self.weights.low_precision else None
        uniform = None if inner.weights is None else inner.weights.uniform
        return Outcome(loss, inner.clean, perturbed, self.weights.norm, realised, finite, uniform)

    @torch.no_grad()
    def _begin_backward(self, gradient: Tensor, inner: "_InnerPasses", finite: Tensor) -> None:
        """Adds the inner passes' gradients of the mean risk, and sees to the weights' return.

        Runs when the gradient arrives at the loss: it tells the loss scale, and what is added to
        ``p.grad`` before any parameter's hook has run is reduced across workers with the rest,
        just like the micro-batches that were accumulated before.
        """
        gradients = inner.gradients[:]
        inner.gradients.clear()
        if gradients:
            finite = finite.to(gradient.device)
            present = [g for g in gradients if g is not None]
            foreach.discard_non_finite_(present, finite)
            unscaled = (gradient / inner.scale).to(gradient)
            factor = torch.where(finite, unscaled, torch.zeros_like(gradient))
            add_scaled_gradients_(self.trained, gradients, factor)
        Variable._execution_engine.queue_callback(self.restore)


class _InnerPasses(NamedTuple):
    """What the inner passes leave; the gradients are summed over them, for the mean risk."""

    clean: ForwardPass
    scale: Tensor
    weights: Optional[SentenceWeights]
    gradients: Gradients


def _losses(output: ForwardPass) -> Tensor:
    if output.losses is None:
        raise ValueError("sentence weights need the loss of each sentence: ForwardPass.losses")
    return output.losses
