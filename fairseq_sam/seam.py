"""Where the plugin meets fairseq's training loop: a criterion call becomes replayable.

fairseq's trainer knows nothing of several passes a step: it calls ``task.train_step``, which calls
``criterion(model, sample)`` and ``optimizer.backward(loss)``, for each micro-batch. So the work
happens at the criterion. When a task builds its criterion, :func:`install` sees to it that

* ``task.begin_epoch`` and ``task.train_step`` tell the seam the epoch, the update and the
  optimizer, whose configuration says whether and how to perturb;
* ``criterion.forward``, called within a training step that is to be perturbed, runs the inner
  passes and returns a loss whose ``backward`` yields the sharpness-aware gradient;
* ``task.reduce_metrics`` logs what there is to know of the perturbation and, on demand, of the
  layers' gradients.

With any other optimizer all of these only pass their arguments on. The perturbation is computed per
micro-batch and per worker (the m-sharpness of Foret et al. 2021, §4.1).
"""

import contextlib
import functools
from typing import Any, Callable, Dict, List, NamedTuple, Optional, Tuple

import torch
from fairseq import criterions
from torch import Tensor, nn

from fairseq_sam import metrics
from fairseq_sam.criterion_call import CriterionCall, CriterionOutput
from fairseq_sam.gradient_log import GradientLog
from fairseq_sam.optim import sharpness_aware_config
from fairseq_sam.optim.flags import SharpnessAwareConfig, require_sentences
from fairseq_sam.parameters import select_perturbed, trained_parameters, unwrap
from fairseq_sam.perturbation import SharpnessAwareLoss
from fairseq_sam.perturbation.autocast import autocast_off


class TrainStep(NamedTuple):
    """What the task was told about the micro-batch under way."""

    optimizer: Any
    config: SharpnessAwareConfig
    update_num: int
    ignore_grad: bool

    def is_perturbed(self, epoch: int) -> bool:
        """Returns whether this step is sharpness-aware."""
        return self.config.perturbation.rho > 0 and self.config.gate.is_open(epoch, self.update_num)


class Seam:
    """Connects one task, and the criterions it builds, with the perturbation.

    Attributes:
        epoch: the epoch under way, counted from 1.
        step: the training step under way, None outside of one and in runs that are not
            sharpness-aware.
    """

    def __init__(self) -> None:
        self.epoch = 1
        self.step: Optional[TrainStep] = None
        self._replaying = False
        self._perturbing: Optional[SharpnessAwareLoss] = None
        self._losses: Dict[Tuple[int, SharpnessAwareConfig], SharpnessAwareLoss] = {}
        self._gradient_log: Optional[GradientLog] = None

    def restore(self) -> None:
        """Puts all weights back; a no-op unless a step was interrupted."""
        for loss in self._losses.values():
            loss.restore()

    @property
    def is_perturbing(self) -> bool:
        """Whether the criterion is being called for a sharpness-aware loss."""
        return self._perturbing is not None

    def call_unperturbed(self, model: nn.Module, **inputs: Any) -> Any:
        """Calls the model at the weights without the perturbation, from within a criterion.

        For criterions of which a part is not to be perturbed. Outside of a sharpness-aware step
        this is the model's ordinary call; within, data-parallel wrappers are passed by.

        Args:
            model: what the criterion was given.
            **inputs: the model's.
        """
        if self._perturbing is None:
            return model(**inputs)
        return self._perturbing.call_unperturbed(unwrap(model), **inputs)

    def note_gradients(self, step: TrainStep, model: nn.Module, criterion: nn.Module) -> None:
        """Sees to it that the norms of the layers' gradients are logged where flags say so."""
        if not step.config.log_gradients:
            return
        if self._gradient_log is None or self._gradient_log.optimizer is not step.optimizer:
            self._gradient_log = GradientLog(
                trained_parameters(model, criterion), step.optimizer, step.config.log_gradients
            )
        self._gradient_log.update_num = step.update_num

    def log(self, logging_outputs: List[Dict[str, Any]], criterion: Any) -> None:
        """Logs what there is to know of the perturbation and of the gradients."""
        metrics.log(logging_outputs, criterion)
        if self._gradient_log is not None:
            self._gradient_log.log()

    @contextlib.contextmanager
    def training(self, step: Optional[TrainStep]) -> Any:
        """Marks a training step as under way, and leaves the weights in place however it ends."""
        outer, self.step = self.step, step
        try:
            yield
        finally:
            self.step = outer
            self.restore()

    def evaluate(
        self, criterion: nn.Module, forward: Callable[..., CriterionOutput], args: Any, kwargs: Any
    ) -> CriterionOutput:
        """Stands in for ``criterion.forward``."""
        if self._replaying:
            return forward(*args, **kwargs)
        step = self.step
        if step is None or not (criterion.training and torch.is_grad_enabled()):
            self.restore()
            return forward(*args, **kwargs)
        call = CriterionCall(criterion, forward, args, kwargs)
        sharpness_aware = self._loss_for(call.model, criterion, step.config)
        settings = step.config.perturbation
        if not step.is_perturbed(self.epoch):
            loss, sample_size, logging_output = forward(*args, **kwargs)
            return loss, sample_size, metrics.describe_off(logging_output)
        if step.ignore_grad:
            loss, sample_size, logging_output = forward(*args, **kwargs)
            keys = metrics.keys_of(settings, sharpness_aware.weights)
            return loss, sample_size, metrics.describe_dummy(logging_output, keys)
        self._replaying, self._perturbing = True, sharpness_aware
        try:
            return self._perturb(call, sharpness_aware, step)
        finally:
            self._replaying, self._perturbing = False, None

    def _perturb(
        self, call: CriterionCall, sharpness_aware: SharpnessAwareLoss, step: TrainStep
    ) -> CriterionOutput:
        """Evaluates the risk; sentence by sentence where each has a perturbation of its own."""
        settings = step.config.perturbation
        no_sync = getattr(call.model, "no_sync", contextlib.nullcontext)
        scale_loss = _loss_scaling(step.optimizer)
        calls = call.sentences() if settings.per_instance else [call]
        outcomes = []
        for each in calls:
            is_last = each is calls[-1]  # whose backward pass is the caller's
            with contextlib.nullcontext() if is_last else no_sync():
                outcome = sharpness_aware(
                    each.replay,
                    scale_loss=scale_loss,
                    no_sync=no_sync,
                    per_sentence=each.replay_sentences if settings.needs_sentences else None,
                    probe=each.probe_sentences if settings.needs_sentences else None,
                )
                if not is_last:
                    with autocast_off(outcome.loss.device):
                        scale_loss(outcome.loss).backward()
            outcomes.append(outcome)
        sample_size = sum(outcome.clean.sample_size for outcome in outcomes)
        return outcomes[-1].loss, sample_size, metrics.describe_on(outcomes)

    def _loss_for(
        self, model: nn.Module, criterion: nn.Module, config: SharpnessAwareConfig
    ) -> SharpnessAwareLoss:
        key = (id(model), config)
        if key not in self._losses:
            if config.perturbation.needs_sentences:
                try:
                    require_sentences(type(criterion), _registered_name(criterion))
                except ValueError as error:
                    raise SystemExit(f"error: {error}") from None
            if config.perturbation.per_instance and getattr(criterion, "couples_sentences", False):
                raise SystemExit(
                    f"error: argument --criterion: {_registered_name(criterion)} needs the other "
                    "sentences of the batch: it cannot be perturbed sentence by sentence"
                )
            named = trained_parameters(model, criterion)
            self._losses[key] = SharpnessAwareLoss(
                trained=[weight for _, weight in named],
                settings=config.perturbation,
                perturbed=select_perturbed(named, config.exclude),
                model=model,
            )
        return self._losses[key]


