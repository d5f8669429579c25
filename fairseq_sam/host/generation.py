"""A fault of ``fairseq-generate``: ``--no-repeat-ngram-size`` does nothing without an extension.

The CUDA extension comes with no wheel.  The fallback looks for the last n-gram at the end of the
whole buffer of tokens, which is padding until the last step, so no repetition is ever found and no
word is said about it.  Summaries of BART, generated without repeated trigrams, suffer most.
"""

from typing import Any

import torch
from torch import Tensor

from .patching import Repair


def _repeats_ngrams() -> bool:
    from fairseq.ngram_repeat_block import NGramRepeatBlock

    block = NGramRepeatBlock(2, use_extension=False)
    # 4 5 4 so far, then padding: after another 4 a 5 would repeat the bigram.
    tokens = torch.tensor([[4, 5, 4, 1, 1, 1]])
    scores = block._no_repeat_ngram(tokens, torch.zeros(1, 6), 1, 1, 2)
    return bool(scores[0, 5] == 0)


def _no_repeat_ngram(
    self: Any, tokens: Tensor, lprobs: Tensor, bsz: int, beam_size: int, step: int
) -> Tensor:
    return self._no_repeat_ngram_in_buffer(tokens[:, : step + 1], lprobs, bsz, beam_size, step)


def _look_at_generated_tokens_only() -> None:
    """Shows the search for repeated n-grams the tokens generated so far, without the padding.

    TorchScript compiles methods from their source, so that the replacement is a plain method, and
    calls the original by name.
    """
    from fairseq.ngram_repeat_block import NGramRepeatBlock

    original = NGramRepeatBlock._no_repeat_ngram
    original.__name__ = "_no_repeat_ngram_in_buffer"  # TorchScript's name for it
    NGramRepeatBlock._no_repeat_ngram_in_buffer = original
    NGramRepeatBlock._no_repeat_ngram = _no_repeat_ngram


REPAIRS = (
    Repair(
        "--no-repeat-ngram-size is ignored without the CUDA extension",
        _repeats_ngrams,
        _look_at_generated_tokens_only,
    ),
)
