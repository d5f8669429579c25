"""Processes: the GPUs that each may see, their end with all they have started, their time."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from typing import Iterator, List, Optional, Sequence

GRACE_SECONDS = 10.0


@contextlib.contextmanager
def termination_interrupts() -> Iterator[None]:
    """Lets SIGTERM and the loss of the terminal end the work in good order too, as Ctrl-C does.

    What is ignored stays so, as SIGHUP is under ``nohup``.
    """
    previous = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    heard = [number for number, handler in previous.items() if handler is not signal.SIG_IGN]
    for number in heard:
        signal.signal(number, _interrupt_once)
    try:
        yield
    finally:
        for number in heard:
            signal.signal(number, previous[number])


def _interrupt_once(number: int, _: object) -> None:
    # Kernel and shell both tell of a lost terminal: the second time must not cut the end short.
    signal.signal(number, signal.SIG_IGN)
    raise KeyboardInterrupt


def end_group(process: subprocess.Popen) -> None:
    """Ends a process and what it has started."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)
        except ProcessLookupError:
            break
        try:
            process.wait(GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            continue
    process.wait()


@dataclass
class Progress:
    """How far jobs are, and how long the others will take at that speed."""

    count: int
    begin: float = field(default_factory=time.monotonic)

    def line(self, done: int) -> str:
        """Says so, after so many jobs."""
        so_far = time.monotonic() - self.begin
        left = so_far / done * (self.count - done)
        return f"run {done} of {self.count}, {duration(so_far)} so far, about {duration(left)} left"


def duration(seconds: float) -> str:
    """Returns a time in words.

    >>> duration(5), duration(130), duration(4200)
    ('5 s', '2 min', '1 h 10 min')
    """
    if seconds < 90:
        return f"{seconds:.0f} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min"


def cores() -> int:
    """Returns the number of cores that this process may use."""
    if sys.platform == "linux":
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def visible_gpus() -> List[str]:
    """Returns the GPUs of this process, as ``CUDA_VISIBLE_DEVICES`` names them."""
    import torch

    count = torch.cuda.device_count()
    named = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    return named[:count] or [str(index) for index in range(count)]


def gpu_slots(gpus: Sequence[str], per_run: int, parallel: Optional[int]) -> List[Optional[str]]:
    """Deals GPUs out to runs.

    Args:
        gpus: all there are; none where runs are on the CPU.
        per_run: how many each run gets.
        parallel: runs at once; None for as many as there are whole shares. More than that share
            GPUs.

    Returns:
        The value of ``CUDA_VISIBLE_DEVICES`` for each run, None to leave it.

    >>> gpu_slots("0123", 2, None), gpu_slots("01", 1, 3), gpu_slots("", 1, None)
    (['0,1', '2,3'], ['0', '1', '0'], [None])
    """
    shares: List[Optional[str]] = [
        ",".join(gpus[start : start + per_run])
        for start in range(0, len(gpus) - per_run + 1, per_run)
    ]
    shares = shares or [None]
    return [shares[index % len(shares)] for index in range(parallel or len(shares))]
