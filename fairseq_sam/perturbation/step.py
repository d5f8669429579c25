"""A training step, run several times: what its passes do to the weights and their gradients."""

from __future__ import annotations

import contextlib
import math
from typing import (
    TYPE_CHECKING,
    Any,
    Callable,
    ContextManager,
    Iterator,
    List,
    NamedTuple,
    Optional,
    Union,
)

import torch
from torch import Tensor
from torch.nn.parameter import is_lazy

from fairseq_sam.perturbation import foreach
from fairseq_sam.perturbation.ascent import Radius
from fairseq_sam.perturbation.foreach import Gradients
from fairseq_sam.perturbation.outputs import Outputs, check_outputs
from fairseq_sam.perturbation.replay import Replay, autocast_off
from fairseq_sam.perturbation.sentence_weights import SentenceProbes

if TYPE_CHECKING:
    from fairseq_sam.perturbation.risk import SharpnessAwareLoss


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
        rho: ρ of the step, a scalar tensor.
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
    rho: Tensor
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
        follows: whether it is trained on the model's outputs, and its loss is not looked at.
    """

    def __init__(
        self,
        step: RepeatedStep,
        ascends: bool,
        probes: bool = False,
        weighs: bool = False,
        follows: bool = False,
    ) -> None:
        self.ascends, self.probes, self.weighs, self.follows = ascends, probes, weighs, follows
        self._step = step
        self.num_backward = 0

    def backward(self, loss: Tensor) -> None:
        """Stands in for ``loss.backward()``; as often a pass as there are losses."""
        self.num_backward += 1
        if self.probes:
            return
        if self.ascends:
            self._step.backward_of_ascent(loss, self.weighs)
        elif not self.follows:
            self._step.backward_of_training(loss)

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


class RepeatedStep:
    """A step under way: what its passes share."""

    def __init__(
        self,
        loss: SharpnessAwareLoss,
        backward: Callable[[Tensor], None],
        scale_loss: Callable[[Tensor], Tensor],
        compute_dtype: Optional[torch.dtype],
        reach: float,
        outputs: Optional[Outputs],
    ) -> None:
        self._loss, self._settings, self._weights = loss, loss.settings, loss.weights
        self._backward, self._scale_loss = backward, scale_loss
        self._compute_dtype = compute_dtype
        self._reach = reach
        self._outputs = outputs
        self._weights.begin()
        self.sentences = SentenceProbes(loss.settings)
        self._clean: Optional[ForwardPass] = None
        self._looked_at: Optional[Tensor] = None
        self._deferred: List[Tensor] = []
        self._unweighted: Gradients = []
        self._risk: Gradients = []
        self._part = 1.0 / (self._settings.num_steps + 1) if self._settings.risk == "mean" else 1.0
        self.replay = Replay(loss.called, loss.trained, loss.written)
        self._accumulated: Optional[Gradients] = foreach.take_gradients(loss.trained)

    def finish(self) -> None:
        """Puts back what a pass may change, and the gradients of before where a pass failed."""
        if self._accumulated is not None:
            foreach.put_gradients(self._loss.trained, self._accumulated)
        self.replay.finish()

    def probe(
        self, step: Callable[[Pass], ForwardPass], no_sync: Callable[[], ContextManager[Any]]
    ) -> None:
        """Looks at the sentences' losses at w + h r and, for the published weights, w − h r."""
        dtype = self._compute_dtype or self._weights.weights[0].dtype
        for _ in self.sentences.displace(self._weights, dtype):
            with self.replay.probing(), no_sync(), torch.no_grad():
                self._run(step, Pass(self, ascends=True, probes=True, weighs=True))

    def ascend(
        self, step: Callable[[Pass], ForwardPass], no_sync: Callable[[], ContextManager[Any]]
    ) -> None:
        """Runs a pass at w + a_{k−1} and moves the weights to w + a_k."""
        this = Pass(self, ascends=True, weighs=self._settings.needs_sentences)
        radius: Radius = self._settings.rho * self._reach
        watch = contextlib.nullcontext() if self._clean else self._first_pass()
        with watch, self.replay.one_pass(), no_sync():
            output = self._run(step, this)
            if self._deferred:
                radius = self._backward_of_deferred(output, radius)
        gradients = foreach.take_gradients(self._loss.trained)
        if not this.num_backward and any(gradient is not None for gradient in gradients):
            raise BackwardPassedBy("the step called loss.backward() itself")
        is_share = self._settings.share is not None and not this.weighs
        rise = self._rise() if is_share and self._clean is None else None
        if self._clean is None:
            self._clean = _detached(output)
            if self._outputs is not None and not self._loss.outputs_checked:
                self._check_outputs(step, no_sync, self._unweighted or gradients)
        if self._settings.risk == "mean":
            foreach.add_gradients_(self._risk, self._unweighted or gradients)
        self._unweighted = []
        self._weights.ascend(
            [gradients[i] for i in self._loss.chosen],
            others=[gradients[i] for i in self._loss.unmoved],
            divisor=self._divisor(self._clean),
            compute_dtype=self._compute_dtype,
            radius=radius,
            rise=rise,
        )

    @contextlib.contextmanager
    def _first_pass(self) -> Iterator[None]:
        recorded = contextlib.nullcontext() if self._outputs is None else self._outputs.recorded()
        with self._watching_for_writes(), recorded:
            yield

    @contextlib.contextmanager
    def _watching_for_writes(self) -> Iterator[None]:
        """Context of the first pass, which finds the weights that a pass writes into.

        They are known by their version or place. What was written past both, through ``.data``, is
        seen by its value, in the 1st, 8th, 64th … step, as looking waits for the GPU.
        """
        loss = self._loss
        loss.num_steps += 1
        self._weights.take_snapshot()
        noted = {id(w): value for w, value in zip(*self._weights.with_snapshot())}
        watched = [w for w in loss.trained if not (is_lazy(w) or self.replay.is_known(w))]
        if loss.num_steps == 1:  # of those that are frozen or left out too
            noted.update((id(w), w.detach().clone()) for w in watched if id(w) not in noted)
        marks = [(w._version, w.data_ptr()) for w in watched]
        try:
            yield
        except BaseException:
            with torch.no_grad():
                foreach.copy_(*self._weights.with_snapshot())
            raise
        looks = 8 ** round(math.log(loss.num_steps, 8)) == loss.num_steps
        written = [
            weight
            for weight, mark in zip(watched, marks)
            if (weight._version, weight.data_ptr()) != mark
            or (looks and id(weight) in noted and _differ(weight, noted[id(weight)]))
        ]
        loss.written += written
        back = [weight for weight in written if id(weight) in noted]
        self.replay.unwrite(back, [noted[id(weight)] for weight in back])

    def train(self, step: Callable[[Pass], ForwardPass]) -> Outcome:
        """Runs the pass at w + a_K, whose gradient joins those accumulated before."""
        foreach.put_gradients(self._loss.trained, self._accumulated or [])
        with self.replay.one_pass():
            output = self._follow(step) or self._run(step, Pass(self, ascends=False))
            self._add_risk()  # of inner passes, where this one had no loss at all
        self._accumulated = None
        assert self._clean is not None  # num_steps >= 1
        weights = self._weights
        realised = weights.realised if weights.low_precision else None
        uniform = self.sentences.uniform()
        perturbed = _detached(output)
        return Outcome(
            self._clean,
            perturbed,
            weights.norm,
            weights.radius(),
            realised,
            weights.finite,
            uniform,
        )

    def _follow(self, step: Callable[[Pass], ForwardPass]) -> Optional[ForwardPass]:
        """Runs a pass that is trained on S, the outputs' product with u; None under other risks."""
        if self._outputs is None:
            return None
        assert self._clean is not None
        products: List[Tensor] = []
        with self._outputs.followed(products):
            self._run(step, Pass(self, ascends=False, follows=True))
        loss = self._clean.loss
        for product in products:  # at most one
            scale = self._loss_scale(product)
            self._backward(product / scale)
            loss = loss + self._outputs.rise(product) / scale
        return ForwardPass(loss, self._clean.sample_size)

    def _check_outputs(
        self,
        step: Callable[[Pass], ForwardPass],
        no_sync: Callable[[], ContextManager[Any]],
        gradients: Gradients,
    ) -> None:
        """Checks at w that the loss depends on the weights through the model's outputs alone."""
        assert self._outputs is not None
        with self.replay.one_pass(), no_sync():
            self._follow(step)
        followed = foreach.take_gradients(self._loss.trained)
        self._loss.outputs_checked = check_outputs(gradients, followed)

    def _run(self, step: Callable[[Pass], ForwardPass], this: Pass) -> ForwardPass:
        self.sentences.begin_pass()
        self._loss.current = this
        try:
            return step(this)
        finally:
            self._loss.current = None

    def call_at_w(self, function: Callable[[], Any]) -> Any:
        """Calls a function at w: δ-SAM's probes, which are elsewhere, come first."""
        with self._weights.at_w():
            return function()

    def backward_of_ascent(self, loss: Tensor, weighs: bool) -> None:
        """Runs backward for the ascent's gradient and, under the mean risk, for the risk's.

        Without sentence weights the two are one. With them the mean risk, which is unweighted,
        takes a backward pass of its own.
        """
        loss = loss * self._part if self._part != 1.0 else loss
        if self._settings.share is not None and self._clean is None:
            seen = foreach.at_least_float32(loss.detach())
            self._looked_at = seen if self._looked_at is None else self._looked_at + seen
            if weighs:
                self._deferred.append(loss)
                return
        if weighs:
            self._note_unweighted([loss])
            self.sentences.apply_weights(self._settings.rho * self._reach)
        self._backward(loss)

    def _backward_of_deferred(self, output: ForwardPass, greatest: Radius) -> Radius:
        """Finds ρ from the gradient without sentence weights, then runs backward with them.

        Until a pass at w has ended, the sample size and other mini-batches of it are not known.
        """
        self._note_unweighted(self._deferred)
        gradients, rise = self._unweighted, self._rise()
        assert rise is not None  # what is deferred was looked at
        radius = self._weights.radius_of_rise(
            [gradients[i] for i in self._loss.chosen],
            rise,
            greatest,
            self._divisor(output),
            self._compute_dtype,
        )
        self.sentences.apply_weights(radius)
        for loss in self._deferred:
            self._backward(loss)
        self._deferred = []
        return radius

    def _note_unweighted(self, losses: List[Tensor]) -> None:
        """Runs backward without sentence weights, for all that is to follow the loss itself."""
        of_outputs = self._outputs is not None and self._clean is None
        if not (of_outputs or self._deferred or self._settings.risk == "mean"):
            return
        trained = self._loss.trained
        before = foreach.take_gradients(trained)
        self.sentences.drop_weights()
        for loss in losses:
            if loss.requires_grad:
                with autocast_off(loss.device):
                    torch.autograd.backward(self._scale_loss(loss), retain_graph=True)
        foreach.add_gradients_(self._unweighted, foreach.take_gradients(trained))
        foreach.put_gradients(trained, before)
        if self._outputs is not None:
            self._outputs.captures = False

    def _rise(self) -> Optional[Tensor]:
        """Returns how far the loss is to rise to first order, multiplied as the gradients are."""
        if self._looked_at is None:  # no loss at all, hence no gradient
            return None
        assert self._settings.share is not None
        return self._scale_loss(self._looked_at).abs() * (self._settings.share * self._reach)

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
            loss = loss * torch.where(finite, one * self._part, one)
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

    def _loss_scale(self, loss: Union[Tensor, float]) -> Tensor:
        """Returns what the gradients of a loss are multiplied by."""
        like = loss if isinstance(loss, Tensor) else self._loss.trained[0]
        one = foreach.at_least_float32(torch.ones((), dtype=like.dtype, device=like.device))
        return self._scale_loss(one) * self._part

    def _divisor(self, clean: ForwardPass) -> Tensor:
        """What the gradients are to be divided by to become those that the scales see."""
        divisor = self._loss_scale(clean.loss)
        if self._settings.loss_reduction == "mean":
            size = clean.sample_size
            # A batch without targets has sample size 0 and no gradient either.
            divisor = divisor * (size.clamp(min=1) if torch.is_tensor(size) else max(size, 1))
        return divisor


def _differ(weight: Tensor, value: Tensor) -> bool:
    return not weight.is_meta and not torch.equal(weight, value)


def _detached(output: ForwardPass) -> ForwardPass:
    loss = output.loss.detach() if isinstance(output.loss, Tensor) else output.loss
    return ForwardPass(loss, output.sample_size, output.extra)
