"""Taking mini-batches apart: what is sliced, what is shared, and the counts of each part."""

from random import Random
from typing import Any, Dict, List

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fairseq_sam.training.samples import split_sentences, sub_batch

PAD = 1
quick = settings(max_examples=50, deadline=None)
lengths = st.lists(st.tuples(st.integers(1, 6), st.integers(0, 6)), min_size=1, max_size=5)


def padded(rows: List[List[int]], left: bool) -> Tensor:
    width = max(len(row) for row in rows)
    pad = [[PAD] * (width - len(row)) for row in rows]
    padded_rows = [p + row if left else row + p for row, p in zip(rows, pad)]
    return torch.tensor(padded_rows, dtype=torch.int64).view(len(rows), width)


def translation_batch(sizes: List[Any]) -> Dict[str, Any]:
    sources = [[10 * i + j + 5 for j in range(size[0])] for i, size in enumerate(sizes)]
    targets = [[10 * i + j + 5 for j in range(size[1])] for i, size in enumerate(sizes)]
    return {
        "id": torch.arange(len(sizes)) + 100,
        "nsentences": len(sizes),
        "ntokens": sum(size[1] for size in sizes),
        "net_input": {
            "src_tokens": padded(sources, left=True),
            "src_lengths": torch.tensor([size[0] for size in sizes]),
            "prev_output_tokens": padded(targets, left=False),
        },
        "target": padded(targets, left=False),
    }


def batch_of(sizes: List[int]) -> Dict[str, Any]:
    return translation_batch([(size, size) for size in sizes])


def words(row: Tensor) -> List[int]:
    return [word for word in row.tolist() if word != PAD]


@quick
@given(sizes=lengths)
def test_each_part_has_the_words_of_one_sentence(sizes: Any):
    whole = translation_batch(sizes)
    parts = split_sentences(whole, PAD)
    assert len(parts) == len(sizes)
    for i, part in enumerate(parts):
        assert part["id"].tolist() == [100 + i]
        assert part["nsentences"] == 1
        assert part["ntokens"] == sizes[i][1]
        assert part["target"].shape[0] == 1
        assert part["net_input"]["src_lengths"].tolist() == [sizes[i][0]]
        assert words(part["target"][0]) == words(whole["target"][i])
        for name, rows in whole["net_input"].items():
            assert part["net_input"][name].shape[0] == 1
            if name != "src_lengths":
                assert words(part["net_input"][name][0]) == words(rows[i])
    assert sum(part["ntokens"] for part in parts) == whole["ntokens"]


@quick
@given(sizes=lengths)
def test_the_batch_itself_stays_as_it_was(sizes: Any):
    whole, same = translation_batch(sizes), translation_batch(sizes)
    split_sentences(whole, PAD)
    assert list(whole) == list(same)
    assert whole["nsentences"] == same["nsentences"]
    assert whole["ntokens"] == same["ntokens"]
    for name, value in same["net_input"].items():
        assert torch.equal(whole["net_input"][name], value)


@quick
@given(count=st.integers(1, 6), depth=st.integers(0, 3))
def test_nested_values_are_sliced_and_the_rest_is_shared(count: int, depth: int):
    shared = torch.arange((count + 1) * 2).view(count + 1, 2)
    nested: Any = {
        "rows": torch.arange(count),
        "names": [f"s{i}" for i in range(count)],
        "pair": tuple(range(count)),
        "shared": shared,
        "scalar": torch.tensor(3.0),
        "text": "x" * count,
        "flag": True,
        "nothing": None,
    }
    for _ in range(depth):
        nested = {"inner": nested}
    whole = {"id": torch.arange(count), "nsentences": count, "net_input": nested}
    parts = split_sentences(whole, PAD)
    for i, part in enumerate(parts):
        found = part["net_input"]
        for _ in range(depth):
            found = found["inner"]
        assert found["rows"].tolist() == [i]
        assert found["names"] == [f"s{i}"]
        assert found["pair"] == (i,)
        assert found["shared"] is shared
        assert float(found["scalar"]) == 3
        assert found["text"] == "x" * count
        assert found["flag"] is True
        assert found["nothing"] is None
        assert "ntokens" not in part


@pytest.mark.parametrize("by", ["id", "nsentences"])
def test_the_number_of_sentences_comes_from_either(by: str):
    whole = translation_batch([(2, 3), (4, 1)])
    del whole["id" if by == "nsentences" else "nsentences"]
    assert [part["ntokens"] for part in split_sentences(whole, PAD)] == [3, 1]


