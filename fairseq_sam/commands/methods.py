"""``fairseq-sam methods``: the sharpness-aware optimizers, their parts, flags and cost."""

from __future__ import annotations

import argparse
import re
import textwrap
from pathlib import Path
from typing import Any, Dict, List, Mapping

from fairseq_sam.commands.figures import check_output_arguments, write_figures
from fairseq_sam.commands.refusals import load_fairseq

_EPILOG = """\
examples:
  fairseq-sam methods
  fairseq-sam methods ga_sam delta_sam
  fairseq-sam methods --combinations
  fairseq-sam methods --json methods.json

A method is the name of an --optimizer: a choice of parts and their defaults, each of which a flag
replaces. Cost: what an update that is perturbed takes, in passes of the mini-batch forward and
backward; one without perturbation takes 1.
"""

_PARTS = ("rho", "norm", "scale", "granularity", "direction", "risk", "num_steps", "sentences")

_OPTIONS: Dict[str, Dict[str, Any]] = {
    "a share as radius": {"share": 0.05},
    "several steps": {"num_steps": 2},
    "mean risk": {"risk": "mean"},
    "functional risk": {"risk": "functional"},
    "momentum": {"direction": "momentum"},
    "smoothed": {"direction": "smoothed"},
    "friendly": {"direction": "friendly"},
    "random": {"direction": "random"},
    "part of the batch": {"ascent_fraction": 0.5},
    "shared ascent": {"ascent_share": 0.5},
    "weights of sentences": {"weighting": "published"},
    "a sentence each": {"per_instance": True},
}


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Adds this subcommand's parser."""
    parser = subparsers.add_parser(
        "methods",
        help="list the optimizers: parts, defaults, flags, cost",
        description="Lists the sharpness-aware optimizers and their flags.",
        epilog=_EPILOG,
    )
    parser.add_argument("methods", nargs="*", metavar="METHOD", help="only these (default: all)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures here as well")
    parser.add_argument(
        "--combinations",
        action="store_true",
        help="print what combines with what, as a table in Markdown, and nothing else",
    )
    parser.set_defaults(run=run, misuse=parser.error)


def run(args: argparse.Namespace) -> int:
    """Prints, writes."""
    from fairseq_sam.perturbation.settings import METHODS

    for name in args.methods:
        if name not in METHODS:
            args.misuse(f"METHOD {name} is unknown: it must be one of {', '.join(METHODS)}")
    check_output_arguments(args)
    if args.combinations:
        print(combinations())
        return 0
    load_fairseq()
    chosen = {name: _parts(METHODS[name]) for name in args.methods or METHODS}
    flags = {name: _flags(name) for name in chosen}
    _print(chosen, flags)
    if args.json is not None:
        figures = {name: {**parts, "flags": flags[name]} for name, parts in chosen.items()}
        write_figures({"unit": "forward-backward passes an update", "methods": figures}, args.json)
    return 0


def combinations() -> str:
    """Returns a table in Markdown of what combines with what; norms and scales do with all."""
    names = list(_OPTIONS)
    lines = ["| | " + " | ".join(names[:-1]) + " |", "| --- |" + " :-: |" * (len(names) - 1)]
    for number, name in enumerate(names[1:], 1):
        cells = ["✓" if _combine(name, other) else "–" for other in names[:number]]
        cells += [""] * (len(names) - 1 - number)
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _combine(one: str, other: str) -> bool:
    from fairseq_sam.perturbation.settings import PerturbationSettings

    parts, others = _OPTIONS[one], _OPTIONS[other]
    if parts.keys() & others.keys():
        return False  # two values of one part
    try:
        PerturbationSettings(**{**parts, **others})
    except ValueError:
        return False
    return True


def _parts(settings: Any) -> Dict[str, Any]:
    parts = {part: getattr(settings, part) for part in _PARTS if part != "sentences"}
    if settings.share is not None:
        parts["rho"] = settings.describe_radius()
    weighting = "one perturbation each" if settings.per_instance else settings.weighting
    return {**parts, "sentences": weighting, "passes": _passes(settings)}


def _passes(settings: Any) -> str:
    """Returns what a perturbed update costs: K ascents and the descent, and what finds weights."""
    text = str(settings.num_steps + 1 if settings.needs_pass else 1)
    if settings.per_instance:
        return f"{text} a sentence"
    probes = {"published": 2, "draft": 1}.get(settings.weighting, 0)
    return f"{text} + {probes} forward" if probes else text


def _flags(method: str) -> List[Dict[str, Any]]:
    """Returns the flags as ``fairseq-train --optimizer METHOD`` has them."""
    from fairseq.optim import OPTIMIZER_REGISTRY

    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    OPTIMIZER_REGISTRY[method].add_args(parser)
    return [
        {
            "flag": action.option_strings[0],
            "value": action.metavar or ("|".join(action.choices) if action.choices else None),
            "default": action.default,
            "help": action.help,
        }
        for action in parser._actions
        if action.option_strings and action.help != argparse.SUPPRESS
    ]


def _print(chosen: Mapping[str, Mapping[str, Any]], flags: Mapping[str, List[Any]]) -> None:
    names = {"num_steps": "K"}
    rows = [["--optimizer", *(names.get(part, part) for part in _PARTS), "passes"]]
    for name, parts in chosen.items():
        rows.append([name, *(_cell(parts[part]) for part in (*_PARTS, "passes"))])
    widths = [max(map(len, column)) for column in zip(*rows)]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip())
    print(
        "\nflags of fairseq-train (with K steps an update costs K + 1 passes, with an ascent on a "
        "part q of the batch 1 + q):"
    )
    for line in _described(list(flags.values())):
        print(line)


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _described(flags: List[List[Dict[str, Any]]]) -> List[str]:
    """Returns the lines about the flags; a default that differs from method to method is not named.

    Args:
        flags: of each method, in one order.
    """
    lines = []
    for same in zip(*flags):
        texts = [flag["help"] for flag in same]
        text = texts[0].replace("%%", "%")
        if len(set(texts)) > 1:
            text = re.sub(r"\(default: [^()]*\)$", "(default: the method's)", text)
        lines.append(f"  {same[0]['flag']} {same[0]['value'] or ''}".rstrip())
        lines += textwrap.wrap(text, 96, initial_indent=" " * 6, subsequent_indent=" " * 6)
    return lines
