"""The eight GLUE tasks: δ-SAM, Table 1 (radii and η: Table 5; β of its draft version).

Batches, updates and warm-up are R-Drop's (huggingface_transformer_src/README.md of its repository),
who has them from fairseq's examples/roberta.
"""

from __future__ import annotations

import importlib.util
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Dict, Iterator, List, Tuple

from fairseq_sam.experiments import recipe as r
from fairseq_sam.experiments.experiment import Experiment
from fairseq_sam.experiments.option_types import choice
from fairseq_sam.experiments.recipes import classification

URL = os.environ.get("GLUE_URL", "https://dl.fbaipublicfiles.com/glue/data")


@dataclass(frozen=True)
class Task:
    """A task: its settings, and how many examples it has to train on.

    Attributes:
        size: of the training set.
        batch: examples of an update.
        updates: in all; the learning rate rises for the first ``warmup``.
        warmup: see there.
        beta: β of the draft version, for RoBERTa-large and for BERT-base.
        metrics: what is reported.
        best: what the checkpoint is chosen by.
        classes: 1 for a number.
        pairs: whether examples are pairs of sentences.
        archive: the file to get, "" where it has the task's name.
    """

    size: int
    batch: int
    updates: int
    warmup: int
    beta: Tuple[int, int]
    metrics: str = "accuracy"
    best: str = "accuracy"
    classes: int = 2
    pairs: bool = True
    archive: str = ""


TASKS = {
    "CoLA": Task(8551, 16, 5336, 320, (20, 10), metrics="matthews", best="mcc", pairs=False),
    "MNLI": Task(392702, 32, 123873, 7432, (3, 3), classes=3),
    "MRPC": Task(3668, 16, 2296, 137, (5, 10), metrics="accuracy,f1"),
    "QNLI": Task(104743, 32, 33112, 1986, (3, 3), archive="QNLIv2"),
    "QQP": Task(363846, 32, 113272, 28318, (3, 3), metrics="accuracy,f1", archive="QQP-clean"),
    "RTE": Task(2490, 8, 2036, 122, (5, 70)),
    "SST-2": Task(67349, 32, 20935, 1256, (3, 3), pairs=False),
    "STS-B": Task(5749, 16, 3598, 214, (10, 10), "pearson,spearman", "loss", classes=1),
}
RHO = {"roberta": "0.02", "bert": "0.05"}
RHO_OF_NUMBERS = "0.01"

METRICS = dict.fromkeys(TASKS, "Accuracy")
METRICS.update({"CoLA": "Matthews", "STS-B": "Pearson"})
PAPER_ORDER = ("MNLI", "QQP", "RTE", "QNLI", "MRPC", "CoLA", "SST-2", "STS-B")
SOURCE = (
    "Zhou et al., δ-SAM, Findings of EMNLP 2022, Table 1, {}: best of 5 runs; SMART's RTE, MRPC "
    "and STS-B are of a model trained on MNLI before"
)
PAPER = {
    ("bert", "BERT-base"): {
        "baseline": "83.8 91.0 68.2 90.8 85.3 62.3 92.4 89.3",
        "r_drop": "85.5 91.4 71.1 92.0 87.3 62.6 93.0 89.6",
        "sam": "85.0 91.6 69.3 91.7 88.2 63.1 93.0 89.4",
        "delta_sam": "85.2 91.7 72.2 91.5 89.5 63.8 93.7 89.7",
    },
    ("roberta", "RoBERTa-large"): {
        "baseline": "90.2 92.2 86.6 94.7 90.9 68.0 96.4 92.4",
        "r_drop": "90.9 92.5 88.4 95.2 91.4 70.0 96.9 92.5",
        "free_lb": "90.6 92.6 88.1 95.0 91.4 71.1 96.7 92.7",
        "smart": "91.1 92.4 92.0 95.6 89.2 70.6 96.9 92.8",
        "r3f": "91.1 92.4 88.5 95.3 91.6 71.2 97.0 –",
        "sam": "91.0 92.3 88.5 95.0 91.4 69.2 96.7 92.4",
        "delta_sam": "91.1 92.5 89.2 95.1 92.2 71.1 96.9 92.7",
    },
}


def published() -> Dict[str, r.Published]:
    """Returns the figures of each task and model."""
    found = {}
    for (family, model), rows in PAPER.items():
        for column, task in enumerate(PAPER_ORDER):
            figures = {name: row.split()[column] for name, row in rows.items()}
            name = f"glue_{task.replace('-', '')}_{family}"
            found[name] = r.Published(SOURCE.format(model), {METRICS[task]: figures})
    return found


SAM = "--base-optimizer adam --sam-rho {rho} --optimizer"
OTHER = "--optimizer adam --criterion"


