"""Where the plugin meets fairseq's training loop: a training step that can be repeated.

fairseq's trainer calls ``task.train_step`` for each micro-batch, forward and backward in one, and
``optimizer.step`` afterwards. When a task builds its criterion, :func:`install` sees to it that

* ``task.begin_epoch`` tells the seam the epoch;
* ``task.train_step``, where the optimizer's configuration says that the step is to be perturbed,
  runs K + 1 times. Each time it gets a copy of the batch, and instead of
  ``optimizer.backward`` that of the pass (:class:`~fairseq_sam.perturbation.Pass`);
* ``task.reduce_metrics`` logs what there is to know of the perturbation and, on demand, of the
  layers' gradients.

Whatever a task does in its step is perturbed with it: its own loss, several criterion calls,
weights on losses. What else a step does to the model, ``model.set_num_updates``, happens once.
With any other optimizer all of these only pass their arguments on. The perturbation is computed per
micro-batch and per worker (the m-sharpness of Foret et al. 2021, §4.1). A figure of the step:
docs/how_it_works.md.
"""

from __future__ import annotations

import contextlib
import functools
import random
from collections import defaultdict
from typing import Any, Callable, Dict, Iterator, List, NamedTuple, Optional, Sequence, Tuple

import torch
from fairseq import criterions
from fairseq.data import data_utils
from fairseq.distributed import utils as distributed_utils
from fairseq.modules.sinusoidal_positional_embedding import SinusoidalPositionalEmbedding
from fairseq.optim.amp_optimizer import AMPOptimizer
from omegaconf import DictConfig
from torch import Tensor, nn

from fairseq_sam.host.patching import rebind
from fairseq_sam.perturbation import ForwardPass, Outcome, Pass, SharpnessAwareLoss
from fairseq_sam.perturbation.outputs import OutputsBypassed
from fairseq_sam.perturbation.replay import (
    CONSTANTS,
    Holders,
    RandomState,
    autocast_dtype,
    copy_batch,
    numpy_lock,
)
from fairseq_sam.perturbation.step import BackwardPassedBy, SentencesPassedBy
from fairseq_sam.training import metrics
from fairseq_sam.training.configuration import SharpnessAwareConfig, carrier_of
from fairseq_sam.training.gradient_log import GradientLog
from fairseq_sam.training.optimizer_state import momentum_of, second_moments_of
from fairseq_sam.training.optimizers import check_configuration
from fairseq_sam.training.parameters import named_parameters, select_perturbed, unwrap
from fairseq_sam.training.refusals import (
    criterion_name,
    is_distributed,
    refuse_checkpointing,
    refuse_collectives,
    refuse_criterion,
    stop,
)
from fairseq_sam.training.samples import split_sentences, sub_batch

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


