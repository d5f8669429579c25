"""A small Transformer trained twice from the same first epochs: Adam alone, Adam inside GA-SAM.

The corpus is made: numbers, dates, times and prices in words. GA-SAM's radius was chosen on its
validation set (docs/results/quickstart.md).
"""

from __future__ import annotations

import argparse
import os
import re
from pathlib import Path
from typing import Any, Dict, Iterator, List, Sequence

from fairseq_sam.experiments import recipe as r
from fairseq_sam.experiments.experiment import Experiment
from fairseq_sam.experiments.option_types import choice

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
MAKE = """
{python} {root}/scripts/data/number_corpus.py --pair {pair} --seed {seed} --out {corpus}
"""
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


class Quickstart(r.Recipe):
    """One seed, two runs; another method in the same folder adds a row."""

    name = "quickstart"
    title = "Quickstart"
    about = """Installs what is missing, makes a small parallel corpus (numbers, dates, times and
prices in words), trains a small Transformer twice from the same first epochs (Adam alone; Adam
inside GA-SAM), averages the last checkpoints, translates the test set and compares: BLEU and chrF
(sacreBLEU on detokenised text), validation loss and seconds per epoch as a table, learning curves
and sharpness as a plot. A rerun skips what is done and goes on where a killed run stopped.
Another method with the same --out adds a row."""
    examples = """--optimizer sam --rho 0.05
--data ~/corpora/multi30k --pair de-en --epochs 12 --start-epoch 8"""
    options = """
    --pair SRC-TGT        languages; without --data any two that num2words knows
    --data DIR            DIR/{train,valid,test}.{SRC,TGT}, each plain or .gz, instead of the made
                          corpus
    --text auto|raw|tokenized  tokenized if it is Moses-tokenized already; auto looks at it
    --bpe N[0..1000000]   joint BPE merges, 0 for whole words (default: whole words if they cover
                          the validation set, otherwise 300, with --data 4000)
    --optimizer NAME      sam, asam, layer_sam, multi_step_defense, ga_sam or delta_sam
    --rho X[0..]          radius of the perturbation (default: 0.00005 for ga_sam, else the method's
                          own)
    --steps N[1..1000]    ascent steps (default: the method's own)
    --sam-extra 'FLAGS'   more flags for the sharpness-aware run only, e.g. '--sam-norm l2'
    --label NAME          name of the sharpness-aware run (default: the method's)
    --epochs N[1..10000]  (default: 30, with --data 10)
    --start-epoch N       first epoch with the perturbation (default: halfway); those before are
                          trained once
    --model tiny|small    2+2 layers, 128 wide, or 3+3 layers, 256 wide
    --max-tokens N        tokens in a batch (default: 1500, with --data 3000)
    --lr X                peak learning rate
    --average N           checkpoints to average
    --seed SEED
    """
    sizes = {
        **{"pair": ("de-en", "de-en"), "text": ("auto", "auto"), "model": ("tiny", "tiny")},
        **{"optimizer": ("ga_sam", "ga_sam"), "lr": ("0.003", "0.003"), "average": (3, 3)},
        **{"seed": (1, 1)},
    }
    methods = {"adam": "--optimizer adam"}
    first = default = "adam"
    one_seed = True
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

    def folder(self, options: argparse.Namespace) -> str:
        name = f"{os.path.basename(options.data)}-" if options.data else ""
        return f"quickstart-{name}{options.pair or 'de-en'}"

    def choose(self, x: Experiment) -> Dict[str, Any]:
        options, is_made = x.options, x.options.data is None
        languages = languages_of(options.pair)
        if not is_made:
            check_files(options.data, languages)
        choice("--optimizer", options.optimizer, METHODS)
        options.epochs = options.epochs or (30 if is_made else 10)
        options.start_epoch = options.start_epoch or options.epochs // 2 + 1
        options.max_tokens = options.max_tokens or (1500 if is_made else 3000)
        options.seeds, options.label = [options.seed], options.label or options.optimizer
        # The record of the shared epochs would be that of a run called so.
        if not re.fullmatch("(?!(adam|shared)$)[A-Za-z0-9_-][A-Za-z0-9._-]*", options.label):
            raise r.MisuseError(
                f"argument --label: {options.label} is not allowed: it must be letters, digits, "
                "'.', '_' and '-', and neither adam nor shared"
            )
        options.methods = ["adam", options.label]
        rho = options.rho or (GA_SAM_RHO if options.optimizer == "ga_sam" else "")
        flags = f"--optimizer {options.optimizer} --base-optimizer adam"
        flags += f" --sam-rho {rho}" if rho else ""
        flags += f" --sam-steps {options.steps}" if options.steps else ""
        more = (options.sam_extra or "").replace("{", "{{").replace("}", "}}")
        self.methods = {**type(self).methods, options.label: f"{flags} {more}"}
        # Checkpoints are shared, so both runs need the criterion that the method needs.
        kind = "per_sentence_" if options.optimizer == "delta_sam" else ""
        return {
            **{"source": languages[0], "target": languages[1]},
            "criterion": f"{kind}label_smoothed_cross_entropy",
            "max_tokens": options.max_tokens,
            "model": r.words(MODEL, **SIZES[options.model]),
            "corpus": options.data or f"{x.out}/corpus",
        }

    def recorded(self, x: Experiment) -> Dict[str, Any]:
        run = self.methods[x.options.label].replace("--sam-rho ", "rho=")
        values = {"criterion": x.values()["criterion"], f"runs/{x.options.label}": run}
        return {**super().recorded(x), **values}

    def downloads(self, x: Experiment) -> Iterator[r.Step]:
        yield from r.commands("" if x.options.data else MAKE, **x.values())

    def prepare(self, x: Experiment, folder: str) -> Iterator[r.Step]:
        values = x.values(dir=folder)
        languages = (values["source"], values["target"])
        yield from r.commands(TEXT, **values)
        merges = x.options.bpe
        if merges is None:
            whole = x.options.data is None if x.dry else words_suffice(Path(folder), languages)
            merges = 0 if whole else 4000 if x.options.data else 300
        x.tell(f"{merges} BPE merges" if merges else "whole words")
        yield from r.commands(LEARN if merges else "", merges=merges, **values)
        for part in SPLITS:
            for language in languages:
                split = APPLY if merges else WHOLE_WORDS
                yield from r.commands(split, part=part, language=language, **values)
        yield from r.commands(BINARISE, **values)

    def heading(self, x: Experiment) -> str:
        return f"Quickstart {os.path.basename(x.options.data or 'corpus')} {x.options.pair}"

    def reported(self, x: Experiment) -> List[str]:
        # The runs of earlier commands in the same folder too.
        records = Path(x.out, ".done").glob("score.*")
        scored = sorted(path.name[6:] for path in records if path.suffix != ".lock")
        ours = [name for name, _ in x.scored()]
        return [x.path(name, 1) for name in dict.fromkeys([*ours, *scored])]

    def closing(self, x: Experiment) -> List[str]:
        models = " ".join(f"{x.path(name, 1)}/average.pt" for name, _ in x.scored())
        return [
            "one seed is no evidence: seeds differ from each other as much as these two rows may",
            f"to use the environment: source {os.environ.get('VIRTUAL_ENV', 'VENV')}/bin/activate",
            "to try next:",
            f"  fairseq-sam robustness {x.out}/prepared/bin {models} --radii 0.5,1",
            "  bash scripts/quickstart.sh --optimizer sam --rho 0.05",
        ]


def languages_of(pair: str) -> Sequence[str]:
    """Returns source and target.

    Raises:
        MisuseError: they are not two languages.
    """
    found = re.fullmatch("([A-Za-z_]+)-(?!\\1$)([A-Za-z_]+)", pair)
    if not found:
        raise r.MisuseError(
            f"argument --pair: {pair} is not allowed: it must be two different languages with a "
            "hyphen, such as de-en"
        )
    return found.groups()


def check_files(folder: str, languages: Sequence[str]) -> None:
    """Refuses a folder without all files.

    Raises:
        MisuseError: naming the first that is missing.
    """
    for name in (f"{part}.{language}" for part in SPLITS for language in languages):
        if not any(os.path.isfile(f"{folder}/{name}{end}") for end in ("", ".gz")):
            raise r.MisuseError(
                f"argument --data: {folder} is not allowed: neither {name} nor {name}.gz is in it"
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