def _registered_name(criterion: nn.Module) -> str:
    for name, cls in criterions.CRITERION_REGISTRY.items():
        if cls is type(criterion):
            return str(name)
    return type(criterion).__name__


def _loss_scaling(optimizer: Any) -> Callable[[Tensor], Tensor]:
    scaler = getattr(optimizer, "scaler", None)
    return (lambda loss: loss) if scaler is None else scaler.scale


def connect(task: Any, criterion: nn.Module) -> None:
    """Connects a task and a criterion that it built."""
    seam = getattr(task, "sharpness_aware_seam", None)
    if seam is None:
        seam = task.sharpness_aware_seam = Seam()
        _wrap_task(task, seam)
    forward = criterion.forward

    @functools.wraps(forward)
    def replayable(*args: Any, **kwargs: Any) -> CriterionOutput:
        return seam.evaluate(criterion, forward, args, kwargs)

    criterion.forward = replayable  # type: ignore[method-assign]


def _wrap_task(task: Any, seam: Seam) -> None:
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
        config = sharpness_aware_config(optimizer)
        step = TrainStep(optimizer, config, update_num, ignore_grad) if config else None
        if step is not None:
            seam.note_gradients(step, model, criterion)
        with seam.training(step):
            return train_step(
                sample, model, criterion, optimizer, update_num, ignore_grad, **kwargs
            )

    @functools.wraps(reduce_metrics)
    def with_perturbation(logging_outputs: List[Dict[str, Any]], criterion: Any) -> Any:
        reduce_metrics(metrics.without_ours(logging_outputs), criterion)
        seam.log(logging_outputs, criterion)

    task.begin_epoch, task.train_step = noting_epoch, perturbed_step
    task.reduce_metrics = with_perturbation


def install() -> None:
    """Makes every criterion that a task builds from now on replayable."""
    if getattr(criterions.build_criterion, "makes_replayable", False):
        return
    build = criterions.build_criterion

    @functools.wraps(build)
    def build_criterion(cfg: Any, task: Any, *args: Any, **kwargs: Any) -> Any:
        criterion = build(cfg, task, *args, **kwargs)
        connect(task, criterion)
        return criterion

    build_criterion.makes_replayable = True  # type: ignore[attr-defined]
    criterions.build_criterion = build_criterion
