"""The command line of a recipe: its own options, and those that all recipes have."""

from __future__ import annotations

import argparse
import os
import re
from typing import Any, Callable, Dict, List, Sequence

from fairseq_sam.experiments.errors import MisuseError
from fairseq_sam.experiments.option_types import (
    address,
    as_given,
    choice,
    existing,
    flags_text,
    joined,
    list_of,
)
from fairseq_sam.experiments.recipe import BASELINE, Recipe, perturbs
from fairseq_sam.flags.number_types import (
    LARGEST_COUNT,
    at_least_zero,
    positive,
    seed,
    whole_number,
)

_OPTION = re.compile(r"^ *(--[a-z0-9-]+|task) (\S+)((?:  .*)?(?:\n {8,}.*)*)", re.MULTILINE)
_ABSENT = {"epochs": None, "start_epoch": None, "average": None}
STAGES = ("download", "prepare", "what all share", "train", "average, generate, score", "report")
ARRAY = "array"


class Parser(argparse.ArgumentParser):
    """Errors are one line; there are no abbreviations."""

    def error(self, message: str) -> None:  # type: ignore[override]
        """Ends with 2."""
        self.exit(2, f'error: {message}\nRun "{self.prog} --help" for the options.\n')


def build_parser(recipe: Recipe, program: str) -> argparse.ArgumentParser:
    """Returns the parser of a recipe's options."""
    parser = Parser(
        prog=program,
        description=recipe.about,
        usage=f"{program} [OPTIONS]".replace("%", "%%"),
        epilog=_epilog(recipe, program),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    _add_own(parser.add_argument_group("this table"), recipe)
    _add_what(parser.add_argument_group("what to run"), recipe)
    _add_where(parser.add_argument_group("hardware"))
    for name, value in _ABSENT.items():  # what this recipe has no option for
        if parser.get_default(name) is None:
            parser.set_defaults(**{name: value})
    if recipe.one_seed:
        parser.set_defaults(methods=recipe.default, small=False)
    return parser


def _epilog(recipe: Recipe, program: str) -> str:
    stages = "  ".join(f"{number} {name}" for number, name in enumerate(STAGES, 1))
    lines = ["stages:", f"  {stages}", ""]
    if not recipe.one_seed:
        lines += [
            f"METHOD is one of: {' '.join(recipe.methods)}",
            f"(default: {recipe.default})",
            "",
        ]
    examples = recipe.examples[1:] if recipe.examples[:1] == "\n" else recipe.examples
    return "\n".join([*lines, "Examples:", *(f"  {program} {e}" for e in examples.splitlines())])


def _add_own(group: argparse._ArgumentGroup, recipe: Recipe) -> None:
    """Adds the options that a recipe lists: a flag, what its value is, and the help text."""
    for flag, value, text in _OPTION.findall(recipe.options):
        flag_name = flag.lstrip("-").replace("-", "_")
        full, small = recipe.sizes.get(flag_name, ("", ""))
        note = f" (default: {full}, with --small {small})" if full != small else ""
        note = f" (default: {full})" if full == small != "" else note
        more: Dict[str, Any] = {"help": " ".join(text.split()).replace("%", "%%") + note}
        if "|" in value:
            more.update(choices=value.split("|"))
        else:
            more.update(type=_kind(value), metavar=value.partition("[")[0])
        group.add_argument(flag, **more)


def _kind(value: str) -> Callable[[str], Any]:
    """Returns the type of a value, by its name: whole numbers may have limits, ``N[2..9]``."""
    name, _, limits = value.rstrip("]").partition("[")
    if name == "N":
        low, _, high = (limits or "1..").partition("..")
        return whole_number(int(low), int(high or LARGEST_COUNT))
    kinds: Dict[str, Callable[[str], Any]] = {
        **{"PATH": existing, "DIR": existing, "X": as_given(positive), "SEED": seed},
        **{"FILE": os.path.abspath, "FOLDER": os.path.abspath},  # a resumed run may be elsewhere
        **{"X[0..]": as_given(at_least_zero), "'FLAGS'": flags_text},
    }
    return kinds.get(value, str)


def _add_what(group: argparse._ArgumentGroup, recipe: Recipe) -> None:
    add = group.add_argument
    # fmt: off
    add("--out", metavar="DIR", help="where everything goes; a rerun goes on where it was")
    if not recipe.one_seed:
        add("--methods", default=recipe.default, metavar="LIST",
            help="by comma; METHOD@RHO sets another radius, e.g. baseline,sam,sam@1e-3,ga_sam@5%%")
        add("--seeds", type=list_of(seed), metavar="LIST",
            help=f"by comma (default: {recipe.seeds})")
        add("--small", action="store_true",
            help="a tiny model and few epochs, to try it on a laptop")
    add("--extra", type=flags_text, default="", metavar="'FLAGS'",
        help="more flags for every fairseq-train; they win over the recipe's")
    add("--stage", type=whole_number(1, 6), default=1, metavar="N",
        help="first stage to run, 1 to 6")
    add("--stop-stage", type=whole_number(1, 6), default=6, metavar="N", help="last stage to run")
    add("--job", metavar="NAME",
        help="do this one job, such as train.sam.seed1, whatever the stage")
    add("--dry-run", action="store_true",
        help="print a shell script that does the same by hand, and run nothing")
    add("--free-disk", action="store_true",
        help="delete a run's checkpoints once it is scored; its average stays")
    # fmt: on


def _add_where(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    # fmt: off
    add("--gpus", type=whole_number(0, 1024), metavar="N",
        help="GPUs for each training (default: 1 if there is one, else 0); the batch is divided "
             "among them, so the number of updates does not change")
    add("--parallel", type=whole_number(1, 1000), default=1, metavar="N",
        help="trainings at a time, each on its own GPUs as far as there are enough (default: 1)")
    add("--nodes", type=whole_number(1, 1000), default=1, metavar="N",
        help="machines for each training, which share --out: start this on each of them")
    add("--node-rank", type=whole_number(0, 999), default=0, metavar="R",
        help="which of them this is; 0 does everything, others take part in its trainings")
    add("--master", type=address, default="localhost:29500", metavar="HOST:PORT",
        help="where torchrun finds rank 0 (default: %(default)s)")
    add("--launcher", default="", metavar="'COMMAND'",
        help="goes before every training and scoring, e.g. 'srun --gpus 1'; the word array writes "
             "the trainings as the commands of an array job instead")
    # fmt: on


def parse(recipe: Recipe, program: str, arguments: Sequence[str]) -> argparse.Namespace:
    """Parses and checks what can be checked without looking around.

    Raises:
        MisuseError: an option contradicts another, or names no method.
        SystemExit: after --help, or for a value that is not allowed.
    """
    parser = build_parser(recipe, program)
    options = parser.parse_args(joined(arguments, "--extra", "--launcher", "--sam-extra"))
    options.methods = methods_of(recipe, options.methods)
    options.seeds_given = getattr(options, "seeds", None) is not None
    if not options.seeds_given:
        options.seeds = list_of(seed)(recipe.seeds)
    if options.stop_stage < options.stage:
        raise MisuseError(
            f"argument --stop-stage: {options.stop_stage} is not allowed: it must be a whole "
            f"number from {options.stage}, which is --stage, to 6"
        )
    if options.node_rank >= options.nodes:
        raise MisuseError(
            f"argument --node-rank: {options.node_rank} is not allowed: of --nodes "
            f"{options.nodes} it must be below"
        )
    if options.nodes > 1 and (options.parallel > 1 or options.launcher):
        what = f"--parallel {options.parallel}" if options.parallel > 1 else "--launcher"
        raise MisuseError(
            f"argument {what}: with --nodes it is one training at a time, by torchrun"
        )
    return options


def methods_of(recipe: Recipe, text: str) -> List[str]:
    """Returns the methods of a list, the baseline first.

    Raises:
        MisuseError: one is not there, or cannot have that radius.
    """
    for name, meaning in recipe.aliases().items():
        text = meaning if text == name else text
    found = list(dict.fromkeys(part for part in re.split("[, ]+", text) if part))
    for method in found:
        name, at, radius = method.partition("@")
        if name not in recipe.methods:
            choice("--methods", name, list(recipe.methods))
        if at and not perturbs(recipe.methods[name]):
            raise MisuseError(f"argument --methods: {method} is not allowed: {name} has no radius")
        if radius.endswith("%") and "--delta-sam-probe-radius" in recipe.methods[name]:
            raise MisuseError(
                f"argument --methods: {method} is not allowed: {name} probes at its radius, which "
                "must be a number"
            )
        try:
            positive(radius[:-1] if radius.endswith("%") else radius or "1")
        except argparse.ArgumentTypeError as error:
            raise MisuseError(f"argument --methods: {method}: {error}") from None
    if not found:
        raise MisuseError("argument --methods: at least one is wanted")
    return sorted(found, key=lambda method: method != BASELINE)
