"""A small Transformer trained twice from the same first epochs: Adam alone, Adam inside GA-SAM.

The corpus is made: numbers, dates, times and prices in words. GA-SAM's radius was chosen on its
validation set (docs/results/quickstart.md).
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
from pathlib import Path
from typing import Any, Dict, Iterator, List

from fairseq_sam.commands.number_types import (
    at_least_zero,
    count,
    num_steps,
    positive,
    seed,
    whole_number,
)
from fairseq_sam.experiments.command_lines import Step, commands, words
from fairseq_sam.experiments.errors import MisuseError
from fairseq_sam.experiments.experiment import Experiment
from fairseq_sam.experiments.options import as_given, existing, flags_text
from fairseq_sam.experiments.recipe import Recipe

METHODS = ("sam", "asam", "layer_sam", "multi_step_defense", "ga_sam", "delta_sam")
SPLITS = ("train", "valid", "test")
GA_SAM_RHO = "0.00005"
MODEL = """--arch transformer --share-decoder-input-output-embed --dropout {dropout}
    --encoder-layers {layers} --decoder-layers {layers} --encoder-embed-dim {width}
    --decoder-embed-dim {width} --encoder-ffn-embed-dim {ffn} --decoder-ffn-embed-dim {ffn}
    --encoder-attention-heads 4 --decoder-attention-heads 4"""
SIZES = {
    "tiny": {"layers": 2, "width": 128, "ffn": 256, "dropout": 0.1},
    "small": {"layers": 3, "width": 256, "ffn": 512, "dropout": 0.3},
}
TEXT = """
{python} {root}/scripts/data/parallel_text.py --data {corpus} --source {source} --target {target} \\
    --out {dir} --cased --keep-abbreviations --keep-all --normalise --text {text}
"""
LEARN = """
{subword_nmt} learn-joint-bpe-and-vocab -s {merges} -o {dir}/bpe.codes \\
    --input {dir}/train.{source} {dir}/train.{target} \\
    --write-vocabulary {dir}/bpe.vocab.{source} {dir}/bpe.vocab.{target}
"""
APPLY = """{subword_nmt} apply-bpe -c {dir}/bpe.codes --vocabulary {dir}/bpe.vocab.{language} \\
    < {dir}/{part}.{language} > {dir}/{part}.bpe.{language}"""
WHOLE_WORDS = "cp {dir}/{part}.{language} {dir}/{part}.bpe.{language}"
# The model has 1024 positions, and one longer sentence would end validation or the translation.
BINARISE = """
{python} {root}/scripts/data/fit_lengths.py --dir {dir} --source {source} --target {target}
{python} -m fairseq_cli.preprocess --source-lang {source} --target-lang {target} --workers 2 \\
    --trainpref {dir}/train.fit --validpref {dir}/valid.fit --testpref {dir}/test.fit \\
    --destdir {dir}/bin
"""


class Quickstart(Recipe):
    """One seed, two runs; another method in the same folder adds a row."""

    name = "quickstart"
    title = "Quickstart"
    about = """Installs what is missing, makes a small parallel corpus (numbers, dates, times and
prices in words), trains a small Transformer twice from the same first epochs (Adam alone; Adam
inside GA-SAM), averages the last checkpoints, translates the test set and compares: BLEU and chrF
(sacreBLEU on detokenised text), validation loss and seconds per epoch as a table, learning curves
and sharpness as a plot. A rerun skips what is done and goes on where a killed run stopped.
Another method with the same --out adds a row."""
    examples = """

--optimizer sam --rho 0.05
--data ~/corpora/multi30k --pair de-en --epochs 12 --start-epoch 8"""
    methods = {"adam": "--optimizer adam"}
    first = "adam"
    default = "adam"
    one_seed = True
    extras = "quickstart"
    remembered = (
        *("data", "pair", "text", "bpe", "model", "max_tokens", "lr", "epochs", "start_epoch"),
        *("average", "seed", "extra"),
    )
    shared = """--user-dir {root}/fairseq_sam --source-lang {source} --target-lang {target} {model}
        --criterion {criterion} --label-smoothing 0.1 --adam-betas '(0.9, 0.98)' --lr {lr}
        --lr-scheduler inverse_sqrt --warmup-updates 100 --clip-norm 1.0
        --max-tokens {max_tokens} --keep-last-epochs {average}"""
    score = """
{python} -m fairseq_sam.commands average {run}/checkpoints --last-epochs {average} \\
    --output {run}/average.pt --force
{python} -m fairseq_cli.generate {bin} --user-dir {root}/fairseq_sam --path {run}/average.pt \\
    --gen-subset test --source-lang {source} --target-lang {target} --beam 5 --remove-bpe \\
    --max-tokens 4000 --distributed-world-size 1 > {run}/generate.txt
{python} {root}/scripts/scoring/translations.py --generated {run}/generate.txt \\
    --reference {prepared}/test.raw.{target} --lang {target} --output {run}/scores.json
