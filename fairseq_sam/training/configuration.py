"""What a sharpness-aware run is to do, carried by its base optimizer: the method, and when."""

import functools
import math
from dataclasses import dataclass
from typing import Any, Optional, Tuple

from fairseq_sam.perturbation import PerturbationSettings


@dataclass(frozen=True)
class Gate:
    """Decides for each update whether it is sharpness-aware.

    Attributes:
        start_epoch: first epoch that is perturbed, counted from 1 as fairseq does.
        start_update: first update that is perturbed, counted from 0.
        interval: perturb only the updates whose number is a multiple of this.
        ramp_updates: how many updates, from the first perturbed one, the radius grows for.
        either: the first of the two starts counts, and not the second.

    Raises:
        ValueError: naming the setting, its value and what is allowed.
    """

    start_epoch: int = 1
    start_update: int = 0
    interval: int = 1
    ramp_updates: int = 0
    either: bool = False

    def __post_init__(self) -> None:
        for name, least in (
            ("start_epoch", 1),
            ("start_update", 0),
            ("interval", 1),
            ("ramp_updates", 0),
        ):
            if getattr(self, name) < least:
                raise ValueError(f"{name} is {getattr(self, name)}: it must be {least} or more")

    def is_open(self, epoch: int, update: int) -> bool:
        """Returns whether this update is perturbed.

        >>> Gate(start_epoch=2, interval=3).is_open(epoch=2, update=6)
        True
        >>> Gate(start_epoch=2, interval=3).is_open(epoch=1, update=6)
        False
        """
        starts = (epoch >= self.start_epoch, update >= self.start_update)
        return (any(starts) if self.either else all(starts)) and update % self.interval == 0

    def reach(self, update: int) -> float:
        """Returns what the radius of an update is multiplied by: it grows linearly, up to 1.

        >>> [Gate(start_update=10, ramp_updates=4).reach(update) for update in (10, 12, 13, 99)]
        [0.25, 0.75, 1.0, 1.0]
        """
        if self.ramp_updates == 0:
            return 1.0
        return min(1.0, (update - self.start_update + 1) / self.ramp_updates)


@dataclass(frozen=True)
class SharpnessAwareConfig:
    """Everything the flags say.

    Attributes:
        method: the registered name, e.g. ``ga_sam``.
        perturbation: the method's parts.
        gate: when the run is perturbed.
        exclude: parameters whose names this pattern is found in are left unperturbed.
        log_gradients: updates from one measurement of the layers' gradients to the next; 0: none.
        update_freq: fairseq's ``--update-freq``, one number an epoch.
    """

    method: str
    perturbation: PerturbationSettings
    gate: Gate
    exclude: Optional[str] = None
    log_gradients: int = 0
    update_freq: Tuple[int, ...] = (1,)

    def update_size(self, epoch: int) -> int:
        """Returns the number of micro-batches of an update."""
        return self.update_freq[min(epoch, len(self.update_freq)) - 1]

    def describe(self) -> str:
        """Returns one line for the log."""
        p, gate = self.perturbation, self.gate
        groups = f" per {p.granularity}" if p.granularity else ""
        return (
            f"{self.method}: rho {_described(p)} ({p.norm}), scale {p.scale}{groups}, "
            f"direction {p.direction}, {p.risk} risk, {p.num_steps} step(s), scales see the "
            f"{p.loss_reduction} loss; from epoch {gate.start_epoch}"
            f"{' or' if gate.either else ','} update {gate.start_update}, "
            f"every {gate.interval} update(s)"
            + (f", growing for {gate.ramp_updates}" if gate.ramp_updates else "")
            + (f"; {p.weighting} sentence weights" if p.weighting != "uniform" else "")
            + (f"; ascent on {p.ascent_fraction:g} of the batch" if p.ascent_fraction < 1 else "")
            + (f"; unperturbed: {self.exclude}" if self.exclude else "")
            + ("; rho is 0: the base optimizer alone" if p.is_off else "")
        )


def _described(settings: PerturbationSettings) -> str:
    if settings.share is None:
        return settings.describe_radius()
    most = "" if math.isinf(settings.rho) else f", at most {settings.rho:g}"
    return f"for {settings.describe_radius()} of the loss{most}"


def carry(base: Any, config: SharpnessAwareConfig) -> None:
    """Hangs the configuration on a base optimizer, where the seam finds it.

    From then on its step stops the run where the gradients have not gone through the seam.
    """
    base.sharpness_aware, base.has_trained = config, False
    step = base.step

    @functools.wraps(step)
    def checked_step(*args: Any, **kwargs: Any) -> Any:
        if base.sharpness_aware is not None and not base.has_trained:
            raise SystemExit(
                f"error: argument --optimizer: {base.sharpness_aware.method} was to take a step "
                "that did not go through task.train_step, and would not be perturbed"
            )
        base.has_trained = False
        return step(*args, **kwargs)

    base.step = checked_step


def carrier_of(optimizer: Any) -> Optional[Any]:
    """Returns the base optimizer that carries the configuration, as ``sharpness_aware``.

    Args:
        optimizer: what fairseq's trainer holds: the base optimizer itself, or ``FP16Optimizer``,
            ``MemoryEfficientFP16Optimizer`` or ``AMPOptimizer`` around it.

    Returns:
        None where the run is not sharpness-aware.
    """
    base = base_of(optimizer)
    return base if getattr(base, "sharpness_aware", None) is not None else None


def base_of(optimizer: Any) -> Any:
    """Returns the base optimizer inside what fairseq's trainer holds, whatever it carries."""
    for wrapped in ("fp32_optimizer", "wrapped_optimizer"):
        optimizer = getattr(optimizer, wrapped, optimizer)
    return optimizer
