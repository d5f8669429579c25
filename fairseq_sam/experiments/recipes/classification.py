"""What recipes with labelled texts share: pretrained models, binarising, scores, GPT-2's BPE."""

from __future__ import annotations

import os
import shlex
from pathlib import Path
from typing import Any, Dict, Iterator, Sequence

from fairseq_sam.experiments import recipe as r
from fairseq_sam.experiments.command_lines import Command, Download, commands
from fairseq_sam.experiments.experiment import Experiment

SCORE = """
{python} {root}/scripts/scoring/predictions.py \\
    --checkpoint {run}/checkpoints/checkpoint_best.pt --data {bin} --subset {subset} \\
    --metrics {metrics} {baseline} --output {run}/scores.json
"""
"""Of the checkpoint that is best on the validation set."""

PAIR = ("input0", "input1")

_PIECES = """
{encode} < {dir}/{split}.{part} > {dir}/pieces/{split}.{part}
"""
_BINARISED = """
{python} -m fairseq_cli.preprocess --only-source {dictionary} {prefixes} \\
    --destdir {dir}/bin/{part} --workers 4
"""

GPT2_URL = os.environ.get("GPT2_BPE_URL", "https://dl.fbaipublicfiles.com/fairseq/gpt2_bpe")
GPT2_FILES = {
    "encoder.json": "196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783",
    "vocab.bpe": "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5",
    "dict.txt": "2c31c5b236661067fe8626775eb995ef5fe808ac87d2ad4a6ddbef68550f5cc6",
}


def gpt2_bpe(out: str) -> Iterator[Download]:
    """Yields the files of GPT-2's BPE, which BART and RoBERTa have too."""
    for name, sha256 in GPT2_FILES.items():
        yield Download(f"{GPT2_URL}/{name}", f"{out}/download/{name}", sha256)


def binarised(
    splits: Sequence[str], parts: Sequence[str], numbers: bool, **values: Any
) -> Iterator[Command]:
    """Yields what splits texts into pieces and binarises them and their labels, or numbers."""

    def preprocess(part: str, folder: str, *dictionary: str) -> Iterator[Command]:
        prefixes = [w for name in splits for w in (f"--{name}pref", f"{folder}/{name}.{part}")]
        given = {**values, "part": part, "dictionary": dictionary, "prefixes": prefixes}
        yield from commands(_BINARISED, **given)

    folder = values["dir"]
    for part in parts:
        for split in splits:
            yield from commands(_PIECES, **{**values, "split": split, "part": part})
        yield from preprocess(part, f"{folder}/pieces", "--srcdict", values["dictionary"])
    if not numbers:
        yield from preprocess("label", folder)
        return
    yield from commands("mkdir -p {dir}/bin/label", **values)
    for split in splits:
        copy = "cp {dir}/{split}.number {dir}/bin/label/{split}.label"
        yield from commands(copy, **{**values, "split": split})


FOLDER = "a folder that fairseq-sam convert wrote"


def check_model(x: Experiment, model: Any, what: str = FOLDER) -> None:
    """Refuses a model that is missing; in a dry run it need not be there.

    Raises:
        MisuseError: naming it.
    """
    if model is None:
        raise r.MisuseError(f"argument --model: is missing: {what}")
    if not x.dry and not os.path.exists(model):
        raise r.MisuseError(f"argument --model: {model} is not allowed: no such file or directory")


def converted(x: Experiment, folder: str, pairs: bool = False) -> Dict[str, Any]:
    """Returns what follows from a folder that ``fairseq-sam convert`` wrote: flags, files, family.

    Raises:
        MisuseError: it did not write it.
    """
    try:
        flags = shlex.split(Path(folder, "flags.txt").read_text(encoding="utf-8"))
    except OSError:
        raise r.MisuseError(
            f"argument --model: {folder} is not allowed: it is not {FOLDER} (flags.txt is missing)"
        ) from None
    of_roberta = (["--arch", "roberta"], ["--num-segments", "1"])
    # With another eps than fairseq's, RoBERTa is --arch bert without segments.
    is_roberta = any(flags[i : i + 2] in of_roberta for i in range(len(flags)))
    # Between two sentences RoBERTa has another end of sentence.
    separator = ["--separator-token", "2"] if is_roberta and pairs else []
    return {
        "family": "roberta" if is_roberta else "bert",
        "model_flags": [*flags, *separator],
        "model_file": f"{folder}/model.pt",
        "dictionary": f"{folder}/dict.txt",
        "encode": r.words(
            "{python} {root}/scripts/data/wordpiece.py {folder}", **x.values(folder=folder)
        ),
    }