class Seam:
    """Connects one task with the perturbation.

    Attributes:
        epoch: the epoch under way, counted from 1.
    """

    def __init__(self, task: Any) -> None:
        self.epoch = 1
        self._task = task
        self._key: Any = None
        self._loss: Optional[SharpnessAwareLoss] = None
        self._gradient_log: Optional[GradientLog] = None
        self._uphill = metrics.UphillCheck()
        self._has_looked_ahead = False

    @property
    def is_perturbing(self) -> bool:
        """Whether a step that is sharpness-aware is under way."""
        return self._loss is not None and self._loss.current is not None

    def call_unperturbed(self, model: nn.Module, **inputs: Any) -> Any:
        """Calls the model at the weights without the perturbation, from within a criterion.

        For criterions of which a part is not to be perturbed. Outside of a sharpness-aware step
        this is the model's ordinary call; within, data-parallel wrappers are passed by.

        Args:
            model: what the criterion was given.
            **inputs: the model's.

        Raises:
            SystemExit: the model recomputes activations in the backward pass, when the weights
                are elsewhere.
        """
        if self._loss is None or self._loss.current is None:
            return model(**inputs)
        refuse_checkpointing(unwrap(model))
        return self._loss.call_unperturbed(unwrap(model), **inputs)

    def train(self, step: TrainStep, sample: Any) -> StepOutput:
        """Stands in for ``task.train_step``."""
        if self.is_perturbing:  # a step within a step, of a task that takes its batch apart
            return step.train_step(sample, *step[1:6], **step.kwargs)
        carrier: Any = carrier_of(step.optimizer)
        carrier.has_trained = True
        config: SharpnessAwareConfig = carrier.sharpness_aware
        self._note_gradients(step, config)
        is_open = config.gate.is_open(self.epoch, step.update_num)
        if config.perturbation.is_off or not is_open:
            self._look_ahead(step, config, sample)
            loss, sample_size, logging_output = step.train_step(sample, *step[1:6], **step.kwargs)
            return loss, sample_size, metrics.describe_off(logging_output)
        model = unwrap(step.model)
        called = [model, unwrap(step.criterion), *_called_by(self._task)]
        holders = Holders.among(called)
        sharpness_aware = self._loss_for(step, config, called, holders.weights())
        samples = [sample]
        if config.perturbation.per_instance:
            samples = self._sentences(step, sample)
        how = (config.gate.reach(step.update_num), config.update_size(self.epoch), holders)
        with once_a_step(model, "set_num_updates", sharpness_aware):
            outcomes = [
                self._perturb(step, part, sharpness_aware, *how, is_last=number == len(samples))
                for number, part in enumerate(samples, 1)
            ]
        for outcome in outcomes:
            self._uphill.note(outcome)
        losses: List[Any] = [outcome.logged.loss for outcome in outcomes]
        sizes: List[Any] = [outcome.logged.sample_size for outcome in outcomes]
        return sum(losses), sum(sizes), metrics.describe_on(outcomes)

    def _perturb(
        self,
        step: TrainStep,
        sample: Any,
        sharpness_aware: SharpnessAwareLoss,
        reach: float,
        update_size: int,
        holders: Holders,
        is_last: bool,
    ) -> Outcome:
        """Repeats the step; its gradient joins those of the micro-batches before."""
        optimizer, translations = step.optimizer, Translations(self._task, sharpness_aware.trained)
        optimizer_backward = optimizer.backward
        fraction = sharpness_aware.settings.ascent_fraction
        part = sample if fraction == 1 else self._part(step, sample, fraction)

        def run(this: Pass) -> ForwardPass:
            criterion = WeighingCriterion(step.criterion, this) if this.weighs else step.criterion
            with replaced(optimizer, "backward", this.backward), translations.of_pass(this):
                return ForwardPass(*step(part if this.is_part else sample, criterion))

        def backward(loss: Tensor) -> None:
            with replaced(torch.Tensor, "backward", torch_backward):
                optimizer_backward(loss)

        torch_backward = torch.Tensor.backward
        momentum = second_moments = None
        if not sharpness_aware.settings.needs_pass:
            momentum = momentum_of(optimizer, sharpness_aware.trained)
        if sharpness_aware.settings.needs_second_moments:
            second_moments = second_moments_of(optimizer, sharpness_aware.trained)
        scaler = getattr(optimizer, "scaler", None)
        try:
            with contextlib.nullcontext() if is_last else step.no_sync(), replaced(
                torch.Tensor, "backward", refuse_to_go_backward
            ):
                return sharpness_aware.run(
                    run,
                    backward=backward,
                    scale_loss=_as_it_is if scaler is None else scaler.scale,
                    no_sync=step.no_sync,
                    compute_dtype=_compute_dtype(optimizer, sharpness_aware.trained[0].device),
                    reach=reach,
                    momentum=momentum,
                    update_size=update_size,
                    second_moments=second_moments,
                    holders=holders,
                )
        except BackwardPassedBy:
            stop(
                f"argument --task: {type(self._task).__name__}.train_step calls loss.backward() "
                "itself: it must call optimizer.backward(loss) to be sharpness-aware"
            )
        except SentencesPassedBy:
            stop(
                f"argument --task: {type(self._task).__name__}.train_step does not call "
                "criterion(model, sample), in which δ-SAM weighs the sentences"
            )
        except OutputsBypassed:
            stop(
                "argument --sam-risk: functional cannot be had with "
                f"{criterion_name(unwrap(step.criterion))}: its loss depends on weights past the "
                "outputs that the model returns; use perturbed"
            )

    def _look_ahead(self, step: TrainStep, config: SharpnessAwareConfig, sample: Any) -> None:
        """Refuses at the run's first step what its first perturbed one would, if that shows it."""
        settings = config.perturbation
        if self._has_looked_ahead or settings.is_off:
            return
        self._has_looked_ahead = True
        self._refuse(step, config)
        named = named_parameters(step.model, step.criterion)
        select_perturbed(named, config.exclude, may_thaw=True)
        if settings.per_instance:
            self._sentences(step, sample)
        elif settings.ascent_fraction < 1:
            self._part(step, sample, settings.ascent_fraction)

    def _refuse(self, step: TrainStep, config: SharpnessAwareConfig) -> None:
        refuse_criterion(unwrap(step.criterion), config)
        if config.perturbation.per_instance:
            refuse_collectives(unwrap(step.model))

    def _sentences(self, step: TrainStep, sample: Any) -> List[Any]:
        try:
            self._refuse_made_batch()
            return split_sentences(sample, self._padding_of(step))
        except ValueError as error:
            stop(f"argument --optimizer: a perturbation a sentence cannot be had here: {error}")

    def _part(self, step: TrainStep, sample: Any, fraction: float) -> Any:
        """Returns the part of the mini-batch that the ascent sees.

        It is drawn by the seed, the update and the worker, and by nothing else.
        """
        rank = distributed_utils.get_data_parallel_rank() if is_distributed() else 0
        draw = random.Random(f"{torch.initial_seed()} {step.update_num} {rank}").random()
        try:
            self._refuse_made_batch()
            return sub_batch(sample, self._padding_of(step), fraction, draw)
        except ValueError as error:
            stop(f"argument --sam-ascent-fraction: a part of the batch cannot be had here: {error}")

    def _refuse_made_batch(self) -> None:
        if generators_of(self._task):
            raise ValueError(f"{type(self._task).__name__} makes its batch in the step")

    def _padding_of(self, step: TrainStep) -> int:
        padding_idx = getattr(step.criterion, "padding_idx", None)
        if padding_idx is not None:
            return int(padding_idx)
        names = ("source_dictionary", "target_dictionary")
        dictionaries = [getattr(self._task, name, None) for name in names]
        found = next((each for each in dictionaries if hasattr(each, "pad")), None)
        return -1 if found is None else int(found.pad())

    def _loss_for(
        self, step: TrainStep, config: SharpnessAwareConfig, called: List[Any], held: List[int]
    ) -> SharpnessAwareLoss:
        """Returns what computes the perturbed gradient; another one for other weights."""
        key = (config, id(step.model), id(step.criterion), held)
        if self._loss is None or key != self._key:
            named = named_parameters(step.model, step.criterion)
            self._refuse(step, config)
            self._loss = None  # its snapshot goes before there is another
            self._loss = SharpnessAwareLoss(
                trained=[weight for _, weight in named],
                settings=config.perturbation,
                perturbed=select_perturbed(named, config.exclude),
                modules=called,
                outputs_of=step.model,
            )
            self._key = key
        return self._loss

    def _note_gradients(self, step: TrainStep, config: SharpnessAwareConfig) -> None:
        """Sees to it that the norms of the layers' gradients are logged where flags say so."""
        if not config.log_gradients:
            return
        if self._gradient_log is None or self._gradient_log.optimizer is not step.optimizer:
            self._gradient_log = GradientLog(
                named_parameters(step.model, step.criterion), step.optimizer, config.log_gradients
            )
        self._gradient_log.update_num = step.update_num

    def log(self, logging_outputs: List[Dict[str, Any]], criterion: Any) -> None:
        """Logs what there is to know of the perturbation and of the gradients."""
        metrics.log(logging_outputs, criterion)
        if self._gradient_log is not None:
            self._gradient_log.log()


