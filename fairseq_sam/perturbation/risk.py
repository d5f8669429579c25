"""The sharpness-aware gradient of a loss: a training step, run several times.

:class:`SharpnessAwareLoss` runs the K inner passes, moves the weights to w + a_K, runs the pass
that is trained on and puts the weights back. The gradient of the sharpness-aware risk is then in
``p.grad``, added to what was there: loss scaling, gradient accumulation and data-parallel reduction
need to know nothing of it.

Example:
    >>> import torch
    >>> from fairseq_sam.perturbation import ForwardPass, SharpnessAwareLoss, method_settings
    >>> w = torch.nn.Parameter(torch.tensor([3.0, 4.0], dtype=torch.float64))
    >>> sharpness_aware = SharpnessAwareLoss([w], method_settings("sam", rho=0.5))
    >>> outcome = sharpness_aware.backward(lambda: ForwardPass(0.5 * (w * w).sum()))
    >>> w.grad  # of L at w + 0.5 w / ‖w‖
    tensor([3.3000, 4.4000], dtype=torch.float64)
    >>> w.detach()
    tensor([3., 4.], dtype=torch.float64)
"""

import contextlib
from typing import Any, Callable, ContextManager, Dict, List, NamedTuple, Optional, Sequence, Union

import torch
from torch import Tensor, nn

from fairseq_sam.perturbation import foreach
from fairseq_sam.perturbation.foreach import Gradients
from fairseq_sam.perturbation.replay import Replay, autocast_dtype, autocast_off
from fairseq_sam.perturbation.sentence_weights import SentenceProbes
from fairseq_sam.perturbation.settings import PerturbationSettings
from fairseq_sam.perturbation.unperturbed import call_at
from fairseq_sam.perturbation.weights import PerturbedWeights


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

    clean: ForwardPass
    perturbed: ForwardPass
    norm: Tensor
    realised: Optional[Tensor]
    finite: Tensor
    uniform: Optional[Tensor] = None


class BackwardPassedBy(RuntimeError):
    """A pass left gradients without having called :meth:`Pass.backward`."""


class Pass:
    """One pass of a step, for whoever runs it.

    Attributes:
        ascends: whether it only serves to find the perturbation.
        probes: whether it is only looked at, without gradients, and for the losses alone.
        weighs: whether the loss is to be :meth:`weigh` of the sentences' losses.
    """

    def __init__(
        self, step: "_Step", ascends: bool, probes: bool = False, weighs: bool = False
    ) -> None:
        self.ascends, self.probes, self.weighs = ascends, probes, weighs
        self._step = step
        self.num_backward = 0

    def backward(self, loss: Tensor) -> None:
        """Stands in for ``loss.backward()``; as often a pass as there are losses."""
        self.num_backward += 1
        if self.probes:
            return
        if self.ascends:
            self._step.backward_of_ascent(loss, self.weighs)
        else:
            self._step.backward_of_training(loss)

    def weigh(self, losses: Tensor) -> Tensor:
        """Returns the sum of the losses [batch] of a mini-batch, to go :meth:`backward` from."""
        return self._step.sentences.weigh(losses, self.probes)

    def once(self, function: Callable[[], Any]) -> None:
        """Calls a function as part of the first pass, at w, and lets all passes start after it.

        For what a training step does that must happen once, and not again in its repetitions.
        """
        self._step.call_once(function)


