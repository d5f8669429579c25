"""BART on CNN/DailyMail: δ-SAM, Table 3 (ρ = 0.01, η = 1e-4).

Fine-tuned as in fairseq's recipe (examples/bart/README.summarization.md). That restores the model
with --restore-file and resets, which would begin anew after every interruption;
--finetune-from-model does so only the first time.
"""

from __future__ import annotations

import os
from typing import Any, Dict, Iterator, List, Mapping, Sequence

from fairseq_sam.experiments import recipe as r
from fairseq_sam.experiments.experiment import Experiment
from fairseq_sam.experiments.recipes import classification
from fairseq_sam.experiments.recipes.translation import SMALL_MODEL

# The stories as the data set's own repository has them at one commit, whose SHA-256 it lists.
STORIES_URL = os.environ.get(
    "CNN_DM_URL",
    "https://huggingface.co/datasets/abisee/cnn_dailymail/resolve/"
    "11343c3752184397d56efc19a8a7cceb68089318/data",
)
STORIES = {
    "cnn_stories.tgz": "e8fbc0027e54e0a916abd9c969eb35f708ed1467d7ef4e3b17a56739d65cb200",
    "dailymail_stories.tgz": "ad69010002210b7c406718248ee66e65868b9f6820f163aa966369878d14147e",
}
LISTS_URL = os.environ.get(
    "CNN_DM_LISTS_URL", "https://raw.githubusercontent.com/abisee/cnn-dailymail/master/url_lists"
)
BART_URL = "https://dl.fbaipublicfiles.com/fairseq/models/bart.large.tar.gz"

# 65536 tokens an update: fairseq's recipe has 8 GPUs with four batches of 2048 each.
BATCHES = 32

# BART's text infilling (Lewis et al. 2020): spans of Poisson length become one mask. Its shuffling
# of sentences needs --bpe gpt2, for which fairseq's task fetches the BPE's files itself.
PRETRAINING = """
mkdir -p {out}/pretrain
{python} -m fairseq_cli.train {out}/prepared/pretrain-bin --user-dir {root}/fairseq_sam \\
    --task denoising {model} --layernorm-embedding --share-all-embeddings \\
    --share-decoder-input-output-embed --tokens-per-sample 512 --sample-break-mode complete \\
    --shorten-method truncate --mask 0.3 --mask-length span-poisson --poisson-lambda 3.5 \\
    --replace-length 1 --permute-sentences 0 --rotate 0 --criterion cross_entropy \\
    --optimizer adam --adam-betas '(0.9, 0.98)' --weight-decay 0.01 --clip-norm 0.1 --lr 1e-3 \\
    --lr-scheduler polynomial_decay --warmup-updates {pretrain_warmup} \\
    --total-num-update {pretrain_updates} --max-update {pretrain_updates} --max-tokens 2048 \\
    --seed 1 --skip-invalid-size-inputs-valid-test --no-epoch-checkpoints \\
    --save-dir {out}/pretrain/checkpoints --no-progress-bar --log-format json --log-interval 20 \\
    {device}
"""
ENCODE = """{python} {root}/scripts/data/gpt2_bpe.py --encoder-json {bpe}/encoder.json \\
    --vocab-bpe {bpe}/vocab.bpe < {dir}/{part}.{side} > {dir}/{part}.bpe.{side}"""
# Summaries longer than the model's positions would stop fairseq-generate, which needs none.
BINARISE = """
{python} -m fairseq_cli.preprocess --source-lang source --target-lang target \\
    --trainpref {dir}/train.bpe --validpref {dir}/val.bpe --destdir {dir}/bin --workers 4 \\
    {dictionary}
{python} -m fairseq_cli.preprocess --source-lang source --target-lang target --only-source \\
    --srcdict {dir}/bin/dict.source.txt --testpref {dir}/test.bpe --destdir {dir}/bin --workers 4
"""
BINARISE_FOR_PRETRAINING = """
cat {dir}/train.bpe.source {dir}/train.bpe.target > {dir}/pretrain.bpe
{python} -m fairseq_cli.preprocess --only-source --srcdict {dir}/bin/dict.source.txt \\
    --trainpref {dir}/pretrain.bpe --validpref {dir}/val.bpe.source --destdir {dir}/pretrain-bin \\
    --workers 4
"""
AVERAGE = """
{python} -m fairseq_sam.commands average {run}/checkpoints --last-epochs {average} \\
    --output {run}/average.pt --force
"""

