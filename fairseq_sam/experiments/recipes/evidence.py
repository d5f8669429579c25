"""Does it help? Methods against their base optimizer, at equal updates and at equal compute.

No paper's table: the protocol and the figures are in docs/results/protocol.md and evidence.md.
"""

from __future__ import annotations

import argparse
from typing import Any, Dict, Iterator, List

from fairseq_sam.experiments import recipe as r
from fairseq_sam.experiments.experiment import Experiment
from fairseq_sam.experiments.recipes import classification, evidence_tasks
from fairseq_sam.experiments.recipes.evidence_tasks import FOLDS, TASKS

PRESETS = ("sam", "asam", "layer_sam", "multi_step_defense", "ga_sam", "delta_sam")
SAM = "--optimizer {} --base-optimizer {{base}} --sam-rho 5%"
LONGER = "longer"


class Evidence(r.Recipe):
    """One folder a task; of MR a seed is a fold."""

    name = "evidence"
    title = "Evidence"
    about = """Trains a small model on real data with its base optimizer and with every method from
the same first epochs, at one radius for all (5 % of the loss), with several seeds; also the base
optimizer for as long as SAM takes (longer), a random direction of the same length (random) and
R-Drop. The checkpoint is chosen by the validation set. The report has quality, calibration and
measured cost, and the differences from the base optimizer, paired over seeds, with intervals and
with p-values corrected for the number of methods. Protocol and results: docs/results."""
    examples = """--task mr --data ~/corpora/mr
--task de_en --data ~/corpora/multi30k --seeds 1,2,3 --methods baseline,longer,sam,functional,random
--task ptb_lstm --data ~/corpora/ptb --methods baseline,sam,sam@2%,functional
--task mrpc --data ~/corpora/glue --model minilm --seeds 1,2,3 --methods baseline,sam"""
    options = f"""
    --task {"|".join(TASKS)}
    --data PATH      mr: {{pos,neg}}; imdb: {{train,test}}/{{pos,neg}}, or its .tar.gz; de_en:
                     {{train,valid,test}}.{{de,en}}; ptb_...: ptb.{{train,valid,test}}.txt;
                     mrpc: {{train,dev}}.tsv and msr_paraphrase_test.txt, or MRPC with them; stsb:
                     {{train,dev}}.tsv and sts-test.csv, or STS-B with them; each plain or .gz
    --model FOLDER   of mrpc and stsb: what fairseq-sam convert wrote
    --train N        examples to train on, of de_en (default: 5000) and ptb_... (4000)
    --epochs N       in all (default: the task's)
    --start-epoch N  first one with the perturbation (default: the task's)
    """
    sizes = {"task": ("mr", "mr")}
    methods = {
        "baseline": "--optimizer {base}",
        LONGER: "--optimizer {base}",  # see length
        **{name: SAM.format(name) for name in PRESETS},
        "functional": SAM.format("functional_sam"),
        # A share is not for it. The preset's radius.
        "momentum": "--optimizer momentum_sam --base-optimizer {base} --sam-rho 0.5",
        "vasso": SAM.format("vasso"),
        "friendly": SAM.format("friendly_sam"),
        "quarter": f"{SAM.format('sam')} --sam-ascent-fraction 0.25",
        "functional_quarter": f"{SAM.format('functional_sam')} --sam-ascent-fraction 0.25",
        "vasso_quarter": f"{SAM.format('vasso')} --sam-ascent-fraction 0.25",
        "late": f"{SAM.format('sam')} --sam-start-fraction 0.7",
        "random": f"{SAM.format('sam')} --sam-direction random",
        "r_drop": "--optimizer {base} --criterion r_drop_{criterion} --r-drop-alpha {alpha}",
    }
    default = (
        f"baseline,{LONGER},{','.join(PRESETS)},functional,momentum,quarter,late,random,r_drop"
    )
    seeds = "1,2,3,4,5"
    on_cpu = True
    remembered = ("data", "task", "model", "train", "epochs", "start_epoch", "small", "extra")
    shared = """--user-dir {root}/fairseq_sam {task_flags}
        --criterion per_sentence_{criterion} --num-workers 0 --no-epoch-checkpoints"""
    report = """
{python} -m fairseq_sam.commands report {runs} --relative-to {out}/runs \\
    --group-by '/seed[0-9]+' --against baseline,longer --metrics {metrics} --title {title} \\
    {flags} --cost-plot {out}/cost.png --json {out}/report.json --output {out}/report.md
"""
    published = {}

    def folder(self, options: argparse.Namespace) -> str:
        return f"evidence-{options.task or 'mr'}"

    def choose(self, x: Experiment) -> Dict[str, Any]:
        options, task = x.options, TASKS[x.options.task]
        if options.data is None:
            raise r.MisuseError("argument --data: is missing: the folder with the task's files")
        if options.task == "mr" and not set(options.seeds) <= set(FOLDS):
            raise r.MisuseError(
                f"argument --seeds: {max(options.seeds)} is not allowed: of mr it is a fold, 1 to"
                f" {len(FOLDS)}"
            )
        if options.train is not None and not task.train:
            raise r.MisuseError(
                f"argument --train: {options.train} is not allowed: {options.task} is taken whole"
            )
        if task.base == "sgd" and "momentum" in options.methods:
            if options.methods != self.default.split(","):
                raise r.MisuseError(
                    f"argument --methods: momentum is not allowed: the SGD of {options.task} has "
                    "none to follow"
                )
            options.methods.remove("momentum")
        options.epochs = options.epochs or (2 if options.small else task.epochs)
        options.start_epoch = options.start_epoch or (2 if options.small else task.start_epoch)
        options.train = options.train or (500 if options.small else task.train)
        model = {}
        if task.glue:
            classification.check_model(x, options.model)
            model = classification.converted(x, options.model, pairs=True)
            model["model_flags"] += ["--finetune-from-model", model["model_file"]]
        elif options.model is not None:
            raise r.MisuseError(
                f"argument --model: {options.model} is not allowed: {options.task} has its own"
            )
        return {
            **model,
            "glue": task.glue,
            "limit": ["--limit", str(options.train), "100"] if options.small else [],
            "task_flags": [*r.words(task.flags), *model.get("model_flags", [])],
            **{"criterion": task.criterion, "alpha": task.alpha, "base": task.base},
            **{"train": options.train, "metrics": task.metrics},
        }

    def length(self, x: Experiment, method: str) -> int:
        own = x.options.epochs - x.options.start_epoch + 1
        return x.options.epochs + (own if method == LONGER else 0)

    def prepare(self, x: Experiment, folder: str) -> Iterator[r.Step]:
        values = x.values(dir=folder)
        if x.options.task in ("mr", "imdb"):
            yield from evidence_tasks.reviews(FOLDS if x.options.task == "mr" else (), **values)
        elif x.options.task == "de_en":
            yield from evidence_tasks.pairs(**values)
        elif TASKS[x.options.task].glue:
            yield from evidence_tasks.sentence_pairs(**values)
        else:
            yield from evidence_tasks.text(**values)

    def flags(self, x: Experiment, seed: int) -> Dict[str, Any]:
        return {"bin": f"{x.out}/prepared/fold{seed}/bin"} if x.options.task == "mr" else {}

    def scoring(self, x: Experiment, run: Any) -> List[r.Step]:
        return list(r.commands(TASKS[x.options.task].score, **x.values(**run)))

    def heading(self, x: Experiment) -> str:
        return TASKS[x.options.task].title


RECIPE = Evidence()
