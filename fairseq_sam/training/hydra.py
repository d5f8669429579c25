"""Reading the flags from ``fairseq-hydra-train``, where they are keys of ``cfg.optimizer``.

The keys are the flags' names with underscores (``+optimizer.sam_rho=0.05``). They are parsed by
the very parser of the command line, so that both accept and refuse the same values.
"""

from argparse import ArgumentParser, Namespace
from typing import Any, List, Tuple, Union

from fairseq import optim
from omegaconf import DictConfig

from fairseq_sam.training.base_optimizers import DEFAULT_BASE, add_base_flags, base_names


class _RaisingParser(ArgumentParser):
    def error(self, message: str) -> Any:
        raise ValueError(message)


def is_hydras(parser: ArgumentParser) -> bool:
    """Returns whether a parser reads the keys of ``fairseq-hydra-train``."""
    return isinstance(parser, _RaisingParser)


def namespace_from_hydra(
    cfg: DictConfig, optimizer: Any
) -> Tuple[Namespace, Union[Namespace, DictConfig]]:
    """Returns all flags, and what the base optimizer is to be built from.

    Args:
        cfg: the node ``optimizer`` of the configuration.
        optimizer: the registered class of the method.

    Raises:
        ValueError: for unknown keys and bad values.
    """
    base = str(cfg.get("base_optimizer", DEFAULT_BASE))
    dataclass = optim.OPTIMIZER_DATACLASS_REGISTRY.get(base)
    parser = _RaisingParser(add_help=False, allow_abbrev=False)
    optimizer.add_args(parser)
    native = set(dataclass.__dataclass_fields__) if dataclass is not None else set()
    if dataclass is None and base in base_names():
        add_base_flags(parser, base)
    keys = [str(key) for key in cfg if not str(key).startswith("_")]
    args = ArgumentParser.parse_args(parser, _as_flags(parser, cfg, keys, native))
    _add_run_settings(args, cfg)
    return args, (cfg if dataclass is not None else args)


def _as_flags(parser: ArgumentParser, cfg: DictConfig, keys: List[str], native: Any) -> List[str]:
    flags = []
    actions = {action.dest: action for action in parser._actions}
    for key in keys:
        if key in native:
            continue
        if key not in actions:
            known = sorted(name for name in native | set(actions) if not name.startswith("_"))
            raise ValueError(f"optimizer.{key} is unknown: it must be one of {', '.join(known)}")
        action, value = actions[key], cfg[key]
        if action.nargs == 0:
            flags += [action.option_strings[0]] if value != action.default else []
        elif value is not None:
            flags.append(f"{action.option_strings[0]}={value}")
    return flags


def _add_run_settings(args: Namespace, cfg: DictConfig) -> None:
    """Adds what the command line would have in the same namespace."""
    run: Any = cfg._get_parent() or {}
    for group, names in {
        "optimization": ("lr", "max_epoch", "max_update", "update_freq", "use_bmuf"),
        "distributed_training": ("ddp_backend", "pipeline_model_parallel", "zero_sharding"),
        "common": ("tpu", "model_parallel_size", "amp"),
    }.items():
        node = run.get(group)
        for name in names if node is not None else ():
            setattr(args, name, node.get(name))