DELTA = "--optimizer delta_sam --base-optimizer adam --sam-rho 0.01"


class Bart(r.Recipe):
    """287k articles; the summaries of the papers have at least 55 tokens."""

    name = "bart_cnn_dm"
    title = "BART on CNN/DM"
    about = """Reproduces δ-SAM's Table 3: gets CNN/DailyMail, encodes it with GPT-2's BPE,
fine-tunes BART as fairseq's recipe does, without and with sharpness-aware training, summarises
the test set, and prints the paper's ROUGE beside the measured one with its spread and a
paired-bootstrap p-value. Hardware, time, disk and what the paper leaves open: docs/reproduce.md.

delta_sam_literal probes at ρ, as published, delta_sam at a length that floating point allows
(docs/results/delta_weights.md); delta_sam_draft is the draft version with β = 10."""
    examples = """--bart bart.large/model.pt --gpus 8
--small --data ~/corpora/summaries --seeds 1
--bart bart.large/model.pt --dry-run"""
    options = """
    --bart FILE        model.pt of bart.large (or another BART)
    --data DIR         a folder with {train,val,test}.{source,target}, plain or .gz, or with
                       cnn/stories, dailymail/stories and url_lists (default: download)
    --gpt2-bpe DIR     a folder with encoder.json, vocab.bpe and dict.txt (default: download)
    --updates N[10..]
    --pretrain-updates N[0..]  with --small and without --bart a tiny BART is first trained for N
                       updates to restore corrupted text of the same corpus
    --average N[0..]   average the last N epochs' checkpoints; 0 takes the best by validation loss
    """
    sizes = {"updates": (20000, 300), "pretrain_updates": (0, 300), "average": (0, 0)}
    settings = {
        "model": ("--arch bart_large", f"--arch bart_base {SMALL_MODEL}"),
        "lr": ("3e-5", "3e-4"),
        "limit": ("", "--limit 1000 50"),
    }
    methods = {
        "baseline": "--optimizer adam",
        "sam": "--optimizer sam --base-optimizer adam --sam-rho 0.01",
        "delta_sam": f"{DELTA} --delta-sam-eta 1e-4",
        "delta_sam_literal": f"{DELTA} --delta-sam-eta 1e-4 --delta-sam-probe-radius 0.01",
        "delta_sam_draft": f"{DELTA} --delta-sam-variant draft",
        "ga_sam": "--optimizer ga_sam --base-optimizer adam",
        "r3f": "--optimizer adam --criterion r3f_label_smoothed_cross_entropy",
        # α as in R-Drop's own script for CNN/DM.
        "r_drop": "--optimizer adam --criterion r_drop_label_smoothed_cross_entropy "
        "--r-drop-alpha 0.7",
    }
    default = "baseline,sam,delta_sam"
    has_epochs = False
    remembered = ("data", "bart", "small", "updates", "pretrain_updates", "average", "extra")
    shared = """--user-dir {root}/fairseq_sam --task translation --source-lang source
        --target-lang target --truncate-source --finetune-from-model {pretrained} {model}
        --layernorm-embedding --share-all-embeddings --share-decoder-input-output-embed
        --required-batch-size-multiple 1 --skip-invalid-size-inputs-valid-test
        --criterion per_sentence_label_smoothed_cross_entropy --label-smoothing 0.1
        --dropout 0.1 --attention-dropout 0.1 --weight-decay 0.01 --adam-betas '(0.9, 0.999)'
        --adam-eps 1e-08 --clip-norm 0.1 --lr-scheduler polynomial_decay --lr {lr}
        --warmup-updates {warmup} --total-num-update {updates} --max-update {updates}
        --max-tokens 2048 --update-freq {update_freq} --save-interval-updates 1000
        --keep-interval-updates 1 --keep-last-epochs {keep} {fp16}"""
    score = """
{python} -m fairseq_cli.generate {bin} --user-dir {root}/fairseq_sam --path {checkpoint} \\
    --gen-subset test --task translation --source-lang source --target-lang target \\
    --truncate-source --beam 4 --lenpen 2.0 --max-len-b 140 --min-len {least} \\
    --no-repeat-ngram-size 3 --batch-size 32 --required-batch-size-multiple 1 {device} \\
    > {run}/summaries.txt
{python} {root}/scripts/scoring/summaries.py --generated {run}/summaries.txt \\
    --encoder-json {bpe}/encoder.json --vocab-bpe {bpe}/vocab.bpe \\
    --reference {prepared}/test.target {baseline} --output {run}/scores.json
"""
    published = {
        "bart_cnn_dm": r.Published(
            "Zhou et al., δ-SAM, Findings of EMNLP 2022, Table 3; its ROUGE-L is our ROUGE-Lsum",
            r.columns(
                ["ROUGE-1", "ROUGE-2", "ROUGE-Lsum"],
                {
                    "baseline": "44.16 21.28 40.90",
                    "r3f": "44.38 21.53 41.17",
                    "r_drop": "44.51 21.58 41.24",
                    "delta_sam": "44.70 21.54 41.81",
                },
            ),
        )
    }

    def choose(self, x: Experiment) -> Dict[str, Any]:
        options, small = x.options, x.options.small
        if options.bart is None and not small:
            raise r.MisuseError(f"argument --bart: is missing: the model.pt of {BART_URL}")
        if options.bart is not None and not x.dry and not os.path.isfile(options.bart):
            raise r.MisuseError(f"argument --bart: {options.bart} is not allowed: no such file")
        bpe = options.gpt2_bpe or f"{x.out}/download"
        dictionary = r.words("--srcdict {bpe}/dict.txt --tgtdict {bpe}/dict.txt", bpe=bpe)
        return {
            "bpe": bpe,
            "pretrain_warmup": options.pretrain_updates // 10,
            "warmup": options.updates // 10 if small else 500,
            "update_freq": 1 if small else x.per_worker(BATCHES),
            "pretrained": options.bart or f"{x.out}/pretrain/checkpoints/checkpoint_last.pt",
            # A model that is pretrained here needs no more words than the text has.
            "dictionary": dictionary if options.bart else ["--joined-dictionary"],
            "device": r.words("--distributed-world-size 1" + ("" if options.gpus else " --cpu")),
            "fp16": ["--fp16"] if options.gpus and not small else [],
            "keep": max(options.average, 1),
            "least": 10 if options.data else 55,  # the summaries of other corpora may be shorter
        }

    def downloads(self, x: Experiment) -> Iterator[r.Step]:
        yield from r.commands("mkdir -p {out}/download/cnn-dailymail/url_lists", out=x.out)
        if x.options.gpt2_bpe is None:
            yield from classification.gpt2_bpe(x.out)
        if x.options.data is None:
            for name, sha256 in STORIES.items():
                yield r.Download(f"{STORIES_URL}/{name}", f"{x.out}/download/{name}", sha256)
            for part in ("train", "val", "test"):
                folder = f"{x.out}/download/cnn-dailymail/url_lists"
                yield r.Download(f"{LISTS_URL}/all_{part}.txt", f"{folder}/all_{part}.txt")

    def prepare(self, x: Experiment, folder: str) -> Iterator[r.Step]:
        corpus = x.options.data or f"{x.out}/download/cnn-dailymail"
        values = x.values(dir=folder, corpus=corpus)
        for name in () if x.options.data else STORIES:
            yield from r.commands("tar -xzf {out}/download/{name} -C {corpus}", name=name, **values)
        yield from r.commands(
            "{python} {root}/scripts/data/summary_corpus.py --data {corpus} --out {dir} {limit}",
            **values,
        )
        for part in ("train", "val", "test"):
            for side in ("source", "target"):
                yield from r.commands(ENCODE, part=part, side=side, **values)
        yield from r.commands(BINARISE, **values)
        if not x.options.bart:
            yield from r.commands(BINARISE_FOR_PRETRAINING, **values)

    def pretraining(self, x: Experiment) -> Sequence[r.Command]:
        return [] if x.options.bart else r.commands(PRETRAINING, **x.values())

    def scoring(self, x: Experiment, run: Mapping[str, Any]) -> List[r.Step]:
        average = x.options.average
        best = "average.pt" if average else "checkpoints/checkpoint_best.pt"
        text = (AVERAGE if average else "") + self.score
        return [*r.commands(text, **x.values(**run, checkpoint=f"{run['run']}/{best}"))]


RECIPE = Bart()