@pytest.mark.parametrize("target", [torch.tensor([0, 2]), torch.tensor([0.5, 1.5]), None])
def test_tokens_are_the_sources_where_the_target_is_no_text(target: Any):
    whole = translation_batch([(2, 3), (4, 1)])
    whole["target"] = target
    whole["ntokens"] = 6
    assert [part["ntokens"] for part in split_sentences(whole, PAD)] == [2, 4]


def test_targets_with_several_numbers_a_sentence_are_no_text():
    whole = translation_batch([(2, 3), (4, 1)])
    whole["target"] = torch.tensor([[0.5, 1.0], [1.0, 2.0]])
    whole["ntokens"] = 6
    parts = split_sentences(whole, PAD)
    assert [part["ntokens"] for part in parts] == [2, 4]
    assert parts[1]["target"].tolist() == [[1.0, 2.0]]


@pytest.mark.parametrize(
    "target",
    [
        torch.tensor([[5], [6]]),  # a label, collated like text
        torch.tensor([[PAD, 15, PAD, PAD], [PAD, PAD, PAD, PAD]]),  # a masked word
    ],
)
def test_tokens_are_the_sources_where_the_batch_counts_those(target: Tensor):
    """As fairseq does in sentence prediction and in masked language modelling."""
    whole = translation_batch([(2, 3), (4, 1)])
    del whole["net_input"]["prev_output_tokens"]
    whole["target"] = target
    whole["ntokens"] = 6
    assert [part["ntokens"] for part in split_sentences(whole, PAD)] == [2, 4]


def test_each_part_is_as_if_collated_alone():
    sizes = [(2, 5), (6, 1), (3, 3)]
    whole = translation_batch(sizes)
    for i, part in enumerate(split_sentences(whole, PAD)):
        for name, size in (("src_tokens", sizes[i][0]), ("prev_output_tokens", sizes[i][1])):
            assert part["net_input"][name].shape == (1, size)
        assert part["target"].shape == (1, sizes[i][1])


def test_masked_words_stay_at_their_places():
    source = torch.tensor([[5, 6, 7, 8], [5, 9, PAD, PAD], [5, PAD, PAD, PAD]])
    target = torch.tensor([[PAD, 16, PAD, 18], [PAD, 19, PAD, PAD], [PAD] * 4])
    whole = {
        "id": torch.arange(3),
        "nsentences": 3,
        "ntokens": 7,
        "net_input": {"src_tokens": source},
        "target": target,
    }
    parts = split_sentences(whole, PAD)
    assert [part["net_input"]["src_tokens"].tolist() for part in parts] == [
        [[5, 6, 7, 8]],
        [[5, 9]],
        [[5]],
    ]
    assert [part["target"].tolist() for part in parts] == [
        [[PAD, 16, PAD, 18]],
        [[PAD, 19]],
        [[PAD]],
    ]


def test_a_label_beside_decoder_input():
    """As in classification with BART, whose decoder reads the source again."""
    source = torch.tensor([[5, 6, 7], [5, 8, PAD]])
    whole = {
        "id": torch.arange(2),
        "nsentences": 2,
        "ntokens": 5,
        "net_input": {
            "src_tokens": source,
            "prev_output_tokens": torch.tensor([[7, 5, 6], [8, 5, PAD]]),
        },
        "target": torch.tensor([[4], [5]]),
    }
    parts = split_sentences(whole, PAD)
    assert [part["target"].tolist() for part in parts] == [[[4]], [[5]]]
    found = [part["net_input"]["prev_output_tokens"].tolist() for part in parts]
    assert found == [[[7, 5, 6]], [[8, 5]]]


def test_a_sentence_on_its_own_stays_whole():
    whole = translation_batch([(3, 4)])
    (part,) = split_sentences(whole, PAD)
    assert torch.equal(part["target"], whole["target"])
    assert part["ntokens"] == 4


def test_other_token_tensors_are_trimmed_as_the_target_is():
    whole = translation_batch([(3, 2), (2, 4)])
    whole["prev_target"] = whole["target"].clone()
    part = split_sentences(whole, PAD)[0]
    assert part["prev_target"].shape == part["target"].shape == (1, 2)


