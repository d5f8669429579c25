"""Properties of the pure reductions."""

import ast
import pathlib
from typing import Any, List

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fairseq_sam.criterions import float64, reductions
from fairseq_sam.criterions.reductions import (
    at_least_float32,
    one_row_per_sentence,
    place_tokens,
    sum_tokens_per_sentence,
)

LOSS = st.floats(0, 100, allow_nan=False, width=32)
JUNK = st.sampled_from([0.0, 1e30, -7.0, float("inf"), float("-inf"), float("nan")])
BATCH = st.lists(st.lists(LOSS, max_size=12), max_size=5)


def padded(rows: List[List[float]], extra: int, junk: List[float]) -> Any:
    """Rows in one float64 tensor, with ``junk`` as padding, and the mask of what counts."""
    width = max([len(row) for row in rows], default=0) + extra
    fill = [junk[i % len(junk)] for i in range(width)]
    values = [row + fill[len(row) :] for row in rows]
    counts = [[i < len(row) for i in range(width)] for row in rows]
    shape = (len(rows), width)
    return (
        torch.tensor(values, dtype=torch.float64).reshape(shape),
        torch.tensor(counts, dtype=torch.bool).reshape(shape),
    )


@settings(deadline=None)
@given(BATCH, st.integers(0, 9), st.lists(JUNK, min_size=1, max_size=4))
def test_padding_and_neighbours_do_not_matter(
    rows: List[List[float]], extra: int, junk: List[float]
) -> None:
    values, mask = padded(rows, extra, junk)
    sums = sum_tokens_per_sentence(values.requires_grad_(), mask)
    assert sums.shape == (len(rows),)
    for total, row in zip(sums, rows):
        assert total.item() == pytest.approx(sum(row), rel=1e-13, abs=1e-13)
    (gradient,) = torch.autograd.grad(sums.sum(), values)
    assert torch.equal(gradient, mask.double())


@settings(deadline=None)
@given(BATCH, st.randoms(use_true_random=False))
def test_rows_permute_with_the_sentences(rows: List[List[float]], random: Any) -> None:
    order = list(range(len(rows)))
    random.shuffle(order)
    values, mask = padded(rows, 0, [0.0])
    sums = sum_tokens_per_sentence(values, mask)
    assert torch.equal(sum_tokens_per_sentence(values[order], mask[order]), sums[order])


@settings(deadline=None)
@given(st.integers(0, 4), st.integers(0, 6), st.data())
def test_place_tokens_inverts_selection(batch: int, width: int, data: Any) -> None:
    flags = data.draw(st.lists(st.booleans(), min_size=batch * width, max_size=batch * width))
    positions = torch.tensor(flags, dtype=torch.bool).reshape(batch, width)
    tokens = torch.arange(1.0, batch * width + 1).reshape(batch, width)
    values = tokens[positions].clone().requires_grad_()
    placed = place_tokens(values, positions)
    assert torch.equal(placed, tokens * positions)
    (gradient,) = torch.autograd.grad((placed * tokens).sum(), values)
    assert torch.equal(gradient, values)


@settings(deadline=None)
@given(st.integers(0, 4), st.integers(0, 6))
def test_one_row_per_sentence_inverts_flattening(batch: int, width: int) -> None:
    values = torch.arange(batch * width).reshape(batch, width)
    restored = one_row_per_sentence(values.view(-1, 1), batch)
    assert torch.equal(restored, values if values.numel() else values.new_zeros(batch, 0))


@pytest.mark.parametrize(("num_values", "num_sentences"), [(5, 2), (3, 0), (1, 2)])
def test_uneven_rows_are_refused(num_values: int, num_sentences: int) -> None:
    with pytest.raises(ValueError, match=f"{num_values} token losses"):
        one_row_per_sentence(torch.zeros(num_values), num_sentences)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_summed_in_float32(dtype: torch.dtype) -> None:
    tokens = torch.full((2, 5000), 0.125, dtype=dtype)
    sums = sum_tokens_per_sentence(tokens)
    assert sums.dtype == torch.float32
    assert sums.tolist() == [625.0, 625.0]
    assert sum_tokens_per_sentence(tokens[:, 0]).dtype == torch.float32
    assert at_least_float32(tokens).dtype == torch.float32


def test_float64_stays_and_can_be_asked_for() -> None:
    assert sum_tokens_per_sentence(torch.ones(2, 3, dtype=torch.float64)).dtype == torch.float64
    tokens = torch.tensor([[2.0**24, 1.0, 1.0]])
    assert sum_tokens_per_sentence(tokens, dtype=torch.float64).item() == 2**24 + 2


def test_more_than_two_dimensions() -> None:
    assert sum_tokens_per_sentence(torch.ones(2, 3, 4)).tolist() == [12.0, 12.0]


@pytest.mark.parametrize("module", [reductions, float64])
def test_pure_modules_do_not_import_fairseq(module: Any) -> None:
    tree = ast.parse(pathlib.Path(module.__file__).read_text())
    names = [node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    names += [a.name for node in ast.walk(tree) if isinstance(node, ast.Import) for a in node.names]
    assert not [name for name in names if str(name).startswith("fairseq")]


def test_preserve_float64_costs_nothing_in_float32() -> None:
    with float64.preserve_float64(torch.nn.Linear(1, 1)) as mode:
        assert mode is None
        double = torch.ones(2, dtype=torch.float64)
        assert torch.log_softmax(double, 0, dtype=torch.float32).dtype == torch.float32


def test_preserve_float64_leaves_other_types_alone() -> None:
    with float64.preserve_float64(torch.nn.Linear(1, 1).double()):
        assert torch.ones(2).half().float().dtype == torch.float32
        assert torch.log_softmax(torch.ones(2), 0, dtype=torch.float32).dtype == torch.float32
        assert torch.ones(2, dtype=torch.float64).float().dtype == torch.float64
    assert torch.ones(2, dtype=torch.float64).float().dtype == torch.float32
