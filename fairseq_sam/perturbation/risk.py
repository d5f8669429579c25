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
import math
from typing import Any, Callable, ContextManager, Dict, List, Optional, Sequence, Set, Tuple, cast

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.nn.utils import stateless

from fairseq_sam.perturbation.ascent import SecondMoment
from fairseq_sam.perturbation.outputs import OutputsBypassed
from fairseq_sam.perturbation.replay import Holders, Replay, autocast_dtype, autocast_off
from fairseq_sam.perturbation.settings import PerturbationSettings
from fairseq_sam.perturbation.step import ForwardPass, Outcome, Pass, RepeatedStep
from fairseq_sam.perturbation.weights import PerturbedWeights

if hasattr(torch, "func"):
    functional_call: Any = torch.func.functional_call
else:  # torch 1.13
    functional_call = stateless.functional_call

SecondMoments = Sequence[Optional[SecondMoment]]


class SharpnessAwareLoss:
    """Evaluates the gradient of the sharpness-aware risk of a step that can be repeated.

    Args:
        trained: the weights that gradients are wanted for.
        settings: the method; one that is off (radius 0) costs its passes all the same.
        perturbed: those of ``trained`` that are perturbed (default: all).
        modules: what is called in a pass: the buffers, counters and memories of these modules (or
            other objects) move once a step.
        outputs_of: the module whose outputs the functional risk looks at (default: the first of
            ``modules``). What wraps the model for data-parallel training, if anything does.

    Attributes:
        current: the pass under way, None outside of a step.
        called: ``modules``.
        written: weights that passes were seen to write into.
        num_steps: how many steps there were.
        has_told_what_stays: whether it was said that some weights are not perturbed.

    Raises:
        ValueError: the functional risk has no module to look at.
    """

    def __init__(
        self,
        trained: Sequence[Tensor],
        settings: PerturbationSettings,
        perturbed: Optional[Sequence[Tensor]] = None,
        modules: Sequence[Any] = (),
        outputs_of: Optional[nn.Module] = None,
    ) -> None:
        self.settings = settings
        self.outputs_of = outputs_of or next((m for m in modules if isinstance(m, nn.Module)), None)
        if settings.risk == "functional" and self.outputs_of is None:
            raise ValueError("risk is functional: it needs the model, in modules or outputs_of")
        self.trained = list({id(weight): weight for weight in trained}.values())
        chosen = {id(weight) for weight in (self.trained if perturbed is None else perturbed)}
        self.chosen = [i for i, weight in enumerate(self.trained) if id(weight) in chosen]
        self.unmoved = [i for i, weight in enumerate(self.trained) if id(weight) not in chosen]
        weights = [self.trained[i] for i in self.chosen]
        self.weights = PerturbedWeights(weights, settings, *layers_of(weights, modules))
        self.called = list(modules)
        self.written: List[Tensor] = []
        self.num_steps = 0
        self.has_told_what_stays = False
        self.current: Optional[Pass] = None
        self._position = 0

    def backward(
        self,
        forward: Callable[[], ForwardPass],
        scale: float = 1.0,
        scale_loss: Callable[[Tensor], Tensor] = lambda loss: loss,
        no_sync: Callable[[], ContextManager[Any]] = contextlib.nullcontext,
        per_sentence: Optional[Callable[[], ForwardPass]] = None,
        probe: Optional[Callable[[], Tensor]] = None,
        part: Optional[Callable[[], ForwardPass]] = None,
        momentum: Optional[Sequence[Optional[Tensor]]] = None,
        update_size: int = 1,
        second_moments: Optional[SecondMoments] = None,
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
            part: like ``forward`` on the part of the batch that the ascent sees; needed where
                ``ascent_fraction`` is below 1. (``per_sentence`` and ``probe`` are of the part.)
            momentum: m of the base optimizer, one tensor for each of ``trained`` or None for those
                without; needed by the direction ``momentum``, and not changed.
            update_size: how many mini-batches are accumulated for an update, of which
                ``ascent_share`` have an ascent. The first is the one that finds no gradients.
            second_moments: of the base optimizer, one for each of ``trained`` or None for those
                without; needed by the scale ``adam``, and not changed.

        Returns:
            The outcome. The weights are at w again.

        Raises:
            ValueError: the method perturbs each instance by itself (see :meth:`backward_each`), or
                needs what is not given: ``part``, ``losses``, ``momentum``, ``second_moments``; or
                there are more mini-batches than ``update_size``.
            OutputsBypassed: as :meth:`run`.
            Exception: whatever ``forward`` or its backward raise; the weights and, unless it was
                the backward of the last pass, the gradients accumulated before are back in place.
        """
        if self.settings.per_instance:
            raise ValueError(
                "per_instance is True: it needs a forward pass for each sentence: backward_each"
            )
        if self.settings.ascent_fraction < 1 and part is None:
            raise ValueError("ascent_fraction is below 1: it needs the part of the batch")
        return self._backward(
            forward,
            *(scale, scale_loss, no_sync),
            *(per_sentence, probe, part),
            momentum=momentum,
            update_size=update_size,
            second_moments=second_moments,
        )

    def backward_each(
        self,
        forwards: Sequence[Callable[[], ForwardPass]],
        scale: float = 1.0,
        scale_loss: Callable[[Tensor], Tensor] = lambda loss: loss,
        no_sync: Callable[[], ContextManager[Any]] = contextlib.nullcontext,
        second_moments: Optional[SecondMoments] = None,
    ) -> List[Outcome]:
        """As :meth:`backward`, for several forward passes with a perturbation each.

        With one a sentence this is per-instance SAM (δ-SAM Eq. 2).
        """
        outcomes = []
        for number, forward in enumerate(forwards, 1):
            with contextlib.nullcontext() if number == len(forwards) else no_sync():
                how: Dict[str, Any] = {"second_moments": second_moments}
                outcomes.append(self._backward(forward, scale, scale_loss, no_sync, **how))
        return outcomes

    def _backward(
        self,
        forward: Callable[[], ForwardPass],
        scale: float,
        scale_loss: Callable[[Tensor], Tensor],
        no_sync: Callable[[], ContextManager[Any]],
        per_sentence: Optional[Callable[[], ForwardPass]] = None,
        probe: Optional[Callable[[], Tensor]] = None,
        part: Optional[Callable[[], ForwardPass]] = None,
        **rest: Any,
    ) -> Outcome:
        def step(this: Pass) -> ForwardPass:
            if this.probes and probe is not None:
                return ForwardPass(this.weigh(probe()))
            seen = part if this.is_part and part is not None else forward
            output = (per_sentence or seen)() if this.weighs else seen()
            loss = this.weigh(_losses(output)) if this.weighs else output.loss
            assert isinstance(loss, Tensor)
            this.backward(loss)
            return output

        def backward(loss: Tensor) -> None:
            if loss.requires_grad:
                scaled = scale_loss(loss if scale == 1.0 else loss * scale)
                with autocast_off(loss.device):
                    scaled.backward()

        return self.run(step, backward, lambda loss: scale_loss(loss * scale), no_sync, **rest)

    def run(
        self,
        step: Callable[[Pass], ForwardPass],
        backward: Callable[[Tensor], None],
        scale_loss: Callable[[Tensor], Tensor] = lambda loss: loss,
        no_sync: Callable[[], ContextManager[Any]] = contextlib.nullcontext,
        compute_dtype: Optional[torch.dtype] = None,
        reach: float = 1.0,
        momentum: Optional[Sequence[Optional[Tensor]]] = None,
        update_size: int = 1,
        second_moments: Optional[SecondMoments] = None,
        holders: Optional[Holders] = None,
    ) -> Outcome:
        """Runs a training step K + 1 times (and δ-SAM's probes before).

        Args:
            step: the training step, forward and backward. It calls the pass's ``backward`` instead
                of the loss's, and does not step the optimizer.
            backward: ``loss.backward()`` as the training loop does it, with its loss scaling.
            scale_loss: that loss scaling alone, linear in the loss.
            no_sync: context in which backward does not reduce gradients across workers.
            compute_dtype: the format that the step computes in (default: autocast's, if it is on).
            reach: multiplies the radius.
            momentum: as of :meth:`backward`.
            update_size: as of :meth:`backward`.
            second_moments: as of :meth:`backward`.
            holders: those among the ``modules`` as they are now, if they are known.

        Returns:
            The outcome. The weights are at w again.

        Raises:
            ValueError: more mini-batches came than ``update_size``, of which only some ascend.
            BackwardPassedBy: the step did not call the pass's ``backward``.
            SentencesPassedBy: the step did not call the pass's ``weigh`` where it weighs sentences.
            OutputsBypassed: the functional risk cannot be had, as the loss depends on the weights
                past the model's outputs.
            Exception: as :meth:`backward`.
        """
        compute_dtype = compute_dtype or autocast_dtype(self.trained[0].device)
        starts = all(weight.grad is None for weight in self.trained)
        position = 0 if starts else self._position
        num_ascents = self._num_ascents(update_size)
        if num_ascents is not None and position >= update_size:
            raise ValueError(
                f"update_size is {update_size}: this is mini-batch {position + 1} since the "
                "gradients were None; an update begins with optimizer.zero_grad(set_to_none=True)"
            )
        if self.settings.needs_second_moments:
            moments = self._aligned("scale is adam", "second moments", second_moments)
            self.weights.second_moments = [moments[i] for i in self.chosen]
        replay = Replay(holders or Holders.among(self.called), self.trained, self.written)
        under_way = RepeatedStep(
            self, step, backward, scale_loss, no_sync, compute_dtype, reach, replay
        )
        try:
            if num_ascents is not None and position >= num_ascents:
                self.weights.go_back(stay=under_way.replay.is_known)
            else:
                self._find_perturbation(under_way, momentum)
                if num_ascents is not None:
                    self.weights.remember()
            outcome = under_way.train()
        finally:
            self.weights.restore()
            self.weights.second_moments = ()
            under_way.finish()
        # Not where it failed: it may be tried again.
        self._position = position + 1
        if num_ascents is not None and self._position == update_size:
            self.weights.forget()
        return outcome

    def _find_perturbation(
        self, under_way: RepeatedStep, momentum: Optional[Sequence[Optional[Tensor]]]
    ) -> None:
        """Runs the passes that move the weights to w + a_K."""
        if not self.settings.needs_pass:
            if self.num_steps == 0:
                under_way.find_writes()
            under_way.follow_momentum(self._aligned("direction is momentum", "momentum", momentum))
            return
        if self.settings.risk == "functional" and self.settings.ascent_fraction < 1:
            under_way.look()
        if self.settings.needs_sentences:
            under_way.probe()
        for _ in range(self.settings.num_steps):
            under_way.ascend()

    def _num_ascents(self, update_size: int) -> Optional[int]:
        """Returns how many mini-batches of an update have an ascent; None for all of them."""
        if self.settings.ascent_share == 1:
            return None
        return math.ceil(self.settings.ascent_share * update_size - 1e-9)

    def _aligned(self, why: str, what: str, values: Optional[Sequence[Any]]) -> List[Any]:
        if values is None or len(values) != len(self.trained):
            raise ValueError(f"{why}: it needs the {what} of each trained weight")
        return list(values)

    def call_unperturbed(self, module: nn.Module, **inputs: Any) -> Any:
        """Calls a module at w from within a pass, wherever the weights are at the time.

        For losses of which one part is to be perturbed and another is not. In the passes that only
        find the perturbation the output has no graph, so that the ascent follows the perturbed
        part; in those whose gradient is trained on, gradients reach the weights from both.
        (A pass of the mean risk is of both kinds, and has a graph.)

        Args:
            module: holds the weights; calling it must be enough to call the model.
            **inputs: of the module.

        Raises:
            OutputsBypassed: under the functional risk, which would train the perturbed part alone.
        """
        if self.settings.risk == "functional":
            raise OutputsBypassed("a part of the loss is computed past the model's outputs, at w")
        ascends = self.current is not None and self.current.ascends
        only_ascends = ascends and self.settings.risk != "mean"
        return call_at(module, self.weights.origins(), not only_ascends, **inputs)


def _losses(output: ForwardPass) -> Tensor:
    if output.losses is None:
        raise ValueError("sentence weights need the loss of each sentence: ForwardPass.losses")
    return output.losses


def layers_of(
    weights: Sequence[Tensor], modules: Sequence[Any]
) -> Tuple[Optional[List[int]], Set[int]]:
    """Numbers the layers: weights that one module holds itself are of one; None if unknown.

    Second, those that hold a matrix, whether it is among the weights or not.
    """
    owners: Dict[int, int] = {}
    with_matrix: Set[int] = set()
    holders = [
        each for module in modules if isinstance(module, nn.Module) for each in module.modules()
    ]
    for number, holder in enumerate(holders, 1):
        for weight in holder.parameters(recurse=False):
            owners.setdefault(id(weight), number)
            if not is_lazy(weight) and weight.dim() > 1:
                with_matrix.add(owners[id(weight)])
    return [owners.get(id(weight), 0) for weight in weights] if owners else None, with_matrix


class _ValueElsewhere(torch.autograd.Function):
    """A weight's stand-in that has another value; its gradient is the weight's."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, value: Tensor) -> Tensor:
        return value.detach()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tuple[Tensor, None]:
        return gradients[0], None


def call_at(
    module: nn.Module, origins: Sequence[Tuple[Tensor, Tensor]], with_graph: bool, **inputs: Any
) -> Any:
    """Calls a module with other values of its weights, which stay in place.

    Args:
        module: what to call; what it computes must depend on the weights it holds, and on no
            recomputation of them in the backward pass (activation checkpointing).
        origins: pairs of a weight and its value, which must not change before the backward pass;
            weights that are not the module's are passed over.
        with_graph: whether gradients reach the weights, as if these were their values.
        **inputs: of the module.

    >>> layer = nn.Linear(1, 1, bias=False)
    >>> weight = layer.weight
    >>> output = call_at(layer, [(weight, torch.full((1, 1), 5.0))], True, input=torch.ones(1, 1))
    >>> output.item()
    5.0
    >>> output.backward()
    >>> weight.grad.item()
    1.0
    """
    names = {id(weight): name for name, weight in module.named_parameters()}
    with contextlib.nullcontext() if with_graph else torch.no_grad():
        values = {
            names[id(weight)]: cast(Any, _ValueElsewhere.apply)(weight, value)
            for weight, value in origins
            if id(weight) in names
        }
        output = functional_call(module, values, (), inputs)
    if not with_graph:
        torch.clear_autocast_cache()  # it would hand out its copies, which have no graph
    return output
