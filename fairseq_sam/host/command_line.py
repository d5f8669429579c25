"""Faults in how fairseq's commands start: logging, flags and worker processes."""

import argparse
import functools
import logging
import os
import sys
from typing import Any, List

import torch

from .patching import Repair, rebind, uses_name

_LOG_FORMAT = "%(asctime)s | %(levelname)s | %(name)s | %(message)s"
_DATE_FORMAT = "%Y-%m-%d %H:%M:%S"

_fairseq_set_up_logging = False


def import_fairseq() -> None:
    """Imports fairseq and notes whether that import, rather than the user, set up logging.

    One module of fairseq-fixed calls ``logging.basicConfig`` when it is imported.  The result
    cannot be told from a user's own call, so it may be corrected only if the root logger was bare
    before, or if one of fairseq's commands is running, which leave the user no earlier moment.
    """
    global _fairseq_set_up_logging
    bare = not logging.getLogger().handlers
    first = "fairseq" not in sys.modules
    import fairseq  # noqa: F401

    in_command = any(name.startswith("fairseq_cli.") for name in sys.modules)
    _fairseq_set_up_logging |= (bare and first) or in_command


def _logs_in_debug_format() -> bool:
    root = logging.getLogger()
    if not _fairseq_set_up_logging or root.level != logging.DEBUG or len(root.handlers) != 1:
        return False
    formatter = root.handlers[0].formatter
    return formatter is not None and formatter._fmt == logging.BASIC_FORMAT


def _log_as_fairseq() -> None:
    """Gives the root logger the level and format that fairseq's commands use."""
    root = logging.getLogger()
    root.setLevel(os.environ.get("LOGLEVEL", "INFO").upper())
    root.handlers[0].setFormatter(logging.Formatter(_LOG_FORMAT, _DATE_FORMAT))


def _bf16_means_tpu() -> bool:
    from fairseq import options

    parser = argparse.ArgumentParser(allow_abbrev=False)
    for flag in ("--bf16", "--fp16", "--tpu"):
        parser.add_argument(flag, action="store_true")
    parser.set_defaults(batch_size=None, max_tokens=None)
    args = options.parse_args_and_arch(parser, input_args=["--bf16"])
    return bool(args.tpu)


def _keep_bf16_off_tpu() -> None:
    """Lets ``--bf16`` on the command line mean bfloat16 on whatever device there is.

    fairseq takes it for ``--tpu`` as well and then fails for want of ``torch_xla``.
    """
    from fairseq import options

    original = options.parse_args_and_arch

    @functools.wraps(original)
    def parse_args_and_arch(
        parser: argparse.ArgumentParser, input_args: Any = None, *rest: Any, **kwargs: Any
    ) -> Any:
        parsed = original(parser, input_args, *rest, **kwargs)
        args = parsed[0] if isinstance(parsed, tuple) else parsed
        given = sys.argv[1:] if input_args is None else input_args
        tpu_asked = "--tpu" in given or parser.get_default("tpu")
        if getattr(args, "bf16", False) and not tpu_asked:
            args.tpu = False
        return parsed

    rebind("parse_args_and_arch", original, parse_args_and_arch)


def _fails_without_task() -> bool:
    from fairseq import options, tasks  # noqa: F401

    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("--task")
    parser.set_defaults(batch_size=None, max_tokens=None)
    try:
        options.parse_args_and_arch(parser, input_args=["data"])
    except KeyError:
        return True
    return False


def _parse_without_task() -> None:
    """Lets ``fairseq-validate`` do without ``--task``: it takes the checkpoint's task.

    The command line is then parsed with the flags of translation, as those of other commands are.
    """
    from fairseq import options

    original = options.parse_args_and_arch

    @functools.wraps(original)
    def parse_args_and_arch(parser: argparse.ArgumentParser, *args: Any, **kwargs: Any) -> Any:
        has_task = any(action.dest == "task" for action in parser._actions)
        if has_task and parser.get_default("task") is None:
            parser.set_defaults(task="translation")
        return original(parser, *args, **kwargs)

    rebind("parse_args_and_arch", original, parse_args_and_arch)


def _denoising_conflicts() -> bool:
    from fairseq.tasks.denoising import DenoisingTask

    declare = getattr(DenoisingTask.add_args, "__func__", DenoisingTask.add_args)
    return "--max-source-positions" in declare.__code__.co_consts


def _let_denoising_redeclare() -> None:
    """Lets ``--task denoising`` declare flags that the model has declared before it.

    fairseq 0.12.2's command line ends with "conflicting option string" for every Transformer.
    """
    from fairseq.tasks.denoising import DenoisingTask

    original = DenoisingTask.add_args

    def add_args(parser: argparse.ArgumentParser) -> None:
        owners: List[Any] = [parser, parser._optionals]
        handlers = [owner.conflict_handler for owner in owners]
        try:
            for owner in owners:
                owner.conflict_handler = "resolve"
            original(parser)
        finally:
            for owner, handler in zip(owners, handlers):
                owner.conflict_handler = handler

    DenoisingTask.add_args = staticmethod(add_args)


def _has_gpu() -> bool:
    return torch.cuda.device_count() > 0


def _spawns_no_process() -> bool:
    from fairseq.distributed import utils as distributed_utils

    return uses_name(distributed_utils.call_main, "device_count")


def _refuse_to_spawn_nothing() -> None:
    """Stops a distributed run that would start one process per GPU where there is no GPU.

    fairseq then starts none and exits with success, having trained nothing.
    """
    from fairseq.distributed import utils as distributed_utils

    original = distributed_utils.call_main

    @functools.wraps(original)
    def call_main(cfg: Any, main: Any, **kwargs: Any) -> Any:
        distributed = cfg.distributed_training
        spawns = (
            distributed.distributed_init_method is not None and not distributed.distributed_no_spawn
        )
        if spawns and not _has_gpu():
            raise ValueError(
                "--distributed-init-method without --distributed-no-spawn starts one process per"
                " GPU, and there is no GPU: start the processes yourself, each with"
                " --distributed-rank and --distributed-no-spawn"
            )
        return original(cfg, main, **kwargs)

    rebind("call_main", original, call_main)


REPAIRS = (
    Repair("importing fairseq logs everything", _logs_in_debug_format, _log_as_fairseq),
    Repair("fairseq-validate fails without --task", _fails_without_task, _parse_without_task),
    Repair("--bf16 turns on --tpu", _bf16_means_tpu, _keep_bf16_off_tpu),
    Repair("denoising redeclares flags", _denoising_conflicts, _let_denoising_redeclare),
    Repair("spawning without a GPU trains nothing", _spawns_no_process, _refuse_to_spawn_nothing),
)
