"""IWSLT'14 German-English: GA-SAM, Table 1 (Appendix B.4; radii and FreeLB's: C.2, C.4)."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any, Dict, Iterator

from fairseq_sam.commands.number_types import whole_number
from fairseq_sam.experiments.command_lines import Download, Step, commands
from fairseq_sam.experiments.errors import ExperimentError
from fairseq_sam.experiments.experiment import Experiment
from fairseq_sam.experiments.recipe import figures
from fairseq_sam.experiments.recipes import translation
from fairseq_sam.reporting.published import Published
from fairseq_sam.reporting.scores import TOKENISED_BLEU

URL = os.environ.get("IWSLT14_URL", "http://dl.fbaipublicfiles.com/fairseq/data/iwslt14/de-en.tgz")

UNPACK = """
mkdir -p {dir}/archive
tar -xzf {archive} -C {dir}/archive
"""
# Of the official archive as fairseq's recipe does (every 23rd pair validates, five sets are the
# test), of ready text as it comes.
CORPUS = (
    "{python} {root}/scripts/data/{program} {corpus} --source de --target en --out {dir} {limit}"
)
# One joint vocabulary of merges.
SUBWORD_NMT = """
cat {dir}/train.de {dir}/train.en > {dir}/train.both
{subword_nmt} learn-bpe -s {bpe_size} -i {dir}/train.both -o {dir}/bpe.codes
"""
SENTENCEPIECE = """
{python} {root}/scripts/data/sentencepiece_text.py learn --model {dir}/bpe.model \\
    --size {bpe_size} {dir}/train.de {dir}/train.en
"""
BINARISE = """
{python} -m fairseq_cli.preprocess --source-lang de --target-lang en --trainpref {dir}/train.bpe \\
    --validpref {dir}/valid.bpe --testpref {dir}/test.bpe --destdir {dir}/bin --workers 4
rm -rf {dir}/archive
"""


class DeEn(translation.Translation):
    """160,239, 7,283 and 6,750 pairs; dictionaries of 8,848 (de) and 6,632 (en) types."""

    name = "iwslt14_de_en"
    title = "IWSLT'14 De-En"
    about = """Reproduces the German-English column of GA-SAM's Table 1: gets the IWSLT'14
archive, prepares it as fairseq's recipe does, trains the baseline and every method with several
seeds (the first 29 epochs, which are the same for all, once a seed), averages the last 10
checkpoints, translates the test set, and prints the paper's BLEU beside the measured one with its
spread and a paired-bootstrap p-value. Hardware, time, disk and what the paper leaves open:
docs/reproduce.md."""
    examples = """
--gpus 1 --parallel 4 --extra '--fp16'
--small --data ~/corpora/de-en.tgz --seeds 1 --methods baseline,ga_sam
--dry-run"""
    data_help = (
        "the archive (de-en.tgz), its unpacked folder, or a folder with {train,valid,test}."
        "{de,en}, plain or .gz, tokenised or not (default: download)"
    )
    source, target = "de", "en"
    full_epochs = 70
    methods = translation.methods(
        sam="5e-4",
        asam="2e-4",
        layer_sam="3e-3",
        multi_step_defense="5e-4",
        ga_sam="0.8",
        delta_sam="0.05",  # not in the paper
        free_lb="--free-lb-steps 3 --free-lb-radius 0.005",
    )
    published = {
        "iwslt14_de_en": Published(
            translation.SOURCE,
            {
                TOKENISED_BLEU: figures("""
                    baseline 35.41 ± 0.13, sam 35.61 ± 0.18, asam 35.56 ± 0.17,
                    layer_sam 35.78 ± 0.08, multi_step_defense 35.86 ± 0.13, ga_sam 35.95 ± 0.15,
                    free_lb 35.49 ± 0.11""")
            },
        )
    }
    remembered = (*translation.Translation.remembered, "bpe", "bpe_size")

    def add_options(self, parser: argparse._ArgumentGroup) -> None:
        """Adds the subwords."""
        super().add_options(parser)
        add = parser.add_argument
        # fmt: off
        add("--bpe", choices=("subword-nmt", "sentencepiece"), default="subword-nmt",
            help="(default: %(default)s)")
        add("--bpe-size", type=whole_number(100, 100_000), metavar="N",
            help="joint merges or pieces (default: 10000, with --small 2000)")
        # fmt: on

    def choose(self, x: Experiment) -> Dict[str, Any]:
        """The text is in lower case, the references are not."""
        options = x.options
        options.bpe_size = options.bpe_size or (2000 if options.small else 10000)
        kind = "=sentencepiece" if options.bpe == "sentencepiece" else ""
        more = {"remove_bpe": f"--remove-bpe{kind}", "score_flags": ["--lowercase"]}
        return {**super().choose(x), **more, "bpe_size": options.bpe_size}

    def downloads(self, x: Experiment) -> Iterator[Step]:
        """The archive."""
        if x.options.data is None:
            yield Download(URL, f"{x.out}/download/de-en.tgz")

    def prepare(self, x: Experiment, folder: str) -> Iterator[Step]:
        """From the archive, or from ready text."""
        corpus = x.options.data
        if corpus is None or not os.path.isdir(corpus):
            archive = corpus or f"{x.out}/download/de-en.tgz"
            yield from commands(UNPACK, dir=folder, archive=archive)
            corpus = f"{folder}/archive/de-en" if x.dry else unpacked(Path(folder, "archive"))
        program = (
            ["ted_corpus.py", "--archive"] if official(corpus) else ["parallel_text.py", "--data"]
        )
        values = x.values(dir=folder, program=program[0], corpus=[program[1], corpus])
        yield from commands(CORPUS, **values)
        if x.options.bpe == "sentencepiece":
            yield from commands(SENTENCEPIECE, **values)
            split = (
                "{python} {root}/scripts/data/sentencepiece_text.py encode --model {dir}/bpe.model"
            )
        else:
            yield from commands(SUBWORD_NMT, **values)
            split = "{subword_nmt} apply-bpe -c {dir}/bpe.codes"
        for part in ("train", "valid", "test"):
            for language in ("de", "en"):
                files = f" < {{dir}}/{part}.{language} > {{dir}}/{part}.bpe.{language}"
                yield from commands(split + files, **values)
        yield from commands(BINARISE, **values)


def official(folder: str) -> bool:
    """Tells whether a folder holds an IWSLT archive; one that is not there yet will."""
    return not os.path.isdir(folder) or any(Path(folder).glob("train.tags.*"))


def unpacked(archive: Path) -> str:
    """Returns the folder of an unpacked archive that has the training text.

    Raises:
        ExperimentError: there is none.
    """
    for found in archive.glob("**/train.tags.de-en.de*"):
        return str(found.parent)
    raise ExperimentError(f"{archive}: there is no train.tags.de-en.de in it")


RECIPE = DeEn()
