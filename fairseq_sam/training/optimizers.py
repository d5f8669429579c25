"""The sharpness-aware optimizers as fairseq sees them: one registered name per method.

``--optimizer ga_sam`` builds the *base* optimizer (``--base-optimizer``, Adam by default) and hangs
the method's configuration on it. It is the base optimizer in every respect (class, state,
checkpoints, support for flat parameters and half precision), because the sharpness-aware gradient
is computed before it: :mod:`fairseq_sam.training.seam` finds the configuration and repeats the
training step.
"""

import logging
import sys
from argparse import ArgumentParser, Namespace
from typing import Any, List, Optional, Sequence, Type, Union

from fairseq.optim import LegacyFairseqOptimizer, register_optimizer
from omegaconf import DictConfig

from fairseq_sam.perturbation import METHODS
from fairseq_sam.training.base_optimizers import (
    DEFAULT_BASE,
    add_base_flags,
    base_names,
    base_optimizer_name,
    build_base_optimizer,
)
from fairseq_sam.training.configuration import carry
from fairseq_sam.training.flags import add_flags, config_from, warn_of_no_effect
from fairseq_sam.training.hydra import is_hydras, namespace_from_hydra
from fairseq_sam.training.optimizer_state import has_momentum, has_second_moments

logger = logging.getLogger(__name__)


class SharpnessAwareOptimizer(LegacyFairseqOptimizer):
    """Builds base optimizers for one method; never instantiated itself."""

    method: str

    @classmethod
    def add_args(cls, parser: ArgumentParser) -> None:
        """Adds the method's flags, and lets the parser know the base optimizer's in time."""
        parser.add_argument(
            "--base-optimizer",
            type=base_optimizer_name,
            default=DEFAULT_BASE,
            metavar="NAME",
            help="the optimizer that takes the steps, with its own flags: "
            + ", ".join(base_names())
            + f" (default: that of an earlier --optimizer, otherwise {DEFAULT_BASE})",
        )
        add_flags(parser, cls.method)
        _complete_when_parsing(parser, cls.method)

    @classmethod
    def build_optimizer(cls, cfg: Union[Namespace, DictConfig], params: List[Any]) -> Any:
        """Returns the base optimizer, carrying the configuration as ``sharpness_aware``.

        Raises:
            ValueError: for settings that cannot work, naming flag, value and what is allowed.
        """
        if isinstance(cfg, DictConfig):
            args, values = namespace_from_hydra(cfg, cls)
        else:
            args = values = cfg
        config = config_from(args, cls.method)
        warn_of_no_effect(config, args)
        try:
            base = build_base_optimizer(args.base_optimizer, values, params)
        except ImportError as error:
            raise SystemExit(
                f"error: argument --base-optimizer: {args.base_optimizer} cannot be used: {error}"
            ) from None
        if not (config.perturbation.needs_pass or has_momentum(base)):
            raise SystemExit(
                f"error: argument --base-optimizer: {args.base_optimizer} keeps no momentum here, "
                f"which {config.method} follows: use one that does, such as adam or sgd with "
                "--momentum"
            )
        if config.perturbation.needs_second_moments and not has_second_moments(base):
            raise SystemExit(
                f"error: argument --base-optimizer: {args.base_optimizer} keeps no second moments "
                "here, which --sam-scale adam looks at: use one that does, such as adam or "
                "adafactor"
            )
        carry(base, config)
        logger.info(f"{config.describe()}; base optimizer {args.base_optimizer}")
        return base


def check_configuration(node: Any) -> None:
    """Checks the node ``optimizer`` of a configuration, which fairseq builds from much later.

    Args:
        node: of ``fairseq-hydra-train``; the command line is checked as it is parsed.

    Raises:
        SystemExit: with one line that names key, value and what is allowed.
    """
    if not isinstance(node, DictConfig) or node.get("_name") not in REGISTERED:
        return
    cls = REGISTERED[node._name]
    try:
        config_from(namespace_from_hydra(node, cls)[0], cls.method)
    except ValueError as error:
        raise SystemExit(f"error: {error}") from None


def _complete_when_parsing(parser: ArgumentParser, method: str) -> None:
    """Makes the parser add the base optimizer's flags, and check all flags together.

    Which base optimizer it is stands on the command line, which fairseq hands to the parser only
    after all flags were declared.
    """
    parse = parser.parse_known_args

    def parse_known_args(
        args: Optional[Sequence[str]] = None, namespace: Optional[Namespace] = None
    ) -> Any:
        base = _peek_base(sys.argv[1:] if args is None else args)
        if base in base_names():
            add_base_flags(parser, base)
            parser.set_defaults(base_optimizer=base)
        known, rest = parse(args, namespace)
        problem = None
        if known.base_optimizer == "composite" and not is_hydras(parser):
            parser.error(
                "argument --base-optimizer: composite has no flags for its groups: use "
                "fairseq-hydra-train"
            )
        try:
            config_from(known, method)
        except ValueError as error:
            problem = str(error)
        if problem is not None:  # outside the handler, for parsers that raise
            parser.error(problem)
        return known, rest

    parser.parse_known_args = parse_known_args  # type: ignore[method-assign,assignment]


def _peek_base(args: Sequence[str]) -> str:
    """Returns the base optimizer of a command line.

    Where our flags follow those of a whole command, the optimizer of that command takes the steps.

    >>> _peek_base("--optimizer sgd --momentum 0.9 --optimizer sam".split())
    'sgd'
    """
    peek = ArgumentParser(add_help=False, allow_abbrev=False)
    peek.add_argument("--optimizer", action="append", default=[DEFAULT_BASE])
    peek.add_argument("--base-optimizer")
    found = peek.parse_known_args(list(args))[0]
    earlier = [name for name in found.optimizer if name in base_names()]
    return str(found.base_optimizer or earlier[-1])


def _register(method: str) -> Type[SharpnessAwareOptimizer]:
    name = "".join(part.capitalize() for part in method.split("_")) + "Optimizer"
    cls = type(name, (SharpnessAwareOptimizer,), {"method": method, "__module__": __name__})
    register_optimizer(method)(cls)
    return cls


REGISTERED = {method: _register(method) for method in METHODS}
"""The registered classes by name."""
