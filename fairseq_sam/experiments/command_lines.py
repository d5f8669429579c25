"""Commands, as a recipe writes them, as a process gets them and as a shell script shows them.

>>> (command,) = commands("head -n {lines} {out}/all > {out}/train", lines=3, out="/runs/x")
>>> command.words, command.stdout
(('head', '-n', '3', '/runs/x/all'), '/runs/x/train')
>>> shell_line(command, {"OUT": "/runs/x"})
'head -n 3 "$OUT/all" > "$OUT/train"'
"""

from __future__ import annotations

import shlex
from dataclasses import dataclass, replace
from typing import Any, Iterable, List, Mapping, Tuple, Union


@dataclass(frozen=True)
class Command:
    """A command with its redirections.

    Attributes:
        words: the program and its arguments.
        stdin: the file that it reads, "" for none.
        stdout: the file that it writes, which appears when it is whole; "" for the log.
        log: of a training, the file that its output is added to; "" for others.
        unless: the command is left out where this is there; "" for nothing.
    """

    words: Tuple[str, ...]
    stdin: str = ""
    stdout: str = ""
    log: str = ""
    unless: str = ""

    def behind(self, launcher: str) -> Command:
        """Returns the command as an argument of another, such as srun."""
        return replace(self, words=(*shlex.split(launcher), *self.words))


@dataclass(frozen=True)
class Download:
    """A file to get: its address, where it goes, and its SHA-256 ("" where nobody lists one)."""

    url: str
    file: str
    sha256: str = ""


Step = Union[Command, Download]


def words(text: str, /, **values: Any) -> List[str]:
    """Splits flags as a shell does, and fills in values.

    ``{name}`` within a word is the value's text; alone it may stand for a list, thus for nothing.

    >>> words("--betas '(0.9, 0.98)' {model} --lr {lr}", model=["--arch", "x"], lr=0.1)
    ['--betas', '(0.9, 0.98)', '--arch', 'x', '--lr', '0.1']
    """
    filled: List[str] = []
    for word in shlex.split(text.replace("\\\n", " ")):
        value = values.get(word[1:-1]) if word[:1] == "{" and word[-1:] == "}" else None
        if isinstance(value, (list, tuple)):
            filled += map(str, value)
        else:
            filled.append(word.format(**values))
    return filled


def commands(text: str, /, **values: Any) -> List[Command]:
    """Reads commands, one a line; a backslash at its end joins a line to the next."""
    lines = text.replace("\\\n", " ").splitlines()
    return [_command(words(line, **values)) for line in lines if line.strip()]


def _command(parts: List[str]) -> Command:
    files = {"<": "", ">": ""}
    while len(parts) > 2 and parts[-2] in files:
        *parts, sign, name = parts
        files[sign] = name
    return Command(tuple(parts), files["<"], files[">"])


def shell_lines(step: Step, places: Mapping[str, str]) -> List[str]:
    """Returns what to type for a step; ``places`` are the variables to use in it."""
    if isinstance(step, Command):
        return [shell_line(step, places)]
    part = f"{step.file}.part"
    curl = "curl -fL --retry 3 --connect-timeout 20 -C - -o {part} {url}\nmv {part} {file}"
    found = commands(curl, part=part, url=step.url, file=step.file)
    return [shell_line(command, places) for command in found]


def shell_line(command: Command, places: Mapping[str, str]) -> str:
    """Returns a command as one would type it."""
    line = " ".join(shell_word(word, places) for word in command.words)
    for sign, name in (("<", command.stdin), (">", command.stdout), (">>", command.log)):
        if name:
            line += f" {sign} {shell_word(name, places)}"
    line = f"{line} 2>&1" if command.log else line
    return f"[ -e {shell_word(command.unless, places)} ] || {line}" if command.unless else line


def one_line(arguments: Iterable[str]) -> str:
    r"""Returns arguments as one types them into bash, in one line even if they have several.

    >>> print(one_line(["--small", "--extra", "--lr 1\n--clip-norm 2"]))
    --small --extra '--lr 1'$'\n''--clip-norm 2'
    """
    return shlex.join(arguments).replace("\n", "'$'\\n''")


def shell_word(word: str, places: Mapping[str, str]) -> str:
    """Quotes a word; a path in one of the places begins with its variable."""
    for name, place in places.items():
        if word == place or word.startswith(f"{place}/"):
            rest = word[len(place) :]
            if not set(rest) & set('"\\$`!'):
                return f'"${name}{rest}"'
    return shlex.quote(word)
