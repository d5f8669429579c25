"""The examples that the help of fairseq-sam's subcommands gives."""

import re
import shlex
from typing import Any, List

import pytest

from fairseq_sam.commands import main


def examples(command: str, capsys: Any) -> List[List[str]]:
    """Returns the arguments of each example, those that are shell commands of another kind not."""
    with pytest.raises(SystemExit) as caught:
        main([command, "--help"])
    assert caught.value.code == 0
    text = capsys.readouterr().out.replace("\\\n", " ").partition("example")[2]
    return [shlex.split(line) for line in re.findall(r"^ +fairseq-sam (.+)$", text, re.MULTILINE)]