def test_alignments_point_into_the_whole_batch():
    whole = {**translation_batch([(3, 2), (2, 4)]), "alignments": torch.zeros(2, 2)}
    with pytest.raises(ValueError, match="--load-alignments"):
        split_sentences(whole, PAD)


def test_batches_of_several_language_pairs():
    samples = {"de-en": translation_batch([(3, 2), (2, 4)]), "de-fr": None, "en-de": {}}
    parts = split_sentences({**samples, "en-de": translation_batch([(1, 1)])}, PAD)
    assert [[pair for pair, part in each.items() if part] for each in parts] == [
        ["de-en"],
        ["de-en"],
        ["en-de"],
    ]
    assert len(split_sentences(samples, PAD)) == 2


def test_a_batch_that_cannot_be_taken_apart():
    with pytest.raises(ValueError, match="neither id nor nsentences"):
        split_sentences({"x": torch.zeros(2)}, PAD)


class TestSubBatch:
    """Some of the sentences, for an ascent that sees a part of the batch."""

    @pytest.mark.parametrize(
        ("count", "fraction", "chosen"), [(8, 0.25, 2), (9, 0.25, 3), (1, 0.1, 1), (10, 0.3, 3)]
    )
    def test_as_many_as_asked_for(self, count: int, fraction: float, chosen: int):
        whole = batch_of([3] * count)
        part = sub_batch(whole, PAD, fraction, draw=0.4)
        assert len(part["id"]) == part["nsentences"] == chosen
        assert part["ntokens"] == int(part["target"].ne(PAD).sum())

    def test_the_whole_is_the_batch_itself(self):
        whole = batch_of([2, 3])
        assert sub_batch(whole, PAD, 1.0, draw=0.4) is whole

    def test_each_sentence_is_chosen_equally_often(self):
        """χ² over 1,000 draws: below 28 with probability 0.999 for 9 degrees of freedom."""
        random, counts = Random(1), [0] * 10
        for _ in range(1000):
            for each in sub_batch({"id": list(range(10))}, PAD, 0.3, random.random())["id"]:
                counts[each] += 1
        expected = sum(counts) / 10
        assert sum((count - expected) ** 2 / expected for count in counts) < 28

    def test_they_are_spread_evenly(self):
        for draw in (0.0, 0.5, 0.999):
            rows = sub_batch({"id": list(range(100))}, PAD, 0.1, draw)["id"]
            assert len(set(rows)) == 10
            assert {b - a for a, b in zip(rows, rows[1:])} == {10}

    def test_columns_that_are_padding_now_are_dropped(self):
        part = sub_batch(batch_of([2, 6, 3, 6]), PAD, 0.5, draw=0.0)
        assert part["net_input"]["src_tokens"].size(1) == 3

    def test_alignments_point_into_the_whole_batch(self):
        with pytest.raises(ValueError, match="alignments"):
            sub_batch({"id": [1, 2, 3], "alignments": 1}, PAD, 0.5, draw=0.0)

    def test_batches_of_several_language_pairs(self):
        both = {"a-b": batch_of([3] * 4), "b-a": None}
        part = sub_batch(both, PAD, 0.5, draw=0.0)
        assert part["a-b"]["nsentences"] == 2
        assert part["b-a"] is None


def speech_batch(source: List[int], target: List[int]) -> Dict[str, Any]:
    """Frames with as many features each, and text or frames to be had of them."""
    return {
        "id": torch.arange(len(source)),
        "nsentences": len(source),
        "ntokens": sum(target),
        "net_input": {
            "src_tokens": torch.rand(len(source), max(source), 3),
            "src_lengths": torch.tensor(source),
            "prev_output_tokens": torch.rand(len(target), max(target), 3),
        },
        "target": torch.rand(len(target), max(target), 3),
        "target_lengths": torch.tensor(target),
    }


def test_frames_are_trimmed_by_their_lengths():
    part = sub_batch(speech_batch([3, 9, 5, 7], [6, 2, 4, 8]), PAD, 0.5, draw=0)
    assert part["id"].tolist() == [0, 2]
    assert part["net_input"]["src_tokens"].shape == (2, 5, 3)
    assert part["net_input"]["prev_output_tokens"].shape == (2, 6, 3)
    assert part["target"].shape == (2, 6, 3)


