"""A training step, run several times: what its passes do to the weights."""

from __future__ import annotations

import contextlib
import math
from typing import TYPE_CHECKING, Any, Callable, ContextManager, Iterator, List, Optional, Sequence

import torch
from torch import Tensor
from torch.nn.parameter import is_lazy

from fairseq_sam.perturbation import foreach
from fairseq_sam.perturbation.foreach import Gradients
from fairseq_sam.perturbation.gradients import StepGradients
from fairseq_sam.perturbation.outputs import Outputs, OutputsBypassed, check_outputs
from fairseq_sam.perturbation.passes import BackwardPassedBy, ForwardPass, Outcome, Pass
from fairseq_sam.perturbation.replay import Replay
from fairseq_sam.perturbation.sentence_weights import SentenceProbes

if TYPE_CHECKING:
    from fairseq_sam.perturbation.risk import SharpnessAwareLoss

Step = Callable[[Pass], ForwardPass]
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
    ) -> None:
        self._loss, self._settings, self._weights = loss, loss.settings, loss.weights
        self._step, self._no_sync = step, no_sync
        self._compute_dtype = compute_dtype
        self._reach = reach
        self._weights.begin()
        self._outputs = None
        if self._settings.risk == "functional":
            assert loss.outputs_of is not None
            self._outputs = Outputs(loss.outputs_of)
        self.sentences = SentenceProbes(loss.settings)
        self.gradients = StepGradients(
            loss, backward, scale_loss, self.sentences, self._outputs, reach
        )
        self._clean: Optional[ForwardPass] = None
        self._ascended: Optional[ForwardPass] = None
        self._momentum: Gradients = []
        self.replay = Replay(loss.called, loss.trained, loss.written)
        self._accumulated: Optional[Gradients] = foreach.take_gradients(loss.trained)

    def finish(self) -> None:
        """Puts back what a pass may change, and the gradients of before where a pass failed."""
        if self._accumulated is not None:
            foreach.put_gradients(self._loss.trained, self._accumulated)
        self.replay.finish()

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
        with self.replay.one_pass(), self._no_sync(), self._outputs.looked_at():
            self._clean = _detached(self._run(this))
        if any(gradient is not None for gradient in foreach.take_gradients(self._loss.trained)):
            raise OutputsBypassed("the loss depends on trained weights past the model's outputs")

    def ascend(self) -> None:
        """Runs a pass at w + a_{k−1} and moves the weights to w + a_k."""
        is_first = self._ascended is None
        this = self._ascending(weighs=self._settings.needs_sentences)
        watch = self._first_pass() if is_first else contextlib.nullcontext()
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

    @contextlib.contextmanager
    def _first_pass(self) -> Iterator[None]:
        recorded: ContextManager[Any] = contextlib.nullcontext()
        if self._outputs is not None and self._clean is None:  # they were not looked at before
            recorded = self._outputs.recorded()
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
        looks = self._looks()
        written = [
            weight
            for weight, mark in zip(watched, marks)
            if (weight._version, weight.data_ptr()) != mark
            or (looks and id(weight) in noted and _differ(weight, noted[id(weight)]))
        ]
        loss.written += written
        back = [weight for weight in written if id(weight) in noted]
        self.replay.unwrite(back, [noted[id(weight)] for weight in back])

    def _looks(self) -> bool:
        """Whether this is the 1st, 8th, 64th … step, which may wait for the GPU."""
        count = self._loss.num_steps
        return bool(8 ** round(math.log(count, 8)) == count)

    def train(self) -> Outcome:
        """Runs the pass at w + a_K, whose gradient joins those accumulated before."""
        foreach.put_gradients(self._loss.trained, self._accumulated or [])
        with self.replay.one_pass():
            output = self._follow() or self._run(Pass(self, ascends=False))
            self.gradients.add_risk()  # of inner passes, where this one had no loss at all
        self._accumulated = None
        weights = self._weights
        return Outcome(
            clean=self._clean,
            perturbed=_detached(output),
            norm=weights.norm,
            rho=weights.radius(),
            realised=weights.realised if weights.low_precision else None,
            finite=weights.finite,
            uniform=self.sentences.uniform(),
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
        with self._under_way(this):
            return self._step(this)

    @contextlib.contextmanager
    def _under_way(self, this: Pass) -> Iterator[None]:
        self.sentences.begin_pass()
        self._loss.current = this
        try:
            yield
        finally:
            self._loss.current = None

    def call_at_w(self, function: Callable[[], Any]) -> Any:
        """Calls a function at w: δ-SAM's probes, which are elsewhere, come first."""
        with self._weights.at_w():
            return function()


def _differ(weight: Tensor, value: Tensor) -> bool:
    return not weight.is_meta and not torch.equal(weight, value)


def _detached(output: ForwardPass) -> ForwardPass:
    loss = output.loss.detach() if isinstance(output.loss, Tensor) else output.loss
    return ForwardPass(loss, output.sample_size, output.extra)