class SharpnessAwareLoss:
    """Evaluates the gradient of the sharpness-aware risk of a step that can be repeated.

    Args:
        trained: the weights that gradients are wanted for.
        settings: the method; its rho must be positive for anything to happen.
        perturbed: those of ``trained`` that are perturbed (default: all).
        modules: what is called in a pass: its buffers, counters and memories move once a step.

    Attributes:
        current: the pass under way, None outside of a step.
    """

    def __init__(
        self,
        trained: Sequence[Tensor],
        settings: PerturbationSettings,
        perturbed: Optional[Sequence[Tensor]] = None,
        modules: Sequence[nn.Module] = (),
    ) -> None:
        self.settings = settings
        self.trained = list({id(weight): weight for weight in trained}.values())
        chosen = {id(weight) for weight in (self.trained if perturbed is None else perturbed)}
        self.chosen = [i for i, weight in enumerate(self.trained) if id(weight) in chosen]
        self.unmoved = [i for i, weight in enumerate(self.trained) if id(weight) not in chosen]
        weights = [self.trained[i] for i in self.chosen]
        self.weights = PerturbedWeights(weights, settings, _layers(weights, modules))
        self.modules = list(modules)
        self.current: Optional[Pass] = None

    def backward(
        self,
        forward: Callable[[], ForwardPass],
        scale: float = 1.0,
        scale_loss: Callable[[Tensor], Tensor] = lambda loss: loss,
        no_sync: Callable[[], ContextManager[Any]] = contextlib.nullcontext,
        per_sentence: Optional[Callable[[], ForwardPass]] = None,
        probe: Optional[Callable[[], Tensor]] = None,
    ) -> Outcome:
        """Adds the gradient of the sharpness-aware risk to ``p.grad``.

        Args:
            forward: runs the model on the batch; called K + 1 times with the same random numbers.
            scale: multiplies the gradient and leaves the perturbation as it is: 1 / N where N
                mini-batches are accumulated for one update. (A loss divided by N would be another
                loss, which the scales that look at the gradient perturb otherwise.)
            scale_loss: the loss scaling of mixed-precision training, ``GradScaler.scale``.
            no_sync: context in which backward does not reduce gradients across workers.
            per_sentence: like ``forward`` but giving ``losses`` too; needed by δ-SAM's weights.
            probe: returns the losses [batch] alone, for passes without gradient (default: those
                of ``per_sentence``); best in float64, since their differences are small.

        Returns:
            The outcome. The weights are at w again.

        Raises:
            ValueError: the method perturbs each instance by itself; see :meth:`backward_each`.
            Exception: whatever ``forward`` or its backward raise; the weights and, unless it was
                the backward of the last pass, the gradients accumulated before are back in place.
        """
        if self.settings.per_instance:
            raise ValueError(
                "per_instance is True: it needs a forward pass for each sentence: backward_each"
            )
        return self._backward(forward, scale, scale_loss, no_sync, per_sentence, probe)

    def backward_each(
        self,
        forwards: Sequence[Callable[[], ForwardPass]],
        scale: float = 1.0,
        scale_loss: Callable[[Tensor], Tensor] = lambda loss: loss,
        no_sync: Callable[[], ContextManager[Any]] = contextlib.nullcontext,
    ) -> List[Outcome]:
        """As :meth:`backward`, for several forward passes with a perturbation each.

        With one a sentence this is per-instance SAM (δ-SAM Eq. 2).
        """
        outcomes = []
        for number, forward in enumerate(forwards, 1):
            with contextlib.nullcontext() if number == len(forwards) else no_sync():
                outcomes.append(self._backward(forward, scale, scale_loss, no_sync))
        return outcomes

    def _backward(
        self,
        forward: Callable[[], ForwardPass],
        scale: float,
        scale_loss: Callable[[Tensor], Tensor],
        no_sync: Callable[[], ContextManager[Any]],
        per_sentence: Optional[Callable[[], ForwardPass]] = None,
        probe: Optional[Callable[[], Tensor]] = None,
    ) -> Outcome:
        def step(this: Pass) -> ForwardPass:
            if this.probes and probe is not None:
                return ForwardPass(this.weigh(probe()))
            output = (per_sentence or forward)() if this.weighs else forward()
            loss = this.weigh(_losses(output)) if this.weighs else output.loss
            assert isinstance(loss, Tensor)
            this.backward(loss)
            return output

        def backward(loss: Tensor) -> None:
            if loss.requires_grad:
                scaled = scale_loss(loss if scale == 1.0 else loss * scale)
                with autocast_off(loss.device):
                    scaled.backward()

        return self.run(step, backward, lambda loss: scale_loss(loss * scale), no_sync)

    def run(
        self,
        step: Callable[[Pass], ForwardPass],
        backward: Callable[[Tensor], None],
        scale_loss: Callable[[Tensor], Tensor] = lambda loss: loss,
        no_sync: Callable[[], ContextManager[Any]] = contextlib.nullcontext,
        compute_dtype: Optional[torch.dtype] = None,
    ) -> Outcome:
        """Runs a training step K + 1 times (and δ-SAM's probes before).

        Args:
            step: the training step, forward and backward. It calls the pass's ``backward`` instead
                of the loss's, and does not step the optimizer.
            backward: ``loss.backward()`` as the training loop does it, with its loss scaling.
            scale_loss: that loss scaling alone, linear in the loss.
            no_sync: context in which backward does not reduce gradients across workers.
            compute_dtype: the format that the step computes in (default: autocast's, if it is on).

        Returns:
            The outcome. The weights are at w again.

        Raises:
            BackwardPassedBy: the step did not call the pass's ``backward``.
            Exception: as :meth:`backward`.
        """
        compute_dtype = compute_dtype or autocast_dtype(self.trained[0].device)
        under_way = _Step(self, backward, scale_loss, compute_dtype)
        try:
            if self.settings.needs_sentences:
                under_way.probe(step, no_sync)
            for _ in range(self.settings.num_steps):
                under_way.ascend(step, no_sync)
            return under_way.train(step)
        finally:
            self.weights.restore()
            under_way.finish()

    def call_unperturbed(self, module: nn.Module, **inputs: Any) -> Any:
        """Calls a module at w from within a pass, wherever the weights are at the time.

        For losses of which one part is to be perturbed and another is not. In the passes that only
        find the perturbation the output has no graph, so that the ascent follows the perturbed
        part; in those whose gradient is trained on, gradients reach the weights from both.
        (A pass of the mean risk is of both kinds, and has a graph.)

        Args:
            module: holds the weights; calling it must be enough to call the model.
            **inputs: of the module.
        """
        ascends = self.current is not None and self.current.ascends
        only_ascends = ascends and self.settings.risk != "mean"
        return call_at(module, self.weights.origins(), not only_ascends, **inputs)


