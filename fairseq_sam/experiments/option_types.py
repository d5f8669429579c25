"""Types of options beside the numbers, and lists of words of a command line."""

from __future__ import annotations

import argparse
import os
import re
import shlex
from typing import Callable, List, Sequence

from fairseq_sam.experiments.errors import MisuseError


def choice(flag: str, value: str, allowed: Sequence[str]) -> str:
    """Checks a value that is one of several.

    Raises:
        MisuseError: it is none of them.
    """
    if value not in allowed:
        raise MisuseError(
            f"argument {flag}: {value} is not allowed: choose from {', '.join(allowed)}"
        )
    return value


def list_of(kind: Callable[[str], int]) -> Callable[[str], List[int]]:
    """Returns the type of a list, by comma."""

    def convert(text: str) -> List[int]:
        found = list(dict.fromkeys(kind(part) for part in re.split("[, ]+", text) if part))
        if not found:
            raise argparse.ArgumentTypeError("at least one is wanted")
        return found

    return convert


def flags_text(text: str) -> str:
    """Checks flags that are one word on the command line.

    Raises:
        argparse.ArgumentTypeError: their quotes do not match.
    """
    try:
        shlex.split(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text} is not allowed: {error}") from None
    return text


def address(text: str) -> str:
    """Checks an address.

    Raises:
        argparse.ArgumentTypeError: it is none.
    """
    if not re.fullmatch(r"[^:]+:[0-9]{1,5}", text):
        raise argparse.ArgumentTypeError(f"{text} is not allowed: it must be HOST:PORT")
    return text


def without(arguments: Sequence[str], *flags: str) -> List[str]:
    """Returns arguments without some flags, each of which has a value.

    >>> without(["a", "--stage", "3", "--job=x", "--seeds", "1"], "--stage", "--job")
    ['a', '--seeds', '1']
    """
    kept: List[str] = []
    is_value = False
    for argument in arguments:
        if not is_value and argument.partition("=")[0] not in flags:
            kept.append(argument)
        is_value = not is_value and argument in flags
    return kept


def joined(arguments: Sequence[str], *flags: str) -> List[str]:
    """Joins flags to their values, which may begin with a hyphen, as flags do.

    >>> joined(["--extra", "--fp16", "--small"], "--extra")
    ['--extra=--fp16', '--small']
    """
    found: List[str] = []
    for argument in arguments:
        if found and found[-1] in flags:
            found[-1] = f"{found[-1]}={argument}"
        else:
            found.append(argument)
    return found


def existing(text: str) -> str:
    """Converts the name of a file or folder that must be there; relative ones become absolute.

    Raises:
        argparse.ArgumentTypeError: it is not.
    """
    if not os.path.exists(text):
        raise argparse.ArgumentTypeError(f"{text} is not allowed: no such file or directory")
    return os.path.abspath(text)


def as_given(kind: Callable[[str], float]) -> Callable[[str], str]:
    """Returns the type of a number that is passed on as it was written."""

    def convert(text: str) -> str:
        kind(text)
        return text

    return convert
