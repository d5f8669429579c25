"""Tabulates what scripts/adversarial_risk.sh measured, as Markdown.

python risk_table.py METHOD/seedN...
"""

import argparse
import statistics
from pathlib import Path
from typing import Dict, List, NamedTuple

from fairseq_sam.files.reading import read_json, read_lines
from fairseq_sam.reporting.train_log import parse_log


class Result(NamedTuple):
    """One training: accuracy in percent, losses in nats per sentence."""

    accuracy: float
    clean: float
    adversarial: float
    difference: float


Results = Dict[str, Dict[str, Result]]
"""By method and seed."""


def read_result(run: Path) -> Result:
    """Reads the last validation of the log, and the risk."""
    accuracy = parse_log(read_lines(run / "train.log"))[-1].valid["accuracy"]
    risk = read_json(run / "risk.json")
    (risk,) = risk["checkpoints"]
    means = (risk[name]["mean"] for name in ("clean", "adversarial", "difference"))
    return Result(accuracy, *means)


def spread(values: List[float], digits: int) -> str:
    """Returns mean ± standard deviation."""
    text = f"{statistics.mean(values):.{digits}f}"
    return text if len(values) < 2 else f"{text} ± {statistics.stdev(values):.{digits}f}"


def table(results: Results) -> str:
    """Returns one row a method."""
    rows = [
        "| method | accuracy (%) | loss | adversarial loss | difference |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    for method, by_seed in results.items():
        runs = list(by_seed.values())
        columns = [spread([run.accuracy for run in runs], 1)]
        for field in ("clean", "adversarial", "difference"):
            columns.append(spread([getattr(run, field) for run in runs], 3))
        rows.append(f"| {method} | {' | '.join(columns)} |")
    return "\n".join(rows)


def comparisons(results: Results) -> str:
    """Returns, for each pair of neighbours, in how many seeds the first has the higher risk."""
    lines = []
    methods = list(results)
    for first, second in zip(methods, methods[1:]):
        ones, others = results[first], results[second]
        gaps = [ones[s].adversarial - others[s].adversarial for s in ones if s in others]
        if not gaps:
            continue
        higher = sum(gap > 0 for gap in gaps)
        lines.append(
            f"- adversarial loss of {first} minus {second}: {spread(gaps, 3)}, "
            f"positive for {higher} of {len(gaps)} seeds"
        )
    return "\n".join(lines)


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="+", type=Path, help="folders METHOD/seedN")
    results: Results = {}
    for run in parser.parse_args().runs:
        results.setdefault(run.parent.name, {})[run.name] = read_result(run)
    print(table(results))
    print()
    print(comparisons(results))


if __name__ == "__main__":
    main()
