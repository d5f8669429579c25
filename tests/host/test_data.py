"""Batches and blocks of text: what fairseq forms alone, and once repaired."""

import fairseq.data
import numpy as np
import pytest
import torch
from fairseq.data import data_utils, language_pair_dataset, token_block_dataset


class TestBatches:
    @pytest.mark.parametrize("multiple", [1, 2, 8])
    @pytest.mark.parametrize(("max_tokens", "max_sentences"), [(60, None), (None, 5), (90, 11)])
    @pytest.mark.parametrize("size", [0, 1, 5, 8, 100, 103])
    def test_equal_those_of_fairseq_0_12_2(self, size, max_tokens, max_sentences, multiple):
        from fairseq.data.data_utils_fast import batch_by_size_vec

        rng = np.random.RandomState(size)
        indices = rng.permutation(size).astype(np.int64)
        lengths = np.sort(rng.randint(1, 30, size)).astype(np.int64)
        expected = batch_by_size_vec(
            indices, lengths, max_tokens or -1, max_sentences or -1, multiple
        )
        batches = data_utils.batch_by_size(
            indices,
            None,
            num_tokens_vec=lengths,
            max_tokens=max_tokens,
            max_sentences=max_sentences,
            required_batch_size_multiple=multiple,
        )
        assert [list(batch) for batch in batches] == [list(batch) for batch in expected]
        assert [index for batch in batches for index in batch] == list(indices)

    def test_are_complete_only_when_repaired(self, unrepaired):
        def sentences(batch_by_size):
            batches = batch_by_size(
                iter(range(5)), lambda _: 1, max_sentences=8, required_batch_size_multiple=8
            )
            return sum(map(len, batches))

        assert sentences(unrepaired(data_utils.batch_by_size)) == 0
        assert sentences(data_utils.batch_by_size) == 5

    def test_of_fixed_shapes_are_those_of_fairseq(self, unrepaired):
        arguments = {"num_tokens_fn": lambda i: 1 + i % 3, "fixed_shapes": [(2, 3), (4, 2)]}
        batches = data_utils.batch_by_size(np.arange(9), **arguments)
        original = unrepaired(data_utils.batch_by_size)
        assert list(map(list, batches)) == list(map(list, original(np.arange(9), **arguments)))


class TestNumpy2:
    def test_length_buckets(self, unrepaired):
        assert list(data_utils.get_buckets(np.array([1, 2, 3, 9]), 2)) == [2, 9]
        with pytest.raises(TypeError):
            unrepaired(data_utils.get_buckets)(np.array([1, 2, 3, 9]), 2)

    def test_one_sentence_per_block(self, monkeypatch):
        def blocks():
            tokens = [torch.arange(2), torch.arange(3)]
            return token_block_dataset.TokenBlockDataset(tokens, [2, 3], None, 0, 1, "eos")

        assert [len(block) for block in blocks()] == [2, 3]
        if token_block_dataset.np is np:
            pytest.skip("this fairseq does not have this fault with this numpy")
        monkeypatch.setattr(token_block_dataset, "np", np)
        with pytest.raises(AttributeError):
            blocks()

    def test_pairs_in_length_buckets(self, monkeypatch):
        def pairs():
            dictionary = fairseq.data.Dictionary()
            return fairseq.data.LanguagePairDataset(
                [torch.arange(3)] * 4, np.full(4, 3), dictionary, num_buckets=2
            )

        assert pairs().get_batch_shapes() == [(None, 3)]
        if language_pair_dataset.np is np:
            pytest.skip("this fairseq does not have this fault with this numpy")
        monkeypatch.setattr(language_pair_dataset, "np", np)
        with pytest.raises(AttributeError):
            pairs()
