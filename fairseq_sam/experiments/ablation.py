"""GA-SAM's Tables 2 and 3: the ablations of two recipes, one after the other."""

from __future__ import annotations

import argparse
import os
from typing import Sequence

from fairseq_sam.experiments import conduct
from fairseq_sam.experiments.experiment import ROOT
from fairseq_sam.experiments.options import Parser
from fairseq_sam.experiments.recipes import recipe_of

TABLES = {"textcnn": ("textcnn_imdb", "imdb"), "lstm": ("lstm_ptb", "ptb")}
_ABOUT = """Trains GA-SAM with other risks, granularities, scales, steps and radii: 26 runs a seed
for TextCNN on IMDB (scripts/textcnn_imdb.sh) and 26 for the LSTM on PTB (scripts/lstm_ptb.sh), and
puts the paper's figures beside the measured ones: OUT/{textcnn,lstm}/report.md and ablations.png.
Every other option is handed on: --seeds, --small, --gpus, --parallel, --methods, --epochs, …"""
_EXAMPLES = """Examples:
  {0} --gpus 1 --parallel 8
  {0} --only lstm --small --ptb ~/corpora/ptb --seeds 1 --methods baseline,ga_sam,ga_sam_k2"""


def main(program: str, arguments: Sequence[str]) -> int:
    """Runs both, the second one after failures too; otherwise as :func:`conduct.main`."""
    check = [argument for argument in arguments if argument == "--check"]
    parser = Parser(
        prog=program,
        usage=f"{program} [OPTIONS] [OPTIONS OF THE TWO SCRIPTS]".replace("%", "%%"),
        description=_ABOUT,
        epilog=_EXAMPLES.format(program),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--only", choices=tuple(TABLES), help="(default: both)")
    add("--imdb", metavar="PATH", help="aclImdb's folder or archive (default: download)")
    add("--ptb", metavar="DIR", help="a folder with ptb.{train,valid,test}.txt (default: download)")
    add("--out", metavar="DIR", help="(default: runs/ablation, with --small runs/ablation-small)")
    add("--data", help=argparse.SUPPRESS)
    options, rest = parser.parse_known_args([a for a in arguments if a != "--check"])
    if options.data is not None:
        parser.error("argument --data: say --imdb and --ptb here")
    out = options.out or ROOT / "runs" / ("ablation-small" if "--small" in rest else "ablation")
    worst = 0
    for table, (recipe, corpus) in TABLES.items():
        if options.only in (None, table):
            given = getattr(options, corpus)
            data = ["--data", given] if given else []
            ours = [*check, "--methods", "ablations", "--out", os.path.join(out, table), *data]
            script = program.replace("ablation.sh", f"{recipe}.sh")
            status = conduct.main(recipe_of(recipe), script, [*ours, *rest])
            if status > 1:  # misuse, or Ctrl-C
                return status
            worst = max(worst, status)
    return worst
