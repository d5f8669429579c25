"""The tables of docs/methods.md that follow from the code; ``python docs/tables.py`` writes them.

Each stands between ``<!-- begin NAME -->`` and ``<!-- end NAME -->``. tests/test_documentation.py
fails where one is out of date.
"""

import re
import sys
from pathlib import Path
from typing import Any, Callable, Dict, List, Tuple

PAGE = Path(__file__).resolve().parent / "methods.md"

Flag = Dict[str, Any]


def methods() -> str:
    """Returns the table of methods: the defaults of their parts."""
    from fairseq_sam.commands.methods import _cell, _parts
    from fairseq_sam.perturbation.settings import METHODS

    lines = [
        "| `--optimizer` | radius | norm | scale T | direction | risk | sentences | passes |",
        "| --- | ---: | --- | --- | --- | --- | --- | ---: |",
    ]
    for name, settings in METHODS.items():
        parts = _parts(settings)
        scale = parts["scale"]
        if parts["granularity"]:
            scale = f"{scale}, {parts['granularity']}"
        passes = "K + 1" if parts["risk"] == "mean" else parts["passes"]
        cells = [parts["norm"], scale, parts["direction"], parts["risk"], parts["sentences"]]
        lines.append(f"| `{name}` | {_cell(parts['rho'])} | {' | '.join(cells)} | {passes} |")
    return "\n".join(lines)


def flags() -> str:
    """Returns the table of flags, with the defaults that the methods share."""
    from fairseq_sam.commands.methods import _flags
    from fairseq_sam.commands.refusals import load_fairseq
    from fairseq_sam.perturbation.settings import METHODS

    load_fairseq()
    lines = ["| flag | meaning | default |", "| --- | --- | --- |"]
    for same in zip(*(_flags(name) for name in METHODS)):
        lines.append(f"| {_named(same[0])} | {' | '.join(_explained(list(same)))} |")
    return "\n".join(lines)


def _named(flag: Flag) -> str:
    value = flag["value"] or ""
    if "|" in value:
        return f"`{flag['flag']}` " + ", ".join(f"`{choice}`" for choice in value.split("|"))
    return f"`{flag['flag']} {value}`"


def _explained(same: List[Flag]) -> Tuple[str, str]:
    """Returns what a flag means and its default; ``same`` is it in every method."""
    found = []
    for flag in same:
        text = re.sub(r"\s+", " ", flag["help"].replace("%%", "%"))
        match = re.fullmatch(r"(.*?) \(default: ([^()]*)\)", text)
        meaning, default = match.groups() if match else (text, flag["default"])
        if flag["flag"] == "--base-optimizer":  # which there are depends on the fairseq
            meaning = meaning.split(":")[0]
        found.append((meaning, "–" if default is None else str(default)))
    if len(set(found)) == 1:
        return found[0]
    return found[0][0], "the method's"


def combinations() -> str:
    """Returns the table of what combines with what."""
    from fairseq_sam.commands.methods import combinations as table

    return table()


TABLES: Dict[str, Callable[[], str]] = {
    "methods": methods,
    "flags": flags,
    "combinations": combinations,
}


def between(name: str) -> "re.Pattern[str]":
    """Returns the pattern of a table between its marks."""
    return re.compile(rf"(<!-- begin {name} -->\n)(.*?)(<!-- end {name} -->)", re.DOTALL)


def main() -> int:
    """Writes all tables into the page."""
    text = PAGE.read_text(encoding="utf-8")
    for name, table in TABLES.items():
        new = table()
        text, count = between(name).subn(
            lambda match, new=new: match[1] + new + "\n" + match[3], text
        )
        if count != 1:
            print(f"error: {PAGE.name} has {count} places for the table {name}", file=sys.stderr)
            return 1
    PAGE.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
