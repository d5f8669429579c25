"""InfoNCE, pooling and span masks against plain loops."""

import math
from typing import List

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from fairseq_sam.criterions.contrastive import info_nce, mask_random_spans, pool

PAD, BOS, EOS, MASK = 1, 0, 2, 99


def embeddings(size: int, dim: int = 5, seed: int = 0) -> List[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(size, dim, generator=generator, dtype=torch.float64) for _ in range(2)]


def cosine(a: Tensor, b: Tensor) -> float:
    return float(a @ b / math.sqrt(float(a @ a) * float(b @ b)))


def loop_info_nce(one: Tensor, other: Tensor, temperature: float) -> List[float]:
    """Liu et al. 2021, Eq. 1, anchor by anchor."""
    views = [*one, *other]
    size, losses = len(one), []
    for i in range(size):
        terms = []
        for anchor, positive in ((i, i + size), (i + size, i)):
            total = sum(
                math.exp(cosine(views[anchor], views[k]) / temperature)
                for k in range(2 * size)
                if k != anchor
            )
            hit = math.exp(cosine(views[anchor], views[positive]) / temperature)
            terms.append(-math.log(hit / total))
        losses.append(sum(terms) / 2)
    return losses


class TestInfoNce:
    @pytest.mark.parametrize("size", [1, 2, 5])
    @pytest.mark.parametrize("temperature", [0.04, 1.0])
    def test_against_a_loop(self, size: int, temperature: float) -> None:
        one, other = embeddings(size)
        found = info_nce(one, other, temperature)
        assert found.dtype == torch.float64
        assert found.tolist() == pytest.approx(loop_info_nce(one, other, temperature), abs=1e-12)

    def test_gradient(self) -> None:
        one, other = (z.requires_grad_() for z in embeddings(3, dim=4))
        assert torch.autograd.gradcheck(lambda a, b: info_nce(a, b, 0.2), (one, other))

    def test_order_of_the_batch(self) -> None:
        one, other = embeddings(6)
        order = torch.tensor([3, 5, 0, 1, 4, 2])
        found = info_nce(one[order], other[order], 0.1)
        torch.testing.assert_close(found, info_nce(one, other, 0.1)[order])

    def test_which_view_is_first(self) -> None:
        one, other = embeddings(4)
        torch.testing.assert_close(info_nce(one, other, 0.1), info_nce(other, one, 0.1))

    def test_length_does_not_matter(self) -> None:
        one, other = embeddings(4)
        torch.testing.assert_close(info_nce(7 * one, other, 0.1), info_nce(one, other, 0.1))

    def test_half_precision_is_computed_in_float32(self) -> None:
        one, other = (z.half() for z in embeddings(4))
        found = info_nce(one, other, 0.04)
        assert found.dtype == torch.float32
        torch.testing.assert_close(found, info_nce(one.float(), other.float(), 0.04))


class TestPool:
    def test_mean_against_a_loop(self) -> None:
        features = torch.randn(3, 4, 2, dtype=torch.float64)
        lengths = [4, 1, 3]
        is_token = torch.tensor([[j < n for j in range(4)] for n in lengths])
        features[~is_token] = math.nan  # padding must not count, whatever it is
        found = pool(features, is_token, "mean")
        for row, n in enumerate(lengths):
            torch.testing.assert_close(found[row], features[row, :n].mean(dim=0))

    def test_first_token(self) -> None:
        features = torch.randn(2, 3, 4)
        assert torch.equal(pool(features, torch.ones(2, 3).bool(), "cls"), features[:, 0])


def sentences(lengths: List[int]) -> Tensor:
    """<s> 10 11 12 … </s> <pad> …"""
    longest = max(lengths, default=0) + 2
    rows = [
        [BOS, *range(10, 10 + n), EOS, *[PAD] * (longest - n - 2)] for n in lengths
    ]  # fmt: skip
    return torch.tensor(rows, dtype=torch.long).reshape(len(lengths), longest)


@given(st.lists(st.integers(0, 20), max_size=5), st.integers(0, 6), st.integers(0, 1000))
def test_one_span_of_each_long_sentence_is_masked(lengths: List[int], span: int, seed: int) -> None:
    tokens = sentences(lengths)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        found = mask_random_spans(tokens, tokens >= 10, span, MASK)
    assert found.shape == tokens.shape
    for row, length in enumerate(lengths):
        changed = (found[row] != tokens[row]).nonzero().flatten().tolist()
        assert len(changed) == (span if length >= 3 * span else 0)
        assert changed == list(range(changed[0], changed[0] + span)) if changed else True
        assert all(1 <= place <= length for place in changed)
        assert set(found[row][changed].tolist()) <= {MASK}


def test_every_place_is_drawn_and_rows_differ() -> None:
    tokens = sentences([6] * 400)
    torch.manual_seed(0)
    found = mask_random_spans(tokens, tokens >= 10, 2, MASK)
    firsts = (found == MASK).long().argmax(dim=1).tolist()
    counts = [firsts.count(place) for place in range(8)]
    assert counts[0] == counts[6] == counts[7] == 0
    assert all(count > 40 for count in counts[1:6])  # 80 expected
