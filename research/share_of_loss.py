#!/usr/bin/env python3
"""Compares the logged sharpness with the share of the loss that was asked for.

``--sam-rho 5%`` is the radius at which the loss rises by 5 % to first order. How far it really
rises depends on the loss's curvature. This trains a command for some updates with each norm and
scale, and prints the mean over the updates of sharpness / loss, and of the radius that it took.

Example:
    python research/share_of_loss.py --updates 50 -- DATA --arch transformer_iwslt_de_en --lr 5e-4
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, Dict, List, Tuple

from fairseq_sam.flags.number_types import count, radius

TRAINER = [sys.executable, "-c", "from fairseq_cli.train import cli_main; cli_main()"]

SCALES = {
    "none": [],
    "weight": ["--sam-granularity", "element"],
    "weight-over-gradient": ["--sam-granularity", "layer"],
    "gradient-strength": ["--sam-granularity", "layer"],
    "inverse-gradient": ["--sam-granularity", "layer"],
    "weight-strength": ["--sam-granularity", "layer"],
}


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--share", type=radius, default="5%", help="as of --sam-rho (default: 5%%)")
    parser.add_argument("--updates", type=count, default=50, help="of each run (default: 50)")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    parser.add_argument("command", nargs="+", help="flags of fairseq-train, after --")
    return parser.parse_args()


def train(args: argparse.Namespace, norm: str, scale: str) -> List[Dict[str, Any]]:
    """Returns what a run logged, update for update; nothing where it ended with an error."""
    import fairseq_sam

    with tempfile.TemporaryDirectory() as directory:
        flags = ["--user-dir", str(Path(fairseq_sam.__file__).parent), "--save-dir", directory]
        flags += [
            "--no-save",
            "--disable-validation",
            "--log-format",
            "json",
            "--log-interval",
            "1",
        ]
        flags += ["--optimizer", "sam", "--sam-rho", args.share, "--sam-norm", norm]
        flags += ["--sam-scale", scale, *SCALES[scale], "--max-update", str(args.updates)]
        done = subprocess.run(
            [*TRAINER, *args.command, *flags],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
    if done.returncode != 0:
        print(done.stdout[-2000:], file=sys.stderr)
        return []
    lines = [line.partition("train_inner | ")[2] for line in done.stdout.splitlines()]
    return [json.loads(line) for line in lines if line]


def shares(records: List[Dict[str, Any]]) -> Tuple[float, float, float]:
    """Returns the mean of sharpness / loss, of the radius, and of the loss."""
    rises = [float(each["sharpness"]) / float(each["loss"]) for each in records]
    radii = [float(each["rho"]) for each in records]
    losses = [float(each["loss"]) for each in records]
    return statistics.mean(rises), statistics.mean(radii), statistics.mean(losses)


def main() -> None:
    args = parse_args()
    figures: Dict[str, Dict[str, float]] = {}
    print("| norm | scale | sharpness / loss | mean radius | mean loss |")
    print("| --- | --- | ---: | ---: | ---: |", flush=True)
    for norm in ("l2", "linf"):
        for scale in SCALES:
            records = train(args, norm, scale)
            if not records:
                print(f"| {norm} | {scale} | ended with an error | | |", flush=True)
                continue
            rise, rho, loss = shares(records)
            figures[f"{norm} {scale}"] = {"sharpness / loss": rise, "rho": rho, "loss": loss}
            print(f"| {norm} | {scale} | {rise:.2%} | {rho:.2e} | {loss:.2f} |", flush=True)
    rises = [each["sharpness / loss"] for each in figures.values()]
    print(f"\nasked for {args.share}; from {min(rises):.2%} to {max(rises):.2%}")
    if args.json:
        args.json.write_text(json.dumps(figures, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
