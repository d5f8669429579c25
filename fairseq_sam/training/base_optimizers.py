"""Base optimizers: any that fairseq registers, with its own flags, however it was registered."""

from argparse import ArgumentParser, ArgumentTypeError, Namespace
from typing import Any, Dict, List, Union

from fairseq import optim
from fairseq.dataclass.utils import _set_legacy_defaults
from omegaconf import DictConfig, OmegaConf

DEFAULT_BASE = "adam"


def base_optimizer_name(text: str) -> str:
    """The argparse type of ``--base-optimizer``."""
    from fairseq_sam.perturbation import METHODS

    if text in METHODS:
        raise ArgumentTypeError(
            f"{text} is itself sharpness-aware and cannot be the base: "
            f"it must be one of {', '.join(base_names())}"
        )
    if text not in optim.OPTIMIZER_REGISTRY:
        raise ArgumentTypeError(
            f"{text} is not an optimizer of fairseq: it must be one of {', '.join(base_names())}"
        )
    return text


def base_names() -> List[str]:
    """Returns the registered optimizers that are not ours."""
    from fairseq_sam.perturbation import METHODS

    return sorted(name for name in optim.OPTIMIZER_REGISTRY if name not in METHODS)


def add_base_flags(parser: ArgumentParser, name: str) -> None:
    """Adds the base optimizer's own flags, once a parser."""
    if getattr(parser, "base_optimizer_flags", None) is None:
        parser.base_optimizer_flags = name  # type: ignore[attr-defined]
        optim.OPTIMIZER_REGISTRY[name].add_args(parser)


def build_base_optimizer(
    name: str, values: Union[Namespace, DictConfig], params: List[Any]
) -> optim.FairseqOptimizer:
    """Builds the base optimizer exactly as fairseq does for ``--optimizer NAME``.

    Args:
        name: a registered optimizer.
        values: all flags (command line), or the optimizer's node of the configuration (hydra).
        params: the parameters to optimize.
    """
    dataclass = optim.OPTIMIZER_DATACLASS_REGISTRY.get(name)
    if dataclass is None:
        if isinstance(values, DictConfig):
            raise TypeError("an optimizer without dataclass is configured by a Namespace")
        args = Namespace(**vars(values))
        args.optimizer = name
        _set_legacy_defaults(args, optim.OPTIMIZER_REGISTRY[name])
        return optim._build_optimizer(args, params)
    fields = [key for key in dataclass.__dataclass_fields__ if not key.startswith("_")]
    given: Dict[str, Any] = {
        key: values[key] if isinstance(values, DictConfig) else _as_list(getattr(values, key))
        for key in fields
        if (key in values if isinstance(values, DictConfig) else hasattr(values, key))
    }
    cfg = OmegaConf.create({"_name": name, **given})
    cfg._set_parent(values._get_parent() if isinstance(values, DictConfig) else None)
    return optim._build_optimizer(cfg, params)


def _as_list(value: Any) -> Any:
    """Omegaconf knows no tuples."""
    return list(value) if isinstance(value, tuple) else value
