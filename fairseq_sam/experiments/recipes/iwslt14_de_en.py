"""IWSLT'14 German-English: GA-SAM, Table 1 (Appendix B.4; radii and FreeLB's: C.2, C.4)."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Dict, Iterator

from fairseq_sam.experiments import recipe as r
from fairseq_sam.experiments.experiment import Experiment
from fairseq_sam.experiments.recipes import translation
from fairseq_sam.reporting.scores import TOKENISED_BLEU

URL = os.environ.get("IWSLT14_URL", "http://dl.fbaipublicfiles.com/fairseq/data/iwslt14/de-en.tgz")

UNPACK = """
mkdir -p {dir}/archive
tar -xzf {archive} -C {dir}/archive
"""
# Of the official archive as fairseq's recipe does (every 23rd pair validates, five sets are the
# test), of ready text as it comes.
CORPUS = """
{python} {root}/scripts/data/{program} {flag} {corpus} --source de --target en --out {dir} {limit}
"""
# One joint vocabulary of merges.
SUBWORD_NMT = """
cat {dir}/train.de {dir}/train.en > {dir}/train.both
{subword_nmt} learn-bpe -s {bpe_size} -i {dir}/train.both -o {dir}/bpe.codes
"""
SENTENCEPIECE = """
{python} {root}/scripts/data/sentencepiece_text.py learn --model {dir}/bpe.model \\
    --size {bpe_size} {dir}/train.de {dir}/train.en
"""
SPLIT = {
    "subword-nmt": "{subword_nmt} apply-bpe -c {dir}/bpe.codes",
    "sentencepiece": "{python} {root}/scripts/data/sentencepiece_text.py encode "
    "--model {dir}/bpe.model",
}
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
    examples = """--gpus 1 --parallel 4 --extra '--fp16'
--small --data ~/corpora/de-en.tgz --seeds 1 --methods baseline,ga_sam"""
    options = (
        """
    --data PATH   the archive (de-en.tgz), its unpacked folder, or a folder with
                  {train,valid,test}.{de,en}, plain or .gz, tokenised or not (default: download)
    --bpe subword-nmt|sentencepiece
    --bpe-size N[100..100000]  joint merges or pieces
    """
        + translation.Translation.options
    )
    sizes = {
        **translation.Translation.sizes,
        **{"epochs": (70, 6), "bpe": ("subword-nmt", "subword-nmt"), "bpe_size": (10000, 2000)},
    }
    methods = translation.methods(
        sam="5e-4",
        asam="2e-4",
        layer_sam="3e-3",
        multi_step_defense="5e-4",
        ga_sam="0.8",
        delta_sam="0.05",
        free_lb="--free-lb-steps 3 --free-lb-radius 0.005",
    )
    published = r.paper(
        "iwslt14_de_en",
        translation.SOURCE,
        TOKENISED_BLEU,
        """baseline 35.41 ± 0.13, sam 35.61 ± 0.18, asam 35.56 ± 0.17, layer_sam 35.78 ± 0.08,
        multi_step_defense 35.86 ± 0.13, ga_sam 35.95 ± 0.15, free_lb 35.49 ± 0.11""",
    )
    remembered = (*translation.Translation.remembered, "bpe", "bpe_size")

    def choose(self, x: Experiment) -> Dict[str, Any]:
        # The text is in lower case, the references are not.
        more = {"source": "de", "target": "en", "score_flags": "--lowercase"}
        kind = "=sentencepiece" if x.options.bpe == "sentencepiece" else ""
        return {**super().choose(x), **more, "remove_bpe": f"--remove-bpe{kind}"}

    def downloads(self, x: Experiment) -> Iterator[r.Step]:
        if x.options.data is None:
            yield r.Download(URL, f"{x.out}/download/de-en.tgz")

    def prepare(self, x: Experiment, folder: str) -> Iterator[r.Step]:
        corpus = x.options.data
        if corpus is None or not os.path.isdir(corpus):
            archive = corpus or f"{x.out}/download/de-en.tgz"
            yield from r.commands(UNPACK, dir=folder, archive=archive)
            corpus = f"{folder}/archive/de-en" if x.dry else unpacked(Path(folder, "archive"))
        program, flag = "parallel_text.py", "--data"
        if official(corpus):
            program, flag = "ted_corpus.py", "--archive"
        values = x.values(dir=folder, program=program, flag=flag, corpus=corpus)
        learn = SENTENCEPIECE if x.options.bpe == "sentencepiece" else SUBWORD_NMT
        yield from r.commands(CORPUS + learn, **values)
        for part in ("train", "valid", "test"):
            for language in ("de", "en"):
                files = f" < {{dir}}/{part}.{language} > {{dir}}/{part}.bpe.{language}"
                yield from r.commands(SPLIT[x.options.bpe] + files, **values)
        yield from r.commands(BINARISE, **values)


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
    raise r.ExperimentError(f"{archive}: there is no train.tags.de-en.de in it")


RECIPE = DeEn()
