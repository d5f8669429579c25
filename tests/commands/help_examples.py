"""The examples that the help of fairseq-sam's subcommands gives."""

import re
import shlex
from typing import Any, List, Optional

import pytest

from fairseq_sam.commands import main


def examples(command: Optional[str], capsys: Any) -> List[List[str]]:
    """Returns the arguments of each example of a command, or of fairseq-sam itself.

    Commands of another kind than fairseq-sam's are left out.
    """
    with pytest.raises(SystemExit) as caught:
        main(["--help"] if command is None else [command, "--help"])
    assert caught.value.code == 0
    text = capsys.readouterr().out.replace("\\\n", " ").partition("example")[2]
    return [shlex.split(line) for line in re.findall(r"^ +fairseq-sam (.+)$", text, re.MULTILINE)]
