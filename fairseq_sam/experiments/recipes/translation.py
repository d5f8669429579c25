"""What the translation tables of GA-SAM share (its Appendices B and C).

fairseq's ``transformer_wmt_en_de`` "with the same hyper-parameters following fairseq", whose recipe
for IWSLT'14 has the ones that are here. The norm is L∞ throughout, two steps where a method takes
several; radii of scales that depend on the gradient belong to the summed loss.
"""

from __future__ import annotations

import argparse
from typing import Any, ClassVar, Dict, Mapping, Sequence

from fairseq_sam.commands.number_types import count
from fairseq_sam.experiments.command_lines import words
from fairseq_sam.experiments.errors import MisuseError
from fairseq_sam.experiments.experiment import Experiment
from fairseq_sam.experiments.options import existing
from fairseq_sam.experiments.recipe import SMART, Recipe

SOURCE = "Zhang et al., GA-SAM, EMNLP 2022, Tables 1 and 5: mean ± standard deviation of 4 runs"

FULL: Dict[str, Any] = {
    "model": words("--arch transformer_wmt_en_de"),
    "warmup": 4000,
    "max_tokens": 4096,
    "generate_tokens": 12000,
    "limit": [],
}
SMALL: Dict[str, Any] = {
    "model": words(
        """--arch transformer --encoder-layers 2 --decoder-layers 2
        --encoder-embed-dim 128 --decoder-embed-dim 128 --encoder-ffn-embed-dim 256
        --decoder-ffn-embed-dim 256 --encoder-attention-heads 4 --decoder-attention-heads 4"""
    ),
    "warmup": 400,
    "max_tokens": 2000,
    "generate_tokens": 4000,
    "limit": words("--limit 10000 500"),
}


def methods(free_lb: str, **radii: str) -> Dict[str, str]:
    """Returns the flags of all methods; α of R-Drop is that of its own script for IWSLT'14."""
    sam = {
        name: f"--optimizer {name} --base-optimizer adam --sam-rho {radii[name]}" for name in radii
    }
    linf = "--sam-norm linf"
    other = "--optimizer adam --criterion {name}_label_smoothed_cross_entropy".replace
    return {
        "baseline": "--optimizer adam",
        "sam": f"{sam['sam']} {linf}",
        "asam": f"{sam['asam']} {linf}",
        "layer_sam": f"{sam['layer_sam']} {linf} --sam-loss-reduction sum",
        "multi_step_defense": f"{sam['multi_step_defense']} {linf} --sam-steps 2",
        "ga_sam": f"{sam['ga_sam']} {linf} --sam-steps 2 --sam-loss-reduction sum",
        "delta_sam": sam["delta_sam"],
        "free_lb": f"{other('{name}', 'free_lb')} --free-lb-norm linf {free_lb}",
        "r3f": other("{name}", "r3f"),
        "r_drop": f"{other('{name}', 'r_drop')} --r-drop-alpha 5",
        "smart": f"{other('{name}', 'smart')} {SMART}",
    }


class Translation(Recipe):
    """Both tables; the criterion's values are fairseq's own, and δ-SAM can share epochs with it."""

    default = "baseline,sam,asam,layer_sam,multi_step_defense,ga_sam"
    full_epochs: ClassVar[int]
    source: ClassVar[str]
    target: ClassVar[str]
    remembered: ClassVar[Sequence[str]] = (
        "data",
        "small",
        "epochs",
        "start_epoch",
        "average",
        "extra",
    )
    shared = """--user-dir {root}/fairseq_sam --source-lang {source} --target-lang {target} {model}
        --share-decoder-input-output-embed --dropout 0.3
        --criterion per_sentence_label_smoothed_cross_entropy --label-smoothing 0.1
        --adam-betas '(0.9, 0.98)' --weight-decay 0.0001 --clip-norm 0.0
        --lr 5e-4 --lr-scheduler inverse_sqrt --warmup-updates {warmup}
        --max-tokens {max_tokens} --keep-last-epochs {average}"""
    score = """
{python} -m fairseq_sam.commands average {run}/checkpoints --last-epochs {average} \\
    --output {run}/average.pt --force
{python} -m fairseq_cli.generate {bin} --user-dir {root}/fairseq_sam --path {run}/average.pt \\
    --gen-subset test --source-lang {source} --target-lang {target} --beam 5 {remove_bpe} \\
    --max-tokens {generate_tokens} --distributed-world-size 1 > {run}/generate.txt
{python} {root}/scripts/scoring/translations.py --generated {run}/generate.txt \\
    --reference {prepared}/test.raw.{target} --lang {target} {score_flags} {baseline} \\
    --output {run}/scores.json
"""

    def add_options(self, parser: argparse._ArgumentGroup) -> None:
        """Adds the corpus and the epochs."""
        add = parser.add_argument
        # fmt: off
        add("--data", type=existing, metavar="PATH", help=self.data_help)
        add("--epochs", type=count, metavar="N",
            help=f"(default: {self.full_epochs}, with --small 6)")
        add("--start-epoch", type=count, metavar="N",
            help="first epoch with the perturbation (default: 30, with --small 4)")
        add("--average", type=count, metavar="N",
            help="checkpoints to average (default: 10, with --small 2)")
        # fmt: on

    data_help: ClassVar[str]

    def choose(self, x: Experiment) -> Dict[str, Any]:
        """Chooses the paper's settings, or small ones."""
        options, small = x.options, x.options.small
        options.epochs = options.epochs or (6 if small else self.full_epochs)
        options.start_epoch = options.start_epoch or (4 if small else 30)
        options.average = options.average or (2 if small else 10)
        for name in ("start_epoch", "average"):
            value = getattr(options, name)
            if value > options.epochs:
                flag = name.replace("_", "-")
                raise MisuseError(
                    f"argument --{flag}: {value} is not allowed: there are {options.epochs} epochs"
                )
        settings: Mapping[str, Any] = SMALL if small else FULL
        return {
            **settings,
            "source": self.source,
            "target": self.target,
            "average": options.average,
            "max_tokens": settings["max_tokens"] // x.shares,
            "remove_bpe": [],
            "score_flags": [],
        }