def _as_it_is(loss: Tensor) -> Tensor:
    return loss


def _called_by(task: Any) -> List[Any]:
    """Returns a task, whose attributes a step may change, and the modules that it holds."""
    return [task, *(held for held in vars(task).values() if isinstance(held, nn.Module))]


def _compute_dtype(optimizer: Any, device: torch.device) -> Optional[torch.dtype]:
    """Returns the format of fairseq's autocast, which it turns on within the step (``--amp``)."""
    if not (isinstance(optimizer, AMPOptimizer) and device.type == "cuda"):
        return None
    with torch.autocast(device.type):
        return autocast_dtype(device)


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


def generators_of(task: Any) -> List[Any]:
    """Returns what a task generates its mini-batches with in the step, each once."""
    held = getattr(task, "sequence_generators", None)
    generators = held.values() if isinstance(held, dict) else []
    return list({id(each): each for each in generators}.values())


class Translations:
    """Lets the passes of a step have the translations that the first one generated, at w.

    fairseq's ``online_backtranslation`` generates the source of its mini-batch in ``train_step``.
    At perturbed weights it would be another mini-batch. The generators are :func:`generators_of`.

    Args:
        task: the task; most have no such generators.
        tensors: tensors on the devices whose random numbers are drawn, usually the weights.
    """

    def __init__(self, task: Any, tensors: Sequence[Tensor]) -> None:
        self._tensors = tensors
        self._generators = generators_of(task)
        self._generated: List[Tuple[Any, RandomState]] = []

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


