"""Processes that are ended with all they have started, and the time that work takes."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from typing import Iterator

GRACE_SECONDS = 10.0


@contextlib.contextmanager
def termination_interrupts() -> Iterator[None]:
    """Lets SIGTERM end the work in good order too, as Ctrl-C does."""
    previous = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


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