def test_text_of_speech_is_trimmed_though_its_source_is_no_text():
    whole = speech_batch([3, 9], [2, 4])
    whole["target"] = torch.tensor([[5, 2, PAD, PAD], [5, 6, 7, 2]])
    whole["net_input"]["prev_output_tokens"] = [torch.tensor([2, 5]), torch.tensor([2, 5, 6, 7])]
    part = sub_batch(whole, PAD, 0.5, draw=0)
    assert part["target"].tolist() == [[5, 2]]
    assert [tokens.tolist() for tokens in part["net_input"]["prev_output_tokens"]] == [[2, 5]]


def test_lengths_that_count_something_else_trim_nothing():
    whole = speech_batch([3, 9], [2, 4])
    whole["net_input"]["src_lengths"] = torch.tensor([300, 900])
    part = sub_batch(whole, PAD, 0.5, draw=0)
    assert part["net_input"]["src_tokens"].shape == (1, 9, 3)


def test_what_has_a_number_for_each_token_is_trimmed_with_it():
    whole = translation_batch([(3, 2), (5, 4)])
    whole["net_input"]["durations"] = torch.rand(2, 5)
    whole["pauses"] = torch.zeros(2, 4, dtype=torch.bool)
    part = split_sentences(whole, PAD)[0]
    assert part["net_input"]["durations"].shape == (1, 3)
    assert part["pauses"].shape == (1, 2)


def test_several_targets_of_each_sentence():
    whole = translation_batch([(3, 2), (2, 4), (1, 1)])
    whole["target"] = [whole["target"], whole["target"] + 1]
    part = split_sentences(whole, PAD)[1]
    assert [target.shape[0] for target in part["target"]] == [1, 1]
    assert [each["ntokens"] for each in split_sentences(whole, PAD)] == [2, 4, 1]


def test_targets_that_are_not_of_the_sentences():
    whole = {**translation_batch([(3, 2), (2, 4)]), "target": {"edge": {"a": torch.arange(6)}}}
    with pytest.raises(ValueError, match="6 targets for 2 sentences"):
        split_sentences(whole, PAD)


def test_made_batches_of_fairseqs_benchmarks_have_one_number_for_all():
    whole = {**translation_batch([(3, 2), (2, 4)]), "id": 1}
    assert len(split_sentences(whole, PAD)) == 2


def test_no_word_of_a_target_is_dropped_by_where_the_source_is_padding():
    """A source that is padded left, as wide as a target of which no decoder reads anything."""
    whole = translation_batch([(2, 4), (4, 4)])
    del whole["net_input"]["prev_output_tokens"]
    whole["net_input"]["src_tokens"] = torch.tensor([[PAD, PAD, 5, 6], [PAD, 7, 8, 9]])
    whole["target"] = torch.tensor([[9, 10, 2, PAD], [9, 10, 11, 2]])
    part = split_sentences(whole, PAD)[0]
    assert part["target"].tolist() == [[9, 10, 2, PAD]]
    assert part["net_input"]["src_tokens"].tolist() == [[5, 6]]


def test_several_targets_are_trimmed_with_the_decoders_input():
    whole = translation_batch([(4, 2), (2, 4)])
    whole["target"] = [whole["target"], whole["target"] + 0]
    part = split_sentences(whole, PAD)[0]
    assert [each.shape for each in part["target"]] == [(1, 2), (1, 2)]
    assert part["net_input"]["prev_output_tokens"].shape == (1, 2)


def test_frames_are_what_speech_counts():
    whole = speech_batch([3, 9, 5, 7], [6, 2, 4, 8])
    whole["net_input"]["src_tokens"] = torch.full((4, 9), 5)
    assert sub_batch(whole, PAD, 0.5, draw=0)["ntokens"] == 10


def test_rows_that_only_pad_are_rows():
    """``--pad-to-fixed-bsz`` adds them to a smaller last batch."""
    whole = batch_of([3, 2])
    for holder, key in (
        (whole["net_input"], "src_tokens"),
        (whole["net_input"], "prev_output_tokens"),
        (whole, "target"),
    ):
        holder[key] = torch.cat([holder[key], torch.full((1, 3), PAD)])
    parts = split_sentences(whole, PAD)
    assert [part["ntokens"] for part in parts] == [3, 2, 0]
    assert parts[-1]["net_input"]["src_tokens"].tolist() == [[PAD]]
    assert parts[-1]["target"].tolist() == [[PAD]]
