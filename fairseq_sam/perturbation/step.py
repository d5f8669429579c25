"""A training step, run several times: its passes, their gradients, what they do to the weights.

:class:`RepeatedStep` holds what the passes of one step share and has a method for each kind of
pass. Whoever runs the training step is handed a :class:`Pass` and calls its ``backward``;
:class:`StepGradients` adds up what the backward passes give.
"""

from __future__ import annotations

import contextlib
import logging
import math
from typing import (
    TYPE_CHECKING,
    Any,
    Callable,
    ContextManager,
    Dict,
    Iterator,
    List,
    NamedTuple,
    Optional,
    Sequence,
    Tuple,
    Union,
)

import torch
from torch import Tensor
from torch.nn.parameter import is_lazy

from fairseq_sam import FairseqSamError
from fairseq_sam.perturbation import foreach
from fairseq_sam.perturbation.ascent import Radius
from fairseq_sam.perturbation.foreach import Gradients
from fairseq_sam.perturbation.outputs import Outputs, OutputsBypassed, check_outputs
from fairseq_sam.perturbation.replay import Replay, autocast_off
from fairseq_sam.perturbation.sentence_weights import SentenceProbes

if TYPE_CHECKING:
    from fairseq_sam.perturbation.risk import SharpnessAwareLoss


logger = logging.getLogger(__name__)


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


class SentencesPassedBy(FairseqSamError, RuntimeError):
    """A pass whose sentences are weighed went backward from a loss without their weights."""


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
        self.num_weighed = 0

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
        self.num_weighed += 1
        return self._step.sentences.weigh(losses, self.probes)

    def at_w(self, function: Callable[[], Any]) -> Any:
        """Calls a function with the weights at w, wherever this pass has them."""
        return self._step.call_at_w(function)

    def once(self, function: Callable[[], Any]) -> None:
        """Calls a function at w, whose effect all later passes of the step start from.

        For what a training step does that must happen once, and not again in its repetitions.
        """
        self._step.call_at_w(lambda: self._step.replay.once(function))


Step = Callable[["Pass"], ForwardPass]
NoSync = Callable[[], ContextManager[Any]]


