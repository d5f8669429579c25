"""Sentence embeddings without labels: δ-SAM, Table 2 (settings: its Appendix A).

All else is as in the authors' code (github.com/cambridgeltl/mirror-bert), AdamW with torch's
defaults and the pooling included. In half precision, which it has, δ-SAM's weights would be
rounding noise. fairseq 0.12.2 loads a validation set even where it is not to validate.
"""

from __future__ import annotations

import argparse
import os
from typing import Any, Dict, Iterator

from fairseq_sam.experiments import recipe as r
from fairseq_sam.experiments.experiment import Experiment
from fairseq_sam.experiments.recipes.classification import check_model, converted

URL = os.environ.get(
    "MIRROR_BERT_URL",
    "https://raw.githubusercontent.com/cambridgeltl/mirror-bert/main/data/mirror_corpus/"
    "stsbenchmark_train_10k_sents_random_sampled.txt",
)
FAMILIES = {
    "bert": {"rho": "0.1", "noise": "0.1", "pooling": "mean"},
    "roberta": {"rho": "0.02", "noise": "0.2", "pooling": "cls"},
}

SETS = ["STS average", "STS12", "STS13", "STS14", "STS15", "STS16", "STS-B", "SICK-R"]
SOURCE = "Zhou et al., δ-SAM, Findings of EMNLP 2022, Table 2, {}: mean of 5 runs"
PAPER = {
    ("bert", "Mirror-BERT-base"): {
        "baseline": "74.85 67.87 80.98 71.84 81.58 74.41 77.78 69.53",
        "free_lb": "75.71 69.78 80.81 72.87 82.55 74.77 79.01 70.40",
        "r3f": "75.27 68.58 80.93 72.51 81.97 75.47 77.62 69.79",
        "sam": "75.50 68.37 82.16 72.88 82.22 74.71 77.98 70.20",
        "delta_sam": "75.72 68.44 82.30 73.12 82.27 75.12 78.83 69.94",
        "sam_noise": "76.44 70.09 83.53 74.22 82.67 77.61 80.16 66.81",
        "delta_sam_noise": "76.71 69.73 83.73 74.58 83.01 77.72 79.08 69.11",
    },
    ("roberta", "Mirror-RoBERTa-base"): {
        "baseline": "74.98 64.49 81.69 73.32 79.78 77.49 78.53 69.56",
        "free_lb": "75.73 65.52 82.41 74.00 80.72 78.60 79.06 69.81",
        "r3f": "75.32 64.58 82.12 73.62 80.27 77.90 78.66 70.13",
        "sam": "75.18 64.86 81.96 73.56 79.82 77.06 78.83 70.21",
        "delta_sam": "75.27 64.97 81.89 73.46 80.12 77.62 78.96 69.89",
        "sam_noise": "75.90 66.65 82.52 74.10 80.81 78.47 79.02 69.71",
        "delta_sam_noise": "76.31 66.94 82.86 74.46 81.13 78.91 79.52 70.32",
    },
}
SAM = "--base-optimizer adam --sam-rho {rho} --optimizer"
DELTA = f"{SAM} delta_sam --delta-sam-eta"
NOISE = "--mirror-noise {noise}"


