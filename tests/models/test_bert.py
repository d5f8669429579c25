"""``--arch bert``: how its embeddings begin."""

import torch
from fairseq.modules import LearnedPositionalEmbedding
from fairseq.modules.transformer_sentence_encoder import init_bert_params

from fairseq_sam.models.bert import PositionAndSegmentEmbedding


def test_positions_begin_as_robertas():
    positions = LearnedPositionalEmbedding(50, 200, 1)
    init_bert_params(positions)
    before = positions.weight.detach().clone()
    embedding = PositionAndSegmentEmbedding(positions, num_segments=2, eos=2)
    assert torch.equal(embedding.weight, before)
    assert 0.015 < float(embedding.weight[2:].detach().std()) < 0.025
    assert not embedding.weight[1].any()
