"""IWSLT'15 English-Vietnamese: GA-SAM, Table 1 (Appendix B.3; radii and FreeLB's: C.2, C.4)."""

from __future__ import annotations

import os
from typing import Any, Dict, Iterator

from fairseq_sam.experiments import recipe as r
from fairseq_sam.experiments.experiment import Experiment
from fairseq_sam.experiments.recipes import translation
from fairseq_sam.experiments.recipes.iwslt14_de_en import official
from fairseq_sam.reporting.scores import TOKENISED_BLEU

URL = os.environ.get("IWSLT15_URL", "https://nlp.stanford.edu/projects/nmt/data/iwslt15.en-vi")
TED_SETS = ("--valid", "tst2012", "--test", "tst2013")


class EnVi(translation.Translation):
    """133,317, 1,553 and 1,268 pairs of whole words; about 17,200 (en) and 7,800 (vi) types."""

    name = "iwslt15_en_vi"
    title = "IWSLT'15 En-Vi"
    about = """Reproduces the English-Vietnamese column of GA-SAM's Table 1: gets Stanford's
IWSLT'15 text (133k pairs, tst2012 to validate, tst2013 to test, whole words), trains the baseline
and every method with several seeds (the first 29 epochs, which are the same for all, once a
seed), averages the last 10 checkpoints, translates the test set, and prints the paper's BLEU
beside the measured one with its spread and a paired-bootstrap p-value. Hardware, time, disk and
what the paper leaves open: docs/reproduce.md."""
    examples = """--gpus 1 --parallel 4 --extra '--fp16'
--small --data ~/corpora/iwslt15 --seeds 1 --methods baseline,ga_sam"""
    options = (
        """
    --data PATH   a folder with {train,valid,test}.{en,vi} (tst2012 and tst2013 will do for the
                  latter two), plain or .gz, tokenised or not; or with the official archive's
                  train.tags.en-vi.* and XML files (default: download)
    """
        + translation.Translation.options
    )
    sizes = {**translation.Translation.sizes, "epochs": (52, 6)}
    methods = translation.methods(
        sam="1.2e-3",
        asam="5e-4",
        layer_sam="1e-3",
        multi_step_defense="5e-4",
        ga_sam="0.9",
        delta_sam="0.05",
        free_lb="--free-lb-steps 1 --free-lb-radius 0.02",
    )
    published = r.paper(
        "iwslt15_en_vi",
        translation.SOURCE,
        TOKENISED_BLEU,
        """baseline 30.60 ± 0.21, sam 30.79 ± 0.15, asam 30.81 ± 0.24, layer_sam 30.70 ± 0.27,
        multi_step_defense 30.95 ± 0.12, ga_sam 31.15 ± 0.29, free_lb 30.91 ± 0.09""",
    )
    # Stanford's text has all pairs, in their case, and its Moses left the full stop on
    # abbreviations. As many types as the paper has come of words that occur five times.
    preparation = """
{python} {root}/scripts/data/{program} {corpus} --source en --target vi --out {dir} \\
    --cased --keep-abbreviations --keep-all {limit}
{python} -m fairseq_cli.preprocess --source-lang en --target-lang vi --trainpref {dir}/train \\
    --validpref {dir}/valid --testpref {dir}/test --destdir {dir}/bin --workers 4 \\
    --thresholdsrc 5 --thresholdtgt 5
"""

    def choose(self, x: Experiment) -> Dict[str, Any]:
        data = x.options.data
        program, corpus = "parallel_text.py", ["--data", data or f"{x.out}/download"]
        if data and official(data):
            program, corpus = "ted_corpus.py", ["--archive", data, *TED_SETS]
        more = {"source": "en", "target": "vi", "program": program, "corpus": corpus}
        return {**super().choose(x), **more}

    def downloads(self, x: Experiment) -> Iterator[r.Step]:
        for part in () if x.options.data else ("train", "tst2012", "tst2013"):
            for name in (f"{part}.en", f"{part}.vi"):
                yield r.Download(f"{URL}/{name}", f"{x.out}/download/{name}")


RECIPE = EnVi()
