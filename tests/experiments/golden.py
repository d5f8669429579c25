"""Commands of dry runs as test data.

A file begins with the options; then each line is a command, shortened: ``@ FOLDER`` tells what
``@`` stands for from there on, and ``~ PROGRAM 5 … ~ 3`` is the first five words of that program's
last line, what is between, and the last three words of that line.
"""

import re
import shlex
from pathlib import Path

FOLDER = Path(__file__).with_name("golden")
_RUN = re.compile(r"O/(?:runs/[^/]+|shared)/seed\d+")


def encode(commands):
    """Returns lines of commands (lists of words)."""
    last, lines, run = {}, [], None
    for words in commands:
        runs = [found.group() for found in map(_RUN.match, words) if found]
        if runs and runs[-1] != run:
            run = runs[-1]
            lines.append(f"@ {run}")
        words = [f"@{word[len(run) :]}" if run and word.startswith(run) else word for word in words]
        key = "/".join(words[:3])
        previous = last.get(key, [])
        head = _common(previous, words)
        tail = _common(previous[head:][::-1], words[head:][::-1])
        last[key] = words
        if head + tail > 3:
            words = ["~", key, str(head), *words[head : len(words) - tail], "~", str(tail)]
        lines.append(shlex.join(words))
    return lines


def decode(lines):
    """Returns the commands of lines."""
    last, commands, run = {}, [], ""
    for line in lines:
        words = shlex.split(line)
        if words[0] == "@":
            run = words[1]
            continue
        if words[0] == "~":
            previous = last[words[1]]
            end = previous[len(previous) - int(words[-1]) :]
            words = [*previous[: int(words[2])], *words[3:-2], *end]
        last["/".join(words[:3])] = words
        commands.append([run + word[1:] if word.startswith("@") else word for word in words])
    return commands


def _common(one, other):
    count = 0
    while count < min(len(one), len(other)) and one[count] == other[count]:
        count += 1
    return count


def read(name):
    """Returns a case: the recipe with its options, and its commands."""
    first, *lines = (FOLDER / f"{name}.txt").read_text(encoding="utf-8").splitlines()
    return shlex.split(first), decode(lines)