class Glue(r.Recipe):
    """A column of the table; scored is the dev set."""

    name = "glue"
    title = "GLUE"
    about = """Reproduces a column of δ-SAM's Table 1: gets a GLUE task, fine-tunes a pretrained
encoder on it with R-Drop's settings, as the paper does, without and with sharpness-aware training,
and prints best and median of the seeds on the dev set beside the paper's. What the paper leaves
open: docs/reproduce.md.

delta_sam_etaX has another η. The paper's grid is sam and delta_sam_eta{1e-4,2e-4,5e-4,1e-3} at
0.01, 0.02 and 0.05, for instance: --methods
baseline,sam@0.01,sam@0.02,sam@0.05,delta_sam_eta5e-4@0.02"""
    examples = """RTE --model roberta.large/model.pt --gpus 1 --parallel 4
MRPC --model minilm --data ~/corpora/glue --methods baseline,sam,delta_sam,ga_sam
RTE --model minilm --data ~/corpora/glue --small --seeds 1"""
    options = """
    task TASK       CoLA, MNLI, MRPC, QNLI, QQP, RTE, SST-2 or STS-B
    --model FILE    a folder that fairseq-sam convert wrote, or the model.pt of fairseq's
                    roberta.base or roberta.large
    --arch NAME     of a model.pt: roberta_base or roberta_large (default)
    --data DIR      a folder with the task's folder, or with its tsv files, plain or .gz (default:
                    download)
    --gpt2-bpe DIR  for a model.pt: a folder with encoder.json, vocab.bpe and dict.txt (default:
                    download)
    --epochs N      (default: R-Drop's number of updates, about 10 epochs; with --batch 10, with
                    --small 2)
    --lr X
    --batch N       (default: 32, of MRPC, CoLA and STS-B 16, of RTE 8)
    """
    sizes = {"lr": ("1e-5", "1e-5")}
    settings = {"limit": ("", "--limit 200 100"), "subset": ("valid", "valid")}
    methods = {
        "baseline": "--optimizer adam",
        "sam": f"{SAM} sam",
        "delta_sam": f"{SAM} delta_sam --delta-sam-eta {{eta}}",
        "delta_sam_literal": f"{SAM} delta_sam --delta-sam-eta {{eta}} "
        "--delta-sam-probe-radius {rho}",
        "delta_sam_draft": f"{SAM} delta_sam --delta-sam-variant draft --delta-sam-beta {{beta}}",
        "per_instance_sam": f"{SAM} per_instance_sam {{twice}}",  # δ-SAM, App. A: twice the epochs
        # Not in the paper; found on STS-B with MiniLM, docs/results/small_runs.md.
        "ga_sam": "--optimizer ga_sam --base-optimizer adam --sam-rho 5e-6",
        "asam": "--optimizer asam --base-optimizer adam",
        "free_lb": f"{OTHER} free_lb_sentence_prediction",
        "r3f": f"{OTHER} r3f_sentence_prediction",
        "r_drop": f"{OTHER} r_drop_sentence_prediction",
        "smart": f"{OTHER} smart_sentence_prediction {r.SMART}",
        **{
            f"delta_sam_eta{eta}": f"{SAM} delta_sam --delta-sam-eta {eta}"
            for eta in ("1e-4", "2e-4", "5e-4", "1e-3")
        },
    }
    default = "baseline,sam,delta_sam,ga_sam"
    seeds = "1,2,3,4,5"
    remembered = ("data", "task", "model", "small", "epochs", "lr", "batch", "extra")
    shared = """--user-dir {root}/fairseq_sam --task sentence_prediction --num-classes {classes}
        --init-token 0 {model_flags} --finetune-from-model {model_file} --shorten-method truncate
        --required-batch-size-multiple 1 --criterion per_sentence_sentence_prediction
        --dropout 0.1 --attention-dropout 0.1 --weight-decay 0.01 --adam-betas '(0.9, 0.98)'
        --adam-eps 1e-06 --clip-norm 0.0 --lr-scheduler polynomial_decay --lr {lr}
        --total-num-update {updates} --warmup-updates {warmup} --max-update {updates}
        --batch-size {batch} --best-checkpoint-metric {best} --no-epoch-checkpoints {kind} {fp16}"""
    score = classification.SCORE
    published = published()

    def choose(self, x: Experiment) -> Dict[str, Any]:
        options = x.options
        task = TASKS[choice("TASK", options.task, list(TASKS))]
        if options.batch is not None or options.epochs is not None or options.small:
            options.epochs = options.epochs or (2 if options.small else 10)
        options.batch = options.batch or task.batch
        model = pretrained(x)
        kind = (
            ["--maximize-best-checkpoint-metric"] if task.classes > 1 else ["--regression-target"]
        )
        best = task.best
        if best == "mcc" and can_report_mcc(x):
            kind.append("--report-mcc")
        elif best == "mcc":
            best = "accuracy"
        return {
            **model,
            **{"classes": task.classes, "best": best, "kind": kind, "metrics": task.metrics},
            "batch": x.per_worker(options.batch),
            "rho": RHO_OF_NUMBERS if task.classes == 1 else RHO[model["family"]],
            "eta": "5e-4" if options.task == "RTE" else "1e-4",
            "beta": task.beta[model["family"] == "bert"],
            "fp16": ["--fp16"] if options.gpus and not options.small else [],
        }

    def flags(self, x: Experiment, seed: int) -> Dict[str, Any]:
        task = TASKS[x.options.task]
        found = {"updates": task.updates, "warmup": task.warmup}
        if x.options.epochs is not None:
            size, text = task.size, Path(x.out, "prepared", "train.input0")
            size = min(size, 200) if x.options.small else size
            if text.is_file():
                with open(text, "rb") as lines:
                    size = sum(1 for _ in lines)
            updates = x.options.epochs * -(-size // x.options.batch)
            found = {"updates": updates, "warmup": updates * 6 // 100}
        twice = {name: 2 * number for name, number in found.items()}
        schedule = "--total-num-update {updates} --warmup-updates {warmup} --max-update {updates}"
        return {**found, "twice": r.words(schedule, **twice)}

    def downloads(self, x: Experiment) -> Iterator[r.Step]:
        options = x.options
        if not os.path.isdir(options.model) and options.gpt2_bpe is None:
            yield from classification.gpt2_bpe(x.out)
        if options.data is None:
            if options.task == "MRPC":
                raise r.ExperimentError(
                    "MRPC is not for download: put its train.tsv and dev.tsv into a folder and name"
                    " it with --data"
                )
            archive = f"{x.out}/download/{options.task}.zip"
            name = TASKS[options.task].archive or options.task
            yield r.Download(f"{URL}/{name}.zip", archive)
            yield from r.commands(
                "{python} -m zipfile -e {to} {out}/download", **x.values(to=archive)
            )

    def prepare(self, x: Experiment, folder: str) -> Iterator[r.Step]:
        task, values = TASKS[x.options.task], x.values(dir=folder)
        yield from r.commands(
            """mkdir -p {dir}/pieces
            {python} {root}/scripts/data/glue_task.py --data {data} --task {task} --out {dir} \\
                {limit}""",
            **values,
        )
        parts = classification.PAIR if task.pairs else classification.PAIR[:1]
        yield from classification.binarised(("train", "valid"), parts, task.classes == 1, **values)

    def heading(self, x: Experiment) -> str:
        return f"GLUE, {x.options.task}"

    def table(self, x: Experiment) -> str:
        return f"glue_{x.options.task.replace('-', '')}_{x.values()['family']}"

    def report_flags(self, x: Experiment) -> List[str]:
        return ["--summary", "best-median"]


def pretrained(x: Experiment) -> Dict[str, Any]:
    """Returns what depends on where the model is from: its flags, dictionary and tokeniser.

    Raises:
        MisuseError: it is not there, or not a model.
    """
    options, model = x.options, x.options.model
    if os.path.isdir(model or ""):
        if options.arch:
            raise r.MisuseError(f"argument --arch: {options.arch}: the folder {model} has its own")
        return classification.converted(x, model, pairs=TASKS[options.task].pairs)
    classification.check_model(x, model, f"{classification.FOLDER}, or a model.pt")
    bpe = options.gpt2_bpe or f"{x.out}/download"
    arch = choice("--arch", options.arch or "roberta_large", ["roberta_base", "roberta_large"])
    return {
        "family": "roberta",
        "model_flags": r.words(f"--arch {arch} --max-positions 512 --separator-token 2"),
        "model_file": model,
        "dictionary": f"{bpe}/dict.txt",
        "encode": r.words(
            "{python} {root}/scripts/data/gpt2_bpe.py --encoder-json {bpe}/encoder.json "
            "--vocab-bpe {bpe}/vocab.bpe",
            **x.values(bpe=bpe),
        ),
    }


def can_report_mcc(x: Experiment) -> bool:
    """Tells whether the fairseq at hand knows ``--report-mcc``; 0.12.2 does not."""
    found = importlib.util.find_spec("fairseq")
    if x.dry or found is None or found.origin is None:
        return True
    source = Path(found.origin).with_name("criterions") / "sentence_prediction.py"
    known = source.is_file() and "report_mcc" in source.read_text(encoding="utf-8")
    if not known:
        x.tell("this fairseq has no --report-mcc: the best checkpoint is chosen by accuracy")
    return known


RECIPE = Glue()