rm -f {run}/checkpoints/checkpoint_best.pt
"""
    report = """{python} -m fairseq_sam.commands report {runs} --title {title} {flags} \\
        --output {out}/report.md"""
    published = {}

    def add_options(self, parser: argparse._ArgumentGroup) -> None:
        """Adds the text, the method and the sizes."""
        add = parser.add_argument
        # fmt: off
        add("--pair", default="de-en", metavar="SRC-TGT",
            help="languages (default: %(default)s); without --data any two that num2words knows")
        add("--data", type=existing, metavar="DIR",
            help="DIR/{train,valid,test}.{SRC,TGT}, each plain or .gz, instead of the made corpus")
        add("--text", choices=("auto", "raw", "tokenized"), default="auto",
            help="raw, or tokenized if it is Moses-tokenized already (default: look at it)")
        add("--bpe", type=whole_number(0, 1_000_000), metavar="N",
            help="joint BPE merges, 0 for whole words (default: whole words if they cover the "
                 "validation set, otherwise 300, with --data 4000)")
        add("--optimizer", choices=METHODS, default="ga_sam", help="(default: %(default)s)")
        add("--rho", type=as_given(at_least_zero), metavar="X",
            help=f"radius of the perturbation (default: {GA_SAM_RHO} for ga_sam, else the "
                 "method's own)")
        add("--steps", type=num_steps, metavar="K",
            help="ascent steps (default: the method's own)")
        add("--sam-extra", type=flags_text, default="", metavar="'FLAGS'",
            help="more flags for the sharpness-aware run only, e.g. '--sam-norm l2'")
        add("--label", metavar="NAME",
            help="name of the sharpness-aware run (default: the method's)")
        add("--epochs", type=whole_number(1, 10_000), metavar="N",
            help="(default: 30, with --data 10)")
        add("--start-epoch", type=count, metavar="N",
            help="first epoch with the perturbation (default: halfway); those before are trained "
                 "once")
        add("--model", choices=tuple(SIZES), default="tiny",
            help="tiny (2+2 layers, 128 wide; default) or small (3+3 layers, 256 wide)")
        add("--max-tokens", type=whole_number(1, 10**7), metavar="N",
            help="tokens in a batch (default: 1500, with --data 3000)")
        add("--lr", type=as_given(positive), default="0.003", metavar="X",
            help="peak learning rate (default: %(default)s)")
        add("--average", type=count, default=3, metavar="N",
            help="checkpoints to average (default: %(default)s)")
        add("--seed", type=seed, default=1, metavar="N", help="(default: %(default)s)")
        # fmt: on

    def folder(self, options: argparse.Namespace) -> str:
        """One for each corpus and pair."""
        name = f"{os.path.basename(options.data)}-" if options.data else ""
        return f"quickstart-{name}{options.pair}"

    def choose(self, x: Experiment) -> Dict[str, Any]:
        """Chooses what was not given, and names the two runs."""
        options, is_made = x.options, x.options.data is None
        source, target = languages_of(options.pair)
        options.epochs = options.epochs or (30 if is_made else 10)
        options.start_epoch = options.start_epoch or options.epochs // 2 + 1
        options.average = options.average or 3
        for name in ("start_epoch", "average"):
            if getattr(options, name) > options.epochs:
                raise MisuseError(
                    f"argument --{name.replace('_', '-')}: {getattr(options, name)} is not allowed:"
                    f" there are {options.epochs} epochs"
                )
        if not is_made:
            check_files(options.data, (source, target))
        options.max_tokens = options.max_tokens or (1500 if is_made else 3000)
        options.seeds, label = [options.seed], options.label or options.optimizer
        if not re.fullmatch(r"[A-Za-z0-9_-][A-Za-z0-9._-]*", label) or label == "adam":
            raise MisuseError(
                f"argument --label: {label} is not allowed: it must be letters, digits, '.', '_' "
                "and '-', and not adam"
            )
        options.methods, options.label = ["adam", label], label
        rho = GA_SAM_RHO if options.rho is None and options.optimizer == "ga_sam" else options.rho
        flags = f"--optimizer {options.optimizer} --base-optimizer adam"
        flags += f" --sam-rho {rho}" if rho is not None else ""
        flags += f" --sam-steps {options.steps}" if options.steps else ""
        self.methods = {**type(self).methods, label: f"{flags} {options.sam_extra}"}
        # Checkpoints are shared, so both runs need the criterion that the method needs.
        kind = "per_sentence_" if options.optimizer == "delta_sam" else ""
        options.criterion = f"{kind}label_smoothed_cross_entropy"
        return {
            **{"source": source, "target": target, "criterion": options.criterion},
            **{"lr": options.lr, "max_tokens": options.max_tokens, "average": options.average},
            "model": words(MODEL, **SIZES[options.model]),
            "corpus": options.data or f"{x.out}/corpus",
            "text": options.text,
        }

    def settings(self, x: Experiment) -> Dict[str, Any]:
        """The flags of the sharpness-aware run belong to its name."""
        label = x.options.label
        run = self.methods[label].replace("--sam-", "").replace("rho ", "rho=")
        return {**super().settings(x), "criterion": x.options.criterion, f"runs/{label}": run}

    def downloads(self, x: Experiment) -> Iterator[Step]:
        """Makes the corpus."""
        if x.options.data is None:
            yield from commands(
                "{python} {root}/scripts/data/number_corpus.py --pair {pair} --seed {seed} "
                "--out {corpus}",
                **x.values(pair=x.options.pair, seed=x.options.seed),
            )

    def prepare(self, x: Experiment, folder: str) -> Iterator[Step]:
        """Tokenises, splits into subwords unless whole words will do, and numbers them."""
        values = x.values(dir=folder)
        yield from commands(TEXT, **values)
        merges = x.options.bpe
        if merges is None:
            languages = (values["source"], values["target"])
            whole = x.options.data is None if x.dry else words_suffice(Path(folder), languages)
            merges = 0 if whole else 4000 if x.options.data else 300
        x.tell(f"{merges} BPE merges" if merges else "whole words")
        yield from commands(LEARN if merges else "", merges=merges, **values)
        for part in SPLITS:
            for language in (values["source"], values["target"]):
                split = APPLY if merges else WHOLE_WORDS
                yield from commands(split, part=part, language=language, **values)
        yield from commands(BINARISE, **values)

    def heading(self, x: Experiment) -> str:
        """Names corpus and pair."""
        return f"Quickstart {os.path.basename(x.options.data or 'corpus')} {x.options.pair}"

    def reported(self, x: Experiment) -> List[str]:
        """The runs of earlier commands in the same folder too."""
        scored = Path(x.out, ".done").glob("score.*")
        names = [name.partition("score.")[2] for name in sorted(path.name for path in scored)]
        names = [name for name in names if not name.endswith(".lock")]
        return [x.path(name, 1) for name in dict.fromkeys([*x.options.methods, *names])]

    def closing(self, x: Experiment) -> List[str]:
        """Says what the table is worth, and what to try next."""
        environment = shlex.quote(os.environ.get("VIRTUAL_ENV", ""))
        activate = f"source {environment}/bin/activate" if environment != "''" else ""
        return [
            "one seed is no evidence: differences between seeds are often as large as these",
            *([f"to use the environment: {activate}"] if activate else []),
            "to try next:",
            f"  fairseq-sam robustness {x.out}/prepared/bin "
            + " ".join(f"{x.path(name, 1)}/average.pt" for name in x.options.methods),
            "  bash scripts/quickstart.sh --optimizer sam --rho 0.05",
        ]


def languages_of(pair: str) -> List[str]:
    """Returns source and target.

    Raises:
        MisuseError: they are not two languages.
    """
    found = re.fullmatch(r"([A-Za-z_]+)-([A-Za-z_]+)", pair)
    if not found or found.group(1) == found.group(2):
        raise MisuseError(
            f"argument --pair: {pair} is not allowed: it must be two different languages with a "
            "hyphen, such as de-en"
        )
    return list(found.groups())


def check_files(folder: str, languages: Any) -> None:
    """Refuses a folder without all files.

    Raises:
        MisuseError: naming the first that is missing.
    """
    for part in SPLITS:
        for language in languages:
            name = f"{part}.{language}"
            if not any(os.path.isfile(f"{folder}/{name}{end}") for end in ("", ".gz")):
                raise MisuseError(
                    f"argument --data: {folder} is not allowed: neither {name} nor {name}.gz is in "
                    "it"
                )


def words_suffice(folder: Path, languages: Any) -> bool:
    """Tells whether fewer than 1 in 100 words of the validation set are new, in both languages."""
    for language in languages:
        known, new = (
            (folder / f"{part}.{language}").read_text(encoding="utf-8").split()
            for part in ("train", "valid")
        )
        seen = set(known)
        if 100 * sum(word not in seen for word in new) >= len(new):
            return False
    return True


RECIPE = Quickstart()
