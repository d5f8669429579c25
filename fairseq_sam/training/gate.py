"""When a run is perturbed: epochs, updates and intervals."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Gate:
    """Decides for each update whether it is sharpness-aware.

    Attributes:
        start_epoch: first epoch that is perturbed, counted from 1 as fairseq does.
        start_update: first update that is perturbed, counted from 0.
        interval: perturb only the updates whose number is a multiple of this.
        ramp_updates: how many updates, from the first perturbed one, the radius grows for.

    Raises:
        ValueError: naming the setting, its value and what is allowed.
    """

    start_epoch: int = 1
    start_update: int = 0
    interval: int = 1
    ramp_updates: int = 0

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
        """Returns whether this update is perturbed; all conditions must hold.

        >>> Gate(start_epoch=2, interval=3).is_open(epoch=2, update=6)
        True
        >>> Gate(start_epoch=2, interval=3).is_open(epoch=1, update=6)
        False
        """
        return (
            epoch >= self.start_epoch
            and update >= self.start_update
            and update % self.interval == 0
        )

    def reach(self, update: int) -> float:
        """Returns what the radius of an update is multiplied by: it grows linearly, up to 1.

        >>> [Gate(start_update=10, ramp_updates=4).reach(update) for update in (10, 12, 13, 99)]
        [0.25, 0.75, 1.0, 1.0]
        """
        if self.ramp_updates == 0:
            return 1.0
        return min(1.0, (update - self.start_update + 1) / self.ramp_updates)
