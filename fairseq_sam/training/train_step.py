"""A call of ``task.train_step`` that can be made again, and what stands in for its parts."""

import contextlib
from collections import defaultdict
from typing import Any, Callable, Dict, Iterator, List, NamedTuple, Sequence, Tuple

import torch
from torch import Tensor, nn

from fairseq_sam.perturbation import Pass, SharpnessAwareLoss
from fairseq_sam.perturbation.replay import RandomState, copy_batch
from fairseq_sam.perturbation.step import BackwardPassedBy
from fairseq_sam.training.parameters import unwrap

StepOutput = Tuple[Any, Any, Dict[str, Any]]


class TrainStep(NamedTuple):
    """A call of ``task.train_step`` that can be made again, with other batches and criterions."""

    train_step: Callable[..., StepOutput]
    model: Any
    criterion: Any
    optimizer: Any
    update_num: int
    ignore_grad: bool
    kwargs: Dict[str, Any]

    def __call__(self, sample: Any, criterion: Any) -> StepOutput:
        """Runs the step on a copy of the batch, which it may change."""
        return self.train_step(
            copy_batch(sample),
            self.model,
            criterion,
            self.optimizer,
            self.update_num,
            self.ignore_grad,
            **self.kwargs,
        )

    @contextlib.contextmanager
    def no_sync(self) -> Iterator[None]:
        """Context in which backward does not reduce gradients across workers."""
        with contextlib.ExitStack() as stack:
            for module in (self.model, self.criterion):
                if hasattr(module, "no_sync"):
                    stack.enter_context(module.no_sync())
            yield


class WeighingCriterion:
    """Behaves like ``criterion`` towards a task, and gives a loss whose sentences are weighed.

    Args:
        criterion: a per-sentence criterion, in a data-parallel wrapper or not.
        this: the pass under way.
    """

    def __init__(self, criterion: Any, this: Pass) -> None:
        self._criterion: Any = unwrap(criterion)
        self._this = this

    def __call__(self, model: Any, sample: Dict[str, Any]) -> Tuple[Tensor, Any, Dict[str, Any]]:
        """Returns loss, sample size and logging output; the losses alone where these are wanted.

        In float64, for differences of the losses are looked at.
        """
        if self._this.probes:
            losses = self._criterion.losses_only(model, sample, dtype=torch.float64)
            return self._this.weigh(losses), 1, defaultdict(float)
        losses, sample_size, logging_output = self._criterion.per_sentence_losses(
            model, sample, dtype=torch.float64
        )
        return self._this.weigh(losses), sample_size, logging_output

    def __getattr__(self, name: str) -> Any:
        return getattr(self._criterion, name)


class Translations:
    """Lets the passes of a step have the translations that the first one generated, at w.

    fairseq's ``online_backtranslation`` generates the source of its mini-batch in ``train_step``.
    At perturbed weights it would be another mini-batch. The generators are those that the task
    keeps in ``sequence_generators``.

    Args:
        task: the task; most have no such generators.
        tensors: tensors on the devices whose random numbers are drawn, usually the weights.
    """

    def __init__(self, task: Any, tensors: Sequence[Tensor]) -> None:
        self._tensors = tensors
        held = getattr(task, "sequence_generators", None)
        generators = held.values() if isinstance(held, dict) else []
        self._generators = list({id(each): each for each in generators}.values())
        self._generated: List[Tuple[Any, RandomState]] = []
        self.are_made = bool(self._generators)

    @contextlib.contextmanager
    def of_pass(self, this: Pass) -> Iterator[None]:
        """Context of one pass of the step."""
        calls: List[Any] = []

        def remembering(generate: Callable[..., Any]) -> Callable[..., Any]:
            def remembered(*args: Any, **kwargs: Any) -> Any:
                number = len(calls)
                calls.append(generate)
                if number == len(self._generated):
                    generated = this.at_w(lambda: generate(*args, **kwargs))
                    self._generated.append((generated, RandomState(self._tensors)))
                generated, state = self._generated[number]
                state.restore()
                return generated

            return remembered

        with contextlib.ExitStack() as stack:
            for generator in self._generators:
                remembered = remembering(generator.generate)
                stack.enter_context(replaced(generator, "generate", remembered))
            yield


def refuse_to_go_backward(loss: Tensor, *args: Any, **kwargs: Any) -> None:
    """Stands in for ``Tensor.backward`` where ``optimizer.backward`` is to be called."""
    raise BackwardPassedBy("loss.backward() in a step that is to call optimizer.backward(loss)")


@contextlib.contextmanager
def replaced(holder: Any, name: str, value: Any) -> Iterator[None]:
    """Context in which an object, or a class, has another attribute."""
    was_own, before = name in vars(holder), vars(holder).get(name)
    setattr(holder, name, value)
    try:
        yield
    finally:
        if was_own:
            setattr(holder, name, before)
        else:
            delattr(holder, name)


@contextlib.contextmanager
def once_a_step(model: nn.Module, name: str, sharpness_aware: SharpnessAwareLoss) -> Iterator[None]:
    """Context in which a method of the model is called once, in whatever pass calls it first.

    Called again, a teacher that follows the model (data2vec) would follow it twice a step.
    """
    original = getattr(model, name, None)
    if original is None:
        yield
        return
    called: List[bool] = []

    def once(*args: Any, **kwargs: Any) -> None:
        if called or sharpness_aware.current is None:
            return
        called.append(True)

        def call() -> None:
            stand_in = vars(model).pop(name)  # a teacher is a copy of the model, without it
            try:
                original(*args, **kwargs)
            finally:
                vars(model)[name] = stand_in

        sharpness_aware.current.once(call)

    with replaced(model, name, once):
        yield