def _share_numpy() -> None:
    """Lets fairseq's data sets have numpy's generator for themselves while they have it seeded.

    Their thread (``--num-workers 0``) seeds it, draws and puts the state back. A step that looks at
    the state, or puts it back, must not come in between.
    """
    seeded = data_utils.numpy_seed

    @contextlib.contextmanager
    def numpy_seed(*args: Any, **kwargs: Any) -> Iterator[None]:
        with numpy_lock(), seeded(*args, **kwargs):
            yield

    rebind("numpy_seed", seeded, numpy_seed)


def connect(task: Any) -> None:
    """Connects a task with the perturbation, once."""
    if hasattr(task, "sharpness_aware_seam"):
        return
    seam = task.sharpness_aware_seam = Seam(task)
    begin_epoch, train_step, reduce_metrics = task.begin_epoch, task.train_step, task.reduce_metrics

    @functools.wraps(begin_epoch)
    def noting_epoch(epoch: int, model: Any, *args: Any, **kwargs: Any) -> Any:
        seam.epoch = epoch
        return begin_epoch(epoch, model, *args, **kwargs)

    @functools.wraps(train_step)
    def perturbed_step(
        sample: Any,
        model: Any,
        criterion: Any,
        optimizer: Any,
        update_num: int,
        ignore_grad: bool = False,
        **kwargs: Any,
    ) -> Any:
        if carrier_of(optimizer) is None:
            return train_step(
                sample, model, criterion, optimizer, update_num, ignore_grad, **kwargs
            )
        step = TrainStep(train_step, model, criterion, optimizer, update_num, ignore_grad, kwargs)
        return seam.train(step, sample)

    @functools.wraps(reduce_metrics)
    def with_perturbation(logging_outputs: List[Dict[str, Any]], criterion: Any) -> Any:
        reduce_metrics(metrics.without_ours(logging_outputs), criterion)
        seam.log(logging_outputs, criterion)

    task.begin_epoch, task.train_step = noting_epoch, perturbed_step
    task.reduce_metrics = with_perturbation


def install() -> None:
    """Connects every task that builds a criterion from now on."""
    if getattr(criterions.build_criterion, "connects_tasks", False):
        return
    _share_numpy()
    CONSTANTS[SinusoidalPositionalEmbedding] = ("weights",)
    build = criterions.build_criterion

    @functools.wraps(build)
    def build_criterion(cfg: Any, task: Any, *args: Any, **kwargs: Any) -> Any:
        run = cfg._get_parent() if isinstance(cfg, DictConfig) else None
        if run is not None and "optimizer" in run:
            check_configuration(run.optimizer)  # before data is read
        criterion = build(cfg, task, *args, **kwargs)
        connect(task)
        return criterion

    build_criterion.connects_tasks = True  # type: ignore[attr-defined]
    criterions.build_criterion = build_criterion
