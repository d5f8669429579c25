"""Adversarial risk of trained models: δ-SAM, Table 4 (ρ = 0.05), in small.

The paper has BERT on MRPC and RTE; here a small encoder is trained from scratch on movie reviews.
"""

from __future__ import annotations

import os
from typing import Any, Dict

from fairseq_sam.experiments import recipe as r
from fairseq_sam.experiments.experiment import Experiment

SAM = "--base-optimizer adam --sam-rho {rho} --optimizer"
PER_SENTENCE = "--criterion per_sentence_sentence_prediction"
SCHEDULE = "--warmup-updates {0} --total-num-update {1} --max-update {1}"


class AdversarialRisk(r.Recipe):
    """Saved and validated once, at the end: no checkpoint is chosen by the set that measures it."""

    name = "adversarial_risk"
    title = "Adversarial risk"
    about = """Trains a small sentence classifier from scratch with Adam, SAM, δ-SAM and
per-instance perturbation, with several seeds, measures accuracy and adversarial risk (fairseq-sam
risk) on held-out sentences, and prints a table (δ-SAM, Table 4, in small). With the defaults a
seed takes some six minutes of one core, most of it per-instance perturbation."""
    examples = "--data ~/corpora/mr --seeds 1,2,3,4,5"
    options = """
    --data DIR         DIR/{pos,neg}, plain or .gz: one tokenised sentence a line (the movie reviews
                       of Pang and Lee 2005, known as MR or rt-polarity)
    --rho X            radius, in training and in measuring
    --updates N[10..]  of each training, 16 sentences each
    --train N[32..]    sentences to train on
    --valid N[2..]     sentences to measure on
    """
    sizes = {
        "rho": ("0.05", "0.05"),
        "updates": (600, 20),
        "train": (3000, 200),
        "valid": (1000, 40),
    }
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
    paper = r.Published(  # other data and another model: not shown beside what is measured
        "Zhou et al., δ-SAM, Findings of EMNLP 2022, Table 4, BERT-base: ρ = 0.05",
        r.columns(
            ["MRPC", "RTE"],
            {
                "adam": "1.93 2.97",
                "sam": "0.62 0.78",
                "delta_sam": "0.59 0.75",
                "per_instance_sam": "0.50 0.65",
            },
        ),
    )

    def choose(self, x: Experiment) -> Dict[str, Any]:
        options = x.options
        if options.data is None:
            raise r.MisuseError("argument --data: is missing: the directory with the sentences")
        for name in ("pos", "neg"):
            if not any(os.path.isfile(f"{options.data}/{name}{end}") for end in ("", ".gz")):
                raise r.MisuseError(
                    f"argument --data: {options.data} is not allowed: neither {name} nor {name}.gz "
                    "is in it"
                )
        if options.small and not options.seeds_given:
            options.seeds = [1]
        updates = options.updates
        return {
            "schedule": r.words(SCHEDULE.format(updates // 10, updates)),
            "twice": r.words(SCHEDULE.format(updates // 5, 2 * updates)),
            "cpu": [] if options.gpus else ["--cpu"],
        }


RECIPE = AdversarialRisk()