class MirrorBert(r.Recipe):
    """10,000 sentences, 50 updates; scored is the last checkpoint, on test and dev sets."""

    name = "mirror_bert"
    title = "Mirror-BERT on STS"
    about = """Reproduces δ-SAM's Table 2: gets Mirror-BERT's 10,000 sentences, makes a pretrained
encoder a sentence encoder by contrasting two views of each, without and with sharpness-aware
training of one view, and prints the paper's Spearman's ρ on STS12 to 16, STS-B and SICK-R beside
the measured one, the mean of the seeds. Scored is the last checkpoint. What the paper leaves
open: docs/sentence_embeddings.md.

r3f is noise alone, X_noise is X with noise. The paper's grid is sam and
delta_sam{,_eta1e-3,_eta1e-2,_eta0.1} at 0.01, 0.02, 0.05 and 0.1, for instance: --methods
baseline,sam@0.01,delta_sam_eta0.1@0.05. It chose on STS-B's development set, which the report has
as "STS-B dev"."""
    examples = """--model bert-base --sts SentEval/data/downstream --gpus 1 --parallel 4
--model minilm --sts ~/corpora/sts --data ~/corpora/sentences.txt.gz --small --seeds 1"""
    options = """
    --model FOLDER   that fairseq-sam convert wrote, of bert-base-uncased or roberta-base in the
                     paper
    --sts DIR        SentEval's data/downstream: a folder with STS and SICK in it
    --data PATH      sentences, one a line: a file, or a folder of *.txt, plain or .gz (default:
                     download)
    --epochs N
    --batch N[2..]   sentences of an update, each the others' negative
    --lr X
    """
    sizes = {"epochs": (1, 1), "batch": (200, 50), "lr": ("2e-5", "2e-5")}
    settings = {"limit": ("", "--limit 1000")}
    methods = {
        "baseline": "--optimizer adam",
        "r3f": f"--optimizer adam {NOISE}",
        "sam": f"{SAM} sam",
        "delta_sam": f"{DELTA} 1.0",
        "sam_noise": f"{SAM} sam {NOISE}",
        "delta_sam_noise": f"{DELTA} 1.0 {NOISE}",
        "delta_sam_literal": f"{DELTA} 1.0 --delta-sam-probe-radius {{rho}}",
        "ga_sam": "--optimizer ga_sam --base-optimizer adam",  # not in the paper
        **{f"delta_sam_eta{eta}": f"{DELTA} {eta}" for eta in ("1e-3", "1e-2", "0.1")},
    }
    default = "baseline,r3f,sam,delta_sam,sam_noise,delta_sam_noise"
    seeds = "1,2,3,4,5"
    curves = False
    remembered = ("data", "model", "sts", "small", "epochs", "lr", "batch", "extra")
    shared = """--user-dir {root}/fairseq_sam --task sentence_similarity --max-sentence-tokens 50
        {model_flags} --finetune-from-model {model_file}
        --criterion mirror_bert --mirror-temperature 0.04 --mirror-pooling {pooling}
        --mirror-span 2 --mirror-perturb one --dropout 0.1 --attention-dropout 0.1
        --weight-decay 0.01 --adam-betas '(0.9, 0.999)' --adam-eps 1e-08 --clip-norm 0.0
        --lr {lr} --lr-scheduler fixed --batch-size {batch} --required-batch-size-multiple 1
        --disable-validation --valid-subset train --no-epoch-checkpoints"""
    preparation = """
{python} {root}/scripts/data/sentences.py --data {data} --out {dir}/train.text {limit}
{encode} < {dir}/train.text > {dir}/train.pieces
{python} -m fairseq_cli.preprocess --only-source --srcdict {dictionary} \\
    --trainpref {dir}/train.pieces --destdir {dir}/bin --workers 4
"""
    score = """
{python} -m fairseq_sam.commands sts {sts} {run}/checkpoints/checkpoint_last.pt --data {bin} \\
    --tokenizer {tokenizer} {cpu} --json {run}/sts.json
{python} -m fairseq_sam.commands sts {sts} {run}/checkpoints/checkpoint_last.pt --data {bin} \\
    --tokenizer {tokenizer} {cpu} --json {run}/sts-dev.json --dev
{python} {root}/scripts/scoring/similarity.py {run}/sts.json {run}/sts-dev.json \\
    --output {run}/scores.json
"""
    published = {
        f"mirror_{family}_sts": r.Published(SOURCE.format(model), r.columns(SETS, rows))
        for (family, model), rows in PAPER.items()
    }

    def folder(self, options: argparse.Namespace) -> str:
        return f"mirror-{os.path.basename((options.model or '').rstrip('/'))}"

    def choose(self, x: Experiment) -> Dict[str, Any]:
        options = x.options
        if x.shares > 1:
            raise r.MisuseError(
                "arguments --gpus, --nodes: one GPU a training, whose batch has all of a "
                "sentence's negatives"
            )
        check_model(x, options.model)
        model = converted(x, options.model)
        if options.sts is None:
            raise r.MisuseError("argument --sts: is missing: a folder with STS and SICK in it")
        more = {
            "tokenizer": f"{options.model}/tokenizer.json",
            "cpu": [] if options.gpus else ["--cpu"],
        }
        return {**model, **FAMILIES[model["family"]], **more}

    def downloads(self, x: Experiment) -> Iterator[r.Step]:
        if x.options.data is None:
            yield r.Download(URL, f"{x.out}/download/sentences.txt")

    def table(self, x: Experiment) -> str:
        return f"mirror_{x.values()['family']}_sts"


RECIPE = MirrorBert()
