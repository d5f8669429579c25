"""Tabulates what scripts/adversarial_risk.sh measured, as Markdown; standard library only.

python risk_table.py DIR --methods NAME... --seeds N
"""

import argparse
import json
import statistics
import sys
from pathlib import Path
from typing import Dict, List, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from fairseq_sam.flags.number_types import count


class Result(NamedTuple):
    """One training: accuracy in percent, losses in nats per sentence."""

    accuracy: float
    clean: float
    adversarial: float
    difference: float


def read_result(run: Path) -> Result:
    """Reads the last validation of the log, and the risk."""
    lines = (run / "train.log").read_text(encoding="utf-8").splitlines()
    last = [line for line in lines if '"valid_accuracy"' in line][-1]
    accuracy = float(json.loads(last[last.index("{") :])["valid_accuracy"])
    risk = json.loads((run / "risk.json").read_text(encoding="utf-8"))
    (risk,) = risk["checkpoints"]
    means = (risk[name]["mean"] for name in ("clean", "adversarial", "difference"))
    return Result(accuracy, *means)


def spread(values: List[float], digits: int) -> str:
    """Returns mean ± standard deviation."""
    text = f"{statistics.mean(values):.{digits}f}"
    return text if len(values) < 2 else f"{text} ± {statistics.stdev(values):.{digits}f}"


def table(results: Dict[str, List[Result]]) -> str:
    """Returns one row a method."""
    rows = [
        "| method | accuracy (%) | loss | adversarial loss | difference |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    for method, runs in results.items():
        columns = [spread([run.accuracy for run in runs], 1)]
        for field in ("clean", "adversarial", "difference"):
            columns.append(spread([getattr(run, field) for run in runs], 3))
        rows.append(f"| {method} | {' | '.join(columns)} |")
    return "\n".join(rows)


def comparisons(results: Dict[str, List[Result]]) -> str:
    """Returns, for each pair of neighbours, in how many seeds the first has the higher risk."""
    lines = []
    methods = list(results)
    for first, second in zip(methods, methods[1:]):
        gaps = [
            one.adversarial - other.adversarial
            for one, other in zip(results[first], results[second])
        ]
        higher = sum(gap > 0 for gap in gaps)
        lines.append(
            f"- adversarial loss of {first} minus {second}: {spread(gaps, 3)}, "
            f"positive for {higher} of {len(gaps)} seeds"
        )
    return "\n".join(lines)


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("directory", type=Path, help="the --out of scripts/adversarial_risk.sh")
    parser.add_argument("--methods", nargs="+", required=True, metavar="NAME")
    parser.add_argument("--seeds", type=count, required=True, metavar="N", help="seeds 1 to N")
    args = parser.parse_args()
    results = {
        method: [
            read_result(args.directory / f"{method}-seed{seed}")
            for seed in range(1, args.seeds + 1)
        ]
        for method in args.methods
    }
    print(table(results))
    print()
    print(comparisons(results))


if __name__ == "__main__":
    main()
