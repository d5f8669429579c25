"""``--no-repeat-ngram-size``: what fairseq does alone, and once repaired."""

import pytest
import torch
from fairseq import options, tasks
from fairseq.data import Dictionary
from fairseq.ngram_repeat_block import NGramRepeatBlock
from fairseq.sequence_generator import SequenceGenerator

from tests.fairseq_runs import TRANSLATION


def banned(block, tokens, step, beams=1):
    scores = torch.zeros(len(tokens), 10)
    block._no_repeat_ngram(torch.tensor(tokens), scores, len(tokens) // beams, beams, step)
    return [row.nonzero().flatten().tolist() for row in torch.isinf(scores)]


def translation():
    """A task with eight words and a model that is not trained, and so repeats itself."""
    words = Dictionary()
    for letter in "abcdefgh":
        words.add_symbol(letter)
    parser = options.get_training_parser()
    args = options.parse_args_and_arch(parser, ["data", *TRANSLATION.split()])
    task = tasks.TASK_REGISTRY[args.task](args, words, words)
    torch.manual_seed(1)
    return task, task.build_model(args).eval()


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

    def test_scripted_bans_the_same(self):
        block = torch.jit.script(NGramRepeatBlock(2, use_extension=False))
        scores = block(torch.tensor([[4, 5, 4, 6, 4, 1]]), torch.zeros(1, 10), 1, 1, 4)
        assert torch.isinf(scores[0]).nonzero().flatten().tolist() == [5, 6]

    @pytest.mark.parametrize("size", [0, 2])
    def test_a_generator_can_be_scripted(self, size):
        task, model = translation()
        generator = SequenceGenerator(
            [model], task.tgt_dict, beam_size=2, max_len_b=12, no_repeat_ngram_size=size
        )
        sample = {
            "net_input": {
                "src_tokens": torch.tensor([[5, 6, 7, 2]]),
                "src_lengths": torch.tensor([4]),
                "prev_output_tokens": torch.tensor([[2, 5, 6, 7]]),
            },
        }
        eager = generator.forward(sample)[0][0]["tokens"].tolist()
        scripted = torch.jit.script(generator).forward(sample)[0][0]["tokens"].tolist()
        assert scripted == eager
        bigrams = list(zip(eager, eager[1:]))
        assert (len(set(bigrams)) == len(bigrams)) == bool(size)

    def test_fairseq_alone_repeats(self):
        block = NGramRepeatBlock(2, use_extension=False)
        scores = torch.zeros(1, 10)
        if not hasattr(NGramRepeatBlock, "_no_repeat_ngram_in_buffer"):
            pytest.skip("this fairseq does not have this fault")
        original = NGramRepeatBlock._no_repeat_ngram_in_buffer
        original(block, torch.tensor([[4, 5, 4, 1, 1, 1]]), scores, 1, 1, 2)
        assert not torch.isinf(scores).any()