class _Step:
    """A step under way: what its passes share."""

    def __init__(
        self,
        loss: SharpnessAwareLoss,
        backward: Callable[[Tensor], None],
        scale_loss: Callable[[Tensor], Tensor],
        compute_dtype: Optional[torch.dtype],
    ) -> None:
        self._loss, self._settings, self._weights = loss, loss.settings, loss.weights
        self._backward, self._scale_loss = backward, scale_loss
        self._compute_dtype = compute_dtype
        self._weights.begin()
        self.sentences = SentenceProbes(loss.settings)
        self._clean: Optional[ForwardPass] = None
        self._risk: Gradients = []
        self._share = 1.0 / (self._settings.num_steps + 1) if self._settings.risk == "mean" else 1.0
        self._replay = Replay(loss.modules, loss.trained)
        self._accumulated: Optional[Gradients] = foreach.take_gradients(loss.trained)

    def finish(self) -> None:
        """Puts back what a pass may change, and the gradients of before where a pass failed."""
        self._replay.finish()
        if self._accumulated is not None:
            foreach.put_gradients(self._loss.trained, self._accumulated)

    def probe(
        self, step: Callable[[Pass], ForwardPass], no_sync: Callable[[], ContextManager[Any]]
    ) -> None:
        """Looks at the sentences' losses at w + h r and, for the published weights, w − h r."""
        dtype = self._compute_dtype or self._weights.weights[0].dtype
        for _ in self.sentences.displace(self._weights, dtype):
            with self._replay.probing(), no_sync(), torch.no_grad():
                self._run(step, Pass(self, ascends=True, probes=True, weighs=True))

    def ascend(
        self, step: Callable[[Pass], ForwardPass], no_sync: Callable[[], ContextManager[Any]]
    ) -> None:
        """Runs a pass at w + a_{k−1} and moves the weights to w + a_k."""
        this = Pass(self, ascends=True, weighs=self._settings.needs_sentences)
        with self._replay.one_pass(), no_sync():
            output = self._run(step, this)
        self._clean = self._clean or _detached(output)
        gradients = foreach.take_gradients(self._loss.trained)
        if not this.num_backward and any(gradient is not None for gradient in gradients):
            raise BackwardPassedBy("the step called loss.backward() itself")
        if self._settings.risk == "mean" and not this.weighs:
            foreach.add_gradients_(self._risk, gradients)
        self._weights.ascend(
            [gradients[i] for i in self._loss.chosen],
            others=[gradients[i] for i in self._loss.unmoved],
            divisor=self._divisor(self._clean),
            compute_dtype=self._compute_dtype,
        )

    def train(self, step: Callable[[Pass], ForwardPass]) -> Outcome:
        """Runs the pass at w + a_K, whose gradient joins those accumulated before."""
        foreach.put_gradients(self._loss.trained, self._accumulated or [])
        with self._replay.one_pass():
            output = self._run(step, Pass(self, ascends=False))
            self._add_risk()  # of inner passes, where this one had no loss at all
        self._accumulated = None
        assert self._clean is not None  # num_steps >= 1
        weights = self._weights
        realised = weights.realised if weights.low_precision else None
        uniform = self.sentences.uniform()
        perturbed = _detached(output)
        return Outcome(self._clean, perturbed, weights.norm, realised, weights.finite, uniform)

    def _run(self, step: Callable[[Pass], ForwardPass], this: Pass) -> ForwardPass:
        self.sentences.begin_pass()
        self._loss.current = this
        try:
            return step(this)
        finally:
            self._loss.current = None

    def call_once(self, function: Callable[[], Any]) -> None:
        """Calls a function at w; what it does is what the passes start from."""
        displaced = self._weights.perturbed  # δ-SAM's probes come first
        self._weights.restore()
        function()
        self._replay.start_here()
        if displaced:
            self.sentences.displace_again(self._weights)

    def backward_of_ascent(self, loss: Tensor, weighs: bool) -> None:
        """Runs backward for the ascent's gradient and, under the mean risk, for the risk's.

        Without sentence weights the two are one. With them the mean risk, which is unweighted,
        takes a backward pass of its own.
        """
        loss = loss * self._share if self._share != 1.0 else loss
        if weighs and self._settings.risk == "mean":
            trained = self._loss.trained
            before = foreach.take_gradients(trained)
            self.sentences.apply_weights(False)
            with autocast_off(loss.device):
                self._scale_loss(loss).backward(retain_graph=True)
            foreach.add_gradients_(self._risk, foreach.take_gradients(trained))
            foreach.put_gradients(trained, before)
        self.sentences.apply_weights(True)
        self._backward(loss)

    def backward_of_training(self, loss: Tensor) -> None:
        """Runs backward for the gradient that is trained on.

        The inner passes' part joins just before: what is in ``p.grad`` by then is reduced across
        workers with the rest, like that of the micro-batches before.
        """
        self._add_risk()
        if self._settings.risk == "mean":
            # Where an inner pass overflowed, the loss alone: it was computed at w.
            finite = self._weights.finite.to(loss.device)
            one = torch.ones_like(loss.detach())
            loss = loss * torch.where(finite, one * self._share, one)
        self._backward(loss)

    @torch.no_grad()
    def _add_risk(self) -> None:
        gradients, self._risk = self._risk, []
        present = [gradient for gradient in gradients if gradient is not None]
        if not present:
            return
        finite = self._weights.finite
        foreach.discard_non_finite_(present, finite)
        torch._foreach_mul_(present, [finite.to(gradient) for gradient in present])
        own = foreach.take_gradients(self._loss.trained)
        foreach.add_gradients_(own, gradients)
        foreach.put_gradients(self._loss.trained, own)

    def _divisor(self, clean: ForwardPass) -> Tensor:
        """What the gradients are to be divided by to become those that the scales see."""
        divisor = self._scale_loss(torch.ones((), device=self._loss.trained[0].device))
        divisor = divisor * self._share
        if self._settings.loss_reduction == "mean":
            size = clean.sample_size
            # A batch without targets has sample size 0 and no gradient either.
            divisor = divisor * (size.clamp(min=1) if torch.is_tensor(size) else max(size, 1))
        return divisor


def _detached(output: ForwardPass) -> ForwardPass:
    loss = output.loss.detach() if isinstance(output.loss, Tensor) else output.loss
    return ForwardPass(loss, output.sample_size, output.extra)


def _losses(output: ForwardPass) -> Tensor:
    if output.losses is None:
        raise ValueError("sentence weights need the loss of each sentence: ForwardPass.losses")
    return output.losses


def _layers(weights: Sequence[Tensor], modules: Sequence[nn.Module]) -> List[int]:
    """Numbers the layers: weights that one module holds itself are of one layer."""
    owners: Dict[int, int] = {}
    holders = [each for module in modules for each in module.modules()]
    for number, holder in enumerate(holders, 1):
        for weight in holder.parameters(recurse=False):
            owners.setdefault(id(weight), number)
    return [owners.get(id(weight), 0) for weight in weights]
