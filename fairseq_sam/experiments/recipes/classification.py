"""What the recipes with labelled texts share: scores of predictions, and GPT-2's BPE."""

from __future__ import annotations

import os
from typing import Iterator

from fairseq_sam.experiments.command_lines import Download

SCORE = """
{python} {root}/scripts/scoring/predictions.py \\
    --checkpoint {run}/checkpoints/checkpoint_best.pt --data {bin} --subset {subset} \\
    --metrics {metrics} {baseline} --output {run}/scores.json
"""
"""Of the checkpoint that is best on the validation set."""

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
