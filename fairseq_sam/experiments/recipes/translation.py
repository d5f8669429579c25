"""What the translation tables of GA-SAM share (its Appendices B and C).

fairseq's ``transformer_wmt_en_de`` "with the same hyper-parameters following fairseq", whose recipe
for IWSLT'14 has the ones that are here. The norm is L∞ throughout, two steps where a method takes
several; radii of scales that depend on the gradient belong to the summed loss.
"""

from __future__ import annotations

from typing import Any, ClassVar, Dict, Sequence

from fairseq_sam.experiments.experiment import Experiment
from fairseq_sam.experiments.recipe import SMART, Recipe

SOURCE = "Zhang et al., GA-SAM, EMNLP 2022, Tables 1 and 5: mean ± standard deviation of 4 runs"
SMALL_MODEL = """--encoder-layers 2 --decoder-layers 2 --encoder-embed-dim 128
    --decoder-embed-dim 128 --encoder-ffn-embed-dim 256 --decoder-ffn-embed-dim 256
    --encoder-attention-heads 4 --decoder-attention-heads 4"""
OTHER = "--optimizer adam --criterion {}_label_smoothed_cross_entropy"


def methods(free_lb: str, **radii: str) -> Dict[str, str]:
    """Returns the flags of all methods; α of R-Drop is that of its own script for IWSLT'14."""
    sam = {n: f"--optimizer {n} --base-optimizer adam --sam-rho {rho}" for n, rho in radii.items()}
    return {
        "baseline": "--optimizer adam",
        "sam": f"{sam['sam']} --sam-norm linf",
        "asam": f"{sam['asam']} --sam-norm linf",
        "layer_sam": f"{sam['layer_sam']} --sam-norm linf --sam-loss-reduction sum",
        "multi_step_defense": f"{sam['multi_step_defense']} --sam-norm linf --sam-steps 2",
        "ga_sam": f"{sam['ga_sam']} --sam-norm linf --sam-steps 2 --sam-loss-reduction sum",
        "delta_sam": sam["delta_sam"],  # not in the paper
        "free_lb": f"{OTHER.format('free_lb')} --free-lb-norm linf {free_lb}",
        "r3f": OTHER.format("r3f"),
        "r_drop": f"{OTHER.format('r_drop')} --r-drop-alpha 5",
        "smart": f"{OTHER.format('smart')} {SMART}",
    }


class Translation(Recipe):
    """Both tables; the criterion's values are fairseq's own, and δ-SAM can share epochs with it."""

    options = """
    --epochs N
    --start-epoch N  first epoch with the perturbation
    --average N      checkpoints to average
    """
    sizes = {"start_epoch": (30, 4), "average": (10, 2)}
    settings = {
        "model": ("--arch transformer_wmt_en_de", f"--arch transformer {SMALL_MODEL}"),
        "warmup": ("4000", "400"),
        "generate_tokens": ("12000", "4000"),
        "limit": ("", "--limit 10000 500"),
        "remove_bpe": ("", ""),
        "score_flags": ("", ""),
    }
    default = "baseline,sam,asam,layer_sam,multi_step_defense,ga_sam"
    remembered: ClassVar[Sequence[str]] = (
        "data",
        "small",
        "epochs",
        "start_epoch",
        "average",
        "extra",
    )
    shared = """--user-dir {root}/fairseq_sam --source-lang {source} --target-lang {target} {model}
        --share-decoder-input-output-embed --dropout 0.3
        --criterion per_sentence_label_smoothed_cross_entropy --label-smoothing 0.1
        --adam-betas '(0.9, 0.98)' --weight-decay 0.0001 --clip-norm 0.0
        --lr 5e-4 --lr-scheduler inverse_sqrt --warmup-updates {warmup}
        --max-tokens {max_tokens} --keep-last-epochs {average}"""
    score = """
{python} -m fairseq_sam.commands average {run}/checkpoints --last-epochs {average} \\
    --output {run}/average.pt --force
{python} -m fairseq_cli.generate {bin} --user-dir {root}/fairseq_sam --path {run}/average.pt \\
    --gen-subset test --source-lang {source} --target-lang {target} --beam 5 {remove_bpe} \\
    --max-tokens {generate_tokens} --distributed-world-size 1 > {run}/generate.txt
{python} {root}/scripts/scoring/translations.py --generated {run}/generate.txt \\
    --reference {prepared}/test.raw.{target} --lang {target} {score_flags} {baseline} \\
    --output {run}/scores.json
"""

    def choose(self, x: Experiment) -> Dict[str, Any]:
        return {"max_tokens": (2000 if x.options.small else 4096) // x.shares}