class RepeatedStep:
    """A step under way: what its passes share.

    Args:
        loss: what the step belongs to.
        step: the training step, forward and backward.
        backward: ``loss.backward()`` as the training loop does it, with its loss scaling.
        scale_loss: that loss scaling alone.
        no_sync: context in which backward does not reduce gradients across workers.
        compute_dtype: the format that the step computes in.
        reach: multiplies the radius.
        replay: the state that the passes share.
    """

    def __init__(
        self,
        loss: SharpnessAwareLoss,
        step: Step,
        backward: Callable[[Tensor], None],
        scale_loss: Callable[[Tensor], Tensor],
        no_sync: NoSync,
        compute_dtype: Optional[torch.dtype],
        reach: float,
        replay: Replay,
    ) -> None:
        self._loss, self._settings, self._weights = loss, loss.settings, loss.weights
        self._step, self._no_sync = step, no_sync
        self._compute_dtype = compute_dtype
        self._reach = reach
        self._weights.begin()
        self._weights.draws.begin()
        self._outputs = None
        if self._settings.risk == "functional":
            assert loss.outputs_of is not None
            self._outputs = Outputs(loss.outputs_of)
        self.sentences: SentenceProbes = SentenceProbes(loss.settings)
        self.gradients: StepGradients = StepGradients(
            loss, backward, scale_loss, self.sentences, self._outputs, reach
        )
        self._clean: Optional[ForwardPass] = None
        self._ascended: Optional[ForwardPass] = None
        self._momentum: Gradients = []
        self.replay = replay
        self._marks: Dict[int, Tuple[Tensor, Tuple[int, int]]] = {}
        self._accumulated: Optional[Gradients] = foreach.take_gradients(loss.trained)

    def finish(self) -> None:
        """Puts back what a pass may change, and the gradients of before where a pass failed."""
        if self._accumulated is not None:
            foreach.put_gradients(self._loss.trained, self._accumulated)
        self.replay.finish()

    def find_writes(self) -> None:
        """Runs a pass at w for nothing but what it writes into weights, where no other comes."""
        this = Pass(self, ascends=True, probes=True)
        with self._watching_for_writes(), self.replay.probing(), self._no_sync(), torch.no_grad():
            self._run(this)

    def probe(self) -> None:
        """Looks at the sentences' losses at w + h r and, for the published weights, w − h r."""
        dtype = self._compute_dtype or self._weights.weights[0].dtype
        this = self._ascending(probes=True, weighs=True)
        for _ in self.sentences.displace(self._weights, dtype):
            with self.replay.probing(), self._no_sync(), torch.no_grad():
                self._run(this)

    def look(self) -> None:
        """Runs a pass at w for the gradient with respect to the model's outputs alone."""
        assert self._outputs is not None
        this = Pass(self, ascends=True)
        watch, looks = self._watching_for_writes(), self._outputs.looked_at()
        with watch, self.replay.one_pass(), self._no_sync(), looks:
            self._clean = _detached(self._run(this))
        self.gradients.forget_loss()
        if any(gradient is not None for gradient in foreach.take_gradients(self._loss.trained)):
            raise OutputsBypassed("the loss depends on trained weights past the model's outputs")

    def ascend(self) -> None:
        """Runs a pass at w + a_{k−1} and moves the weights to w + a_k."""
        is_first, looked = self._ascended is None, self._clean is not None
        this = self._ascending(weighs=self._settings.needs_sentences)
        watch = self._first_pass() if is_first and not looked else contextlib.nullcontext()
        with watch, self.replay.one_pass(may_last=not this.is_part), self._no_sync():
            output = self._run(this)
            radius = self.gradients.end_pass(output, self._compute_dtype)
        gradients, of_loss = self.gradients.take()
        if not this.num_backward and any(gradient is not None for gradient in gradients):
            raise BackwardPassedBy("the step called loss.backward() itself")
        if is_first:
            self._ascended = _detached(output)
            if not this.is_part:
                self._clean = self._ascended
                self._check_outputs(of_loss)
        assert self._ascended is not None
        self._weights.ascend(
            self._moving(gradients),
            others=[gradients[i] for i in self._loss.unmoved],
            divisor=self.gradients.divisor(self._ascended),
            compute_dtype=self._compute_dtype,
            radius=self._settings.rho * self._reach if radius is None else radius,
            rise=self.gradients.rise() if is_first and radius is None else None,
            unit=self.gradients.unit(self._ascended),
        )

    def follow_momentum(self, momentum: Sequence[Optional[Tensor]]) -> None:
        """Moves the weights along −m; leaves them where the base optimizer has none yet."""
        self._momentum = list(momentum)
        if any(m is not None for m in momentum):
            opposite = [None if m is None else -m for m in momentum]
            self._weights.ascend(self._moving(opposite), radius=self._settings.rho * self._reach)

    def _ascending(self, **how: bool) -> Pass:
        return Pass(self, ascends=True, is_part=self._settings.ascent_fraction < 1, **how)

    def _moving(self, gradients: Gradients) -> Gradients:
        """Returns the gradients of those weights that are to move.

        What a pass writes into stays, where the pass at w is not the one whose state remains.
        """
        weights, stay = self._loss.trained, self._clean is None
        return [
            None if stay and self.replay.is_known(weights[i]) else gradients[i]
            for i in self._loss.chosen
        ]

    def _tell_what_stays(self) -> None:
        """Warns once of weights that :meth:`_moving` keeps at w."""
        loss = self._loss
        if loss.has_told_what_stays:
            return
        chosen = [w for w in (loss.trained[i] for i in loss.chosen) if w.requires_grad]
        num_staying = sum(self.replay.is_known(weight) for weight in chosen)
        if num_staying:
            loss.has_told_what_stays = True
            logger.warning(
                f"{num_staying} of {len(chosen)} trained weights are not perturbed: a pass writes "
                "into them (--quant-noise-pq, max_norm), which takes a pass at w on the whole "
                "mini-batch: no momentum direction, --sam-ascent-fraction or --sam-ascent-share"
            )

    @contextlib.contextmanager
    def _first_pass(self) -> Iterator[None]:
        outputs = self._outputs
        recorded = contextlib.nullcontext() if outputs is None else outputs.recorded()
        with self._watching_for_writes(), recorded:
            yield

    @contextlib.contextmanager
    def _watching_for_writes(self) -> Iterator[None]:
        """Context of the step's first pass, which finds the weights that a pass writes into.

        They are known by their version or place. What was written past both, through ``.data``, is
        seen by its value, in the 1st, 8th, 64th … step, as looking waits for the GPU. What is found
        at w + a goes back to w as if it had not been written, and the next step knows.
        """
        loss = self._loss
        loss.num_steps += 1
        is_displaced = self._weights.perturbed
        looks = self._looks() and not is_displaced
        if not is_displaced:
            self._weights.take_snapshot()
        noted = {id(w): value for w, value in zip(*self._weights.with_snapshot())}
        watched = [w for w in loss.trained if not (is_lazy(w) or self.replay.is_known(w))]
        if loss.num_steps == 1:  # of those that are frozen or left out too
            noted.update((id(w), w.detach().clone()) for w in watched if id(w) not in noted)
        self._marks = {id(w): (w, _mark(w)) for w in watched}
        try:
            yield
        except BaseException:
            with torch.no_grad():
                foreach.copy_(*self._weights.with_snapshot())
            raise
        marks, self._marks = self._marks, {}
        written = [
            weight
            for weight, noted_mark in marks.values()
            if _mark(weight) != noted_mark
            or (looks and id(weight) in noted and _differ(weight, noted[id(weight)]))
        ]
        loss.written += written
        back = [weight for weight in written if id(weight) in noted]
        before = [noted[id(weight)] for weight in back]
        if is_displaced:
            with torch.no_grad():
                foreach.copy_(back, before)
        self.replay.unwrite(back, before)

    def _looks(self) -> bool:
        """Whether this is the 1st, 8th, 64th … step, which may wait for the GPU."""
        count = self._loss.num_steps
        return bool(8 ** round(math.log(count, 8)) == count)

    def train(self) -> Outcome:
        """Runs the pass at w + a_K, whose gradient joins those accumulated before."""
        foreach.put_gradients(self._loss.trained, self._accumulated or [])
        if self._clean is None:
            self._tell_what_stays()
        is_first = self._ascended is None and self._clean is None
        watch = self._watching_for_writes() if is_first else contextlib.nullcontext()
        with watch, self.replay.one_pass():
            output = self._follow() or self._run(Pass(self, ascends=False))
            self.gradients.add_risk()  # of inner passes, where this one had no loss at all
        self._accumulated = None
        weights = self._weights
        weights.draws.end()
        return Outcome(
            clean=self._clean,
            perturbed=_detached(output),
            norm=weights.norm,
            rho=weights.radius(),
            realised=weights.realised if weights.low_precision else None,
            finite=weights.finite,
            uniform=self.sentences.uniform() if self._settings.needs_sentences else None,
            cosine=self._cosine(),
        )

    def _follow(self) -> Optional[ForwardPass]:
        """Runs a pass that is trained on S, the outputs' product with u; None under other risks."""
        if self._outputs is None:
            return None
        assert self._clean is not None
        products: List[Tensor] = []
        this = Pass(self, ascends=False, follows=True)
        with self._under_way(this):
            with self._outputs.followed(products):
                self._step(this)
            loss = self._clean.loss
            for product in products:  # at most one
                this.num_backward += 1
                at_w = self._outputs.at_w(product) / self.gradients.scale_of(product)
                loss = loss + self.gradients.backward_of_outputs(product) - at_w
        return ForwardPass(loss, self._clean.sample_size)

    def _check_outputs(self, gradients: Gradients) -> None:
        """Checks at w that the loss depends on the weights through the model's outputs alone.

        In the same steps on all workers, for a pass of one must be a pass of all.
        """
        if self._outputs is None or not self._looks():
            return
        with self.replay.one_pass(), self._no_sync():
            self._follow()
        followed = foreach.take_gradients(self._loss.trained)
        check_outputs(gradients, followed)

    def _cosine(self) -> Optional[Tensor]:
        """Returns the cosine between −m and the gradient so far; None for other directions."""
        pairs = [
            (m, weight.grad)
            for m, weight in zip(self._momentum, self._loss.trained)
            if m is not None and weight.grad is not None
        ]
        if not pairs:
            return None
        products = [torch.dot(m.reshape(-1), g.reshape(-1).to(m.dtype)) for m, g in pairs]
        lengths = [torch.linalg.vector_norm(foreach.norms(each)) for each in zip(*pairs)]
        length = lengths[0] * lengths[1]
        return -torch.stack(products).sum() / torch.where(length > 0, length, length + 1)

    def _run(self, this: Pass) -> ForwardPass:
        if this.weighs:
            self.sentences.begin_pass()
        with self._under_way(this):
            output = self._step(this)
        if this.weighs and this.num_backward and not this.num_weighed:
            raise SentencesPassedBy("the step did not call Pass.weigh: no sentence is weighed")
        return output

    @contextlib.contextmanager
    def _under_way(self, this: Pass) -> Iterator[None]:
        self._loss.current = this
        try:
            yield
        finally:
            self._loss.current = None

    def call_at_w(self, function: Callable[[], Any]) -> Any:
        """Calls a function at w, wherever the weights are.

        Going there and back is no writing of the pass's.
        """
        if not self._weights.perturbed:
            return function()
        unwritten = [weight for weight, noted in self._marks.values() if _mark(weight) == noted]
        with self._weights.at_w():
            result = function()
        self._marks.update((id(weight), (weight, _mark(weight))) for weight in unwritten)
        return result


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

    def forget_loss(self) -> None:
        """Forgets the losses of a pass that no ascent follows: a share is one of the ascent's."""
        self._ascended = None

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
        foreach.zero_unless_(present, finite)
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


def _mark(weight: Tensor) -> Tuple[int, int]:
    """Returns what another value of a weight changes, unless it is written past autograd."""
    return weight._version, weight.data_ptr()


def _differ(weight: Tensor, value: Tensor) -> bool:
    return not weight.is_meta and not torch.equal(weight, value)


def _detached(output: ForwardPass) -> ForwardPass:
    loss = output.loss.detach() if isinstance(output.loss, Tensor) else output.loss
    return ForwardPass(loss, output.sample_size, output.extra)
