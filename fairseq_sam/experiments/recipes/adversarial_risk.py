"""Adversarial risk of trained models: δ-SAM, Table 4 (ρ = 0.05), in small.

The paper has BERT on MRPC and RTE; here a small encoder is trained from scratch on movie reviews.
"""

from __future__ import annotations

import argparse
import os
from typing import Any, Dict

from fairseq_sam.commands.number_types import positive, whole_number
from fairseq_sam.experiments.command_lines import words
from fairseq_sam.experiments.errors import MisuseError
from fairseq_sam.experiments.experiment import Experiment
from fairseq_sam.experiments.options import as_given, existing
from fairseq_sam.experiments.recipe import Recipe, columns
from fairseq_sam.reporting.published import Published

FULL = {"updates": 600, "train": 3000, "valid": 1000}
SMALL = {"updates": 20, "train": 200, "valid": 40}

SAM = "--base-optimizer adam --sam-rho {rho} --optimizer"
PER_SENTENCE = "--criterion per_sentence_sentence_prediction"


class AdversarialRisk(Recipe):
    """Saved and validated once, at the end: no checkpoint is chosen by the set that measures it."""

    name = "adversarial_risk"
    title = "Adversarial risk"
    about = """Trains a small sentence classifier from scratch with Adam, SAM, δ-SAM and
per-instance perturbation, with several seeds, measures accuracy and adversarial risk (fairseq-sam
risk) on held-out sentences, and prints a table (δ-SAM, Table 4, in small). With the defaults a
seed takes some six minutes of one core, most of it per-instance perturbation."""
    examples = "--data ~/corpora/mr --seeds 1,2,3,4,5"
    methods = {
        "adam": "--optimizer adam",
        "sam": f"{SAM} sam",
        # With ρ as probe radius, as published.
        "delta_sam_literal": f"{SAM} delta_sam {PER_SENTENCE} --delta-sam-probe-radius {{rho}}",
        "delta_sam": f"{SAM} delta_sam {PER_SENTENCE}",
        "per_instance_sam": f"{SAM} per_instance_sam {{twice}}",  # δ-SAM, App. A: twice the epochs
    }
    default = ",".join(methods)
    seeds = "1,2,3"
    has_epochs = False
    on_cpu = True
    remembered = ("data", "rho", "updates", "train", "valid", "extra")
    schedule = "--warmup-updates {0} --total-num-update {1} --max-update {1}"
    shared = """--user-dir {root}/fairseq_sam --task sentence_prediction
        --criterion sentence_prediction --num-classes 2 --init-token 0 --max-positions 128
        --shorten-method truncate --arch roberta --encoder-layers 2 --encoder-embed-dim 64
        --encoder-ffn-embed-dim 128 --encoder-attention-heads 2 --dropout 0.1
        --attention-dropout 0.1 --adam-betas '(0.9, 0.98)' --lr 1e-3 --clip-norm 1.0
        --lr-scheduler polynomial_decay {schedule} --batch-size 16
        --required-batch-size-multiple 1 --num-workers 0
        --save-interval 10000 --validate-interval 10000 --no-epoch-checkpoints"""
    preparation = """
{python} {root}/scripts/data/split_reviews.py --data {data} --out {dir} --train {train} \\
    --valid {valid}
{python} -m fairseq_cli.preprocess --only-source --destdir {dir}/bin/input0 --thresholdsrc 2 \\
    --trainpref {dir}/train.input0 --validpref {dir}/valid.input0
{python} -m fairseq_cli.preprocess --only-source --destdir {dir}/bin/label --thresholdsrc 0 \\
    --trainpref {dir}/train.label --validpref {dir}/valid.label
"""
    score = """
{python} -m fairseq_sam.commands risk {bin} {run}/checkpoints/checkpoint_last.pt \\
    --rho {rho} {cpu} --json {run}/risk.json
rm -f {run}/checkpoints/checkpoint_best.pt
"""
    report = "{python} {root}/scripts/risk_table.py {runs} > {out}/report.md"
    published = {}
    paper = Published(  # other data and another model: not shown beside what is measured
        "Zhou et al., δ-SAM, Findings of EMNLP 2022, Table 4, BERT-base: ρ = 0.05",
        columns(
            ["MRPC", "RTE"],
            {
                "adam": "1.93 2.97",
                "sam": "0.62 0.78",
                "delta_sam": "0.59 0.75",
                "per_instance_sam": "0.50 0.65",
            },
        ),
    )

    def add_options(self, parser: argparse._ArgumentGroup) -> None:
        """Adds sentences, radius and sizes."""
        add = parser.add_argument
        # fmt: off
        add("--data", type=existing, metavar="DIR",
            help="DIR/{pos,neg}, plain or .gz: one tokenised sentence a line (the movie reviews of "
                 "Pang and Lee 2005, known as MR or rt-polarity)")
        add("--rho", type=as_given(positive), default="0.05", metavar="X",
            help="radius, in training and in measuring (default: %(default)s)")
        add("--updates", type=whole_number(10), metavar="N",
            help="updates of each training, 16 sentences each (default: 600, with --small 20)")
        add("--train", type=whole_number(32), metavar="N",
            help="sentences to train on (default: 3000, with --small 200)")
        add("--valid", type=whole_number(2), metavar="N",
            help="sentences to measure on (default: 1000, with --small 40)")
        # fmt: on

    def choose(self, x: Experiment) -> Dict[str, Any]:
        """Chooses the sizes."""
        options = x.options
        if options.data is None:
            raise MisuseError("argument --data: is missing: the directory with the sentences")
        for name in ("pos", "neg"):
            if not any(os.path.isfile(f"{options.data}/{name}{end}") for end in ("", ".gz")):
                raise MisuseError(
                    f"argument --data: {options.data} is not allowed: neither {name} nor {name}.gz "
                    "is in it"
                )
        if options.small and options.seeds == [1, 2, 3]:
            options.seeds = [1]
        for name, value in (SMALL if options.small else FULL).items():
            setattr(options, name, getattr(options, name) or value)
        updates = options.updates
        return {
            **{"rho": options.rho, "train": options.train, "valid": options.valid},
            "schedule": words(self.schedule.format(updates // 10, updates)),
            "twice": words(self.schedule.format(updates // 5, 2 * updates)),
            "cpu": [] if options.gpus else ["--cpu"],
        }


RECIPE = AdversarialRisk()
