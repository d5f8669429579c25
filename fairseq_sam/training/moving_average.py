"""The moving average of the weights that fairseq keeps, for a criterion to compare a model with."""

import functools
from typing import Any, Callable, Optional

from torch import nn

from fairseq_sam.training.parameters import unwrap


class MovingAverage:
    """What ``--store-ema`` keeps: updated, saved and restored by fairseq's trainer.

    Attributes:
        model: the model at the average, from the first training step on; None without
            ``--store-ema``.
    """

    model: Optional[nn.Module] = None
    _trained: Optional[nn.Module] = None

    def note(self, trained: Any, average: Optional[nn.Module]) -> None:
        """Notes which model a step trains, and the average of it."""
        self._trained, self.model = trained, average

    def of(self, part: nn.Module) -> Optional[nn.Module]:
        """Returns the average of the model or, in multilingual tasks, of a part of it.

        Args:
            part: what the task gives the criterion; None is returned if it is no part.
        """
        if self.model is None or self._trained is None:
            return None
        wanted = unwrap(part)
        for name, module in unwrap(self._trained).named_modules():
            if module is wanted:
                return self.model.get_submodule(name)
        return None


def moving_average(task: Any) -> MovingAverage:
    """Returns the moving average of the model that a task trains.

    fairseq's trainer hands it to the ``train_step`` of tasks that say ``uses_ema``. This says so
    for the task, and takes it out of the arguments, which a task without a use for it would refuse.

    Args:
        task: the task that builds the criterion.
    """
    average: Optional[MovingAverage] = getattr(task, "moving_average", None)
    if average is None:
        average = task.moving_average = MovingAverage()
        own_use = getattr(task, "uses_ema", False)
        task.uses_ema = True
        task.train_step = _taking(average, task.train_step, own_use)
        task.valid_step = _taking(average, task.valid_step, own_use)
    return average


def _taking(average: MovingAverage, step: Callable[..., Any], own_use: bool) -> Callable[..., Any]:
    @functools.wraps(step)
    def taking(
        sample: Any, model: Any, *args: Any, ema_model: Optional[nn.Module] = None, **kwargs: Any
    ) -> Any:
        average.note(model, ema_model)
        if own_use:
            kwargs["ema_model"] = ema_model
        return step(sample, model, *args, **kwargs)

    return taking
