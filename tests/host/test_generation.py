"""``--no-repeat-ngram-size``: what fairseq does alone, and once repaired."""

import pytest
import torch
from fairseq.ngram_repeat_block import NGramRepeatBlock


def banned(block, tokens, step, beams=1):
    scores = torch.zeros(len(tokens), 10)
    block._no_repeat_ngram(torch.tensor(tokens), scores, len(tokens) // beams, beams, step)
    return [row.nonzero().flatten().tolist() for row in torch.isinf(scores)]


class TestNoRepeatNgram:
    # Buffers of six tokens, filled up to ``step``; the rest is padding (1).
    @pytest.mark.parametrize(
        ("size", "tokens", "step", "expected"),
        [
            (2, [4, 5, 4, 1, 1, 1], 2, [5]),
            (2, [4, 5, 6, 1, 1, 1], 2, []),
            (3, [4, 5, 6, 4, 5, 1], 4, [6]),
            (3, [4, 5, 6, 5, 5, 1], 4, []),
            (2, [4, 5, 4, 6, 4, 1], 4, [5, 6]),
            (3, [4, 1, 1, 1, 1, 1], 0, []),
        ],
    )
    def test_bans_what_would_repeat(self, size, tokens, step, expected):
        assert banned(NGramRepeatBlock(size, use_extension=False), [tokens], step) == [expected]

    def test_each_beam_has_its_own(self):
        block = NGramRepeatBlock(2, use_extension=False)
        tokens = [[4, 5, 4, 1], [6, 7, 6, 1]]
        assert banned(block, tokens, 2, beams=2) == [[5], [7]]

    def test_fairseq_alone_repeats(self, unrepaired):
        block = NGramRepeatBlock(2, use_extension=False)
        scores = torch.zeros(1, 10)
        original = unrepaired(NGramRepeatBlock._no_repeat_ngram)
        original(block, torch.tensor([[4, 5, 4, 1, 1, 1]]), scores, 1, 1, 2)
        assert not torch.isinf(scores).any()
