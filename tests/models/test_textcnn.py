"""TextCNN: shapes, a slow reference, padding, and training through fairseq."""

import argparse
import types

import pytest
import torch
from fairseq.data import Dictionary
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from fairseq_sam.models.textcnn import TextCNN, TextCNNConfig
from tests.criterions.test_fairseq_train_per_sentence import RUNS

PAD = 1


def model(windows=(3, 4, 5), maps=3, size=4):
    torch.manual_seed(0)
    network = TextCNN(nn.Embedding(20, size, PAD), list(windows), maps, dropout=0.0)
    network.register_classification_head("head", 2)
    return network.double().eval()


def pad(rows, width, left=False):
    out = torch.full((len(rows), width), PAD)
    for i, row in enumerate(rows):
        row = torch.tensor(row)
        if left:
            out[i, width - len(row) :] = row
        else:
            out[i, : len(row)] = row
    return out


def slow_features(network, sentence):
    """Kim's Eqs. 1-3 with loops: the sentence between zero vectors, one dot product a window."""
    features = []
    words = [network.embed_tokens.weight[i] for i in sentence]
    for width, convolution in zip(network.windows, network.convolutions):
        zeros = [torch.zeros_like(words[0])] * (width - 1)
        padded = [*zeros, *words, *zeros]
        for bias, filter_ in zip(convolution.bias, convolution.weight):
            scores = []
            for begin in range(len(padded) - width + 1):
                window = torch.stack(padded[begin : begin + width], dim=1)
                scores.append((window * filter_).sum() + bias)
            features.append(torch.stack(scores).max().clamp(min=0))
    return torch.stack(features)


def test_shapes():
    network = model(windows=(2, 3), maps=5)
    tokens = pad([[4, 5, 6], [7]], 6)
    assert network.extract_features(tokens).shape == (2, 10)
    logits, extra = network(tokens, classification_head_name="head", features_only=True)
    assert logits.shape == (2, 2)
    assert extra == {}
    sums = network.get_normalized_probs((logits, extra), log_probs=False).sum(1)
    assert torch.allclose(sums, torch.ones(2).double())


sentences = st.lists(st.lists(st.integers(3, 19), min_size=1, max_size=8), min_size=1, max_size=4)


@settings(max_examples=30)
@given(sentences, st.booleans())
def test_against_loops(rows, left):
    network = model(windows=(1, 3, 4), maps=2)
    found = network.extract_features(pad(rows, max(map(len, rows)), left))
    wanted = torch.stack([slow_features(network, row) for row in rows])
    assert torch.allclose(found, wanted, rtol=0, atol=1e-12)


@settings(max_examples=30)
@given(sentences, st.integers(0, 9))
def test_padding_changes_nothing(rows, more):
    network = model()
    # Even where a perturbation has moved the vector of the padding.
    network.embed_tokens.weight.data[PAD] = 7.0
    longest = max(map(len, rows))
    alone = torch.cat([network.extract_features(torch.tensor([row])) for row in rows])
    for left in (False, True):
        together = network.extract_features(pad(rows, longest + more, left))
        assert torch.allclose(together, alone, rtol=0, atol=1e-12)


def build(**flags):
    cfg = argparse.Namespace(**{**vars(TextCNNConfig()), **flags})
    task = types.SimpleNamespace(source_dictionary=Dictionary())
    return TextCNN.build_model(cfg, task)


def test_word_vectors(tmp_path):
    path = tmp_path / "vectors.txt"
    path.write_text("1 3\nfilm 1 2 3\n")
    dictionary = Dictionary()
    dictionary.add_symbol("film")
    task = types.SimpleNamespace(source_dictionary=dictionary)
    cfg = {**vars(TextCNNConfig()), "embed_path": str(path)}
    network = TextCNN.build_model(argparse.Namespace(**{**cfg, "embed_dim": 3}), task)
    assert network.embed_tokens.weight[dictionary.index("film")].tolist() == [1.0, 2.0, 3.0]
    with pytest.raises(SystemExit, match=r"--embed-path: .*: film has 3 numbers; .* wants 300"):
        build(embed_path=str(path))
    path.write_text("1 3\nfilm one 2 3\n")
    with pytest.raises(SystemExit, match=r"--embed-path: .*could not convert"):
        build(embed_path=str(path))
    with pytest.raises(SystemExit, match=r"--embed-path: .*No such file"):
        build(embed_path=str(tmp_path / "missing"))


def test_embeddings_begin_as_kims():
    weight = build().embed_tokens.weight.detach()
    assert float(weight.abs().max()) <= 0.25
    assert torch.equal(weight[Dictionary().pad()], torch.zeros(300))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"windows": "3,x"}, "--windows: 3,x is not allowed"),
        ({"windows": "0"}, "--windows: 0 is not allowed"),
        ({"embed_dim": 0}, "--embed-dim: 0 is not allowed"),
        ({"feature_maps": -1}, "--feature-maps: -1 is not allowed"),
        ({"dropout": 1.0}, "--dropout: 1.0 is not allowed"),
    ],
)
def test_bad_flags_are_refused(flags, message):
    with pytest.raises(SystemExit, match=message):
        build(**flags)


@pytest.fixture(scope="module")
def task(tmp_path_factory):
    make_data, _ = RUNS["sentence_prediction"]
    data = tmp_path_factory.mktemp("labelled")
    flags = make_data(data).split("--arch")[0]
    return data, f"{flags} --arch textcnn --embed-dim 8 --feature-maps 4 --batch-size 4"


@pytest.mark.parametrize("optimizer", ["adam", "asam", "ga_sam", "delta_sam"])
def test_trains_and_learns(fairseq_train, task, optimizer):
    run = fairseq_train(
        f"--optimizer {optimizer} --criterion per_sentence_sentence_prediction --max-epoch 12",
        task=task,
        validate=True,
    )
    losses = run.values("loss", "train")
    assert losses[-1] < losses[0]
    assert "valid_accuracy" in run.records["valid"][-1]


def test_a_bad_flag_stops_before_training(fairseq_train, task, capsys):
    with pytest.raises(SystemExit):
        fairseq_train("--optimizer adam --criterion sentence_prediction --windows 3,-1", task=task)
    assert "--windows: 3,-1 is not allowed" in capsys.readouterr().err
