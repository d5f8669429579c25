"""Whether fairseq takes a training command, and finds its data: asked before anything is written.

A process of its own builds what ``fairseq-train`` builds before it trains, with the user's own
``--user-dir``, and ends.  Nothing is trained, and nothing is written.
"""

from __future__ import annotations

import re
import subprocess
import sys
from typing import List, Optional, Sequence

from fairseq_sam.experiments.errors import MisuseError

CHECKER = (sys.executable, "-m", "fairseq_sam.experiments.search.command_check")
_SECONDS = 600.0
_ERROR = re.compile(r"^\S*: error: (.*)|^(?:\w+\.)*(\w+(?:Error|Exception|Interrupt)\b.*)")


def check_command(arguments: Sequence[str]) -> None:
    """Lets fairseq read the arguments of ``fairseq-train``.

    Raises:
        MisuseError: with what fairseq says of them, in a line.
    """
    try:
        done = subprocess.run(
            [*CHECKER, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=_SECONDS,
        )
    except subprocess.TimeoutExpired:
        return  # a large model; training will tell
    if done.returncode != 0:
        lines = done.stdout.decode("utf-8", "replace").splitlines()
        raise MisuseError(f"arguments of fairseq-train: {_complaint(lines)[:300]}")


def _complaint(lines: List[str]) -> str:
    found = [match for match in map(_ERROR.match, lines) if match]
    if found:
        return str(found[-1].group(1) or found[-1].group(2))
    return next((line.strip() for line in reversed(lines) if line.strip()), "refused")


def main(arguments: Optional[List[str]] = None) -> None:
    """Builds task, model, criterion and optimizer of a command line; the errors are fairseq's."""
    import fairseq  # noqa: F401
    from fairseq import optim, options, tasks
    from fairseq.dataclass.utils import convert_namespace_to_omegaconf

    import fairseq_sam

    fairseq_sam.register()  # --user-dir finds the package loaded already
    parser = options.get_training_parser()
    args = options.parse_args_and_arch(parser, sys.argv[1:] if arguments is None else arguments)
    cfg = convert_namespace_to_omegaconf(args)
    if cfg.dataset.max_tokens is None and cfg.dataset.batch_size is None:
        raise ValueError("one of --max-tokens and --batch-size is needed")
    task = tasks.setup_task(cfg.task)
    for subset in cfg.dataset.valid_subset.split(","):
        task.load_dataset(subset, combine=False, epoch=1)
    model = task.build_model(cfg.model)
    task.build_criterion(cfg.criterion)
    optim.build_optimizer(cfg.optimizer, [p for p in model.parameters() if p.requires_grad])


if __name__ == "__main__":
    main()
