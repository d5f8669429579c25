"""Runs that diverge: how they end with fairseq alone, and once repaired."""

import logging
from collections import OrderedDict
from typing import NamedTuple

import pytest
import torch
from fairseq.nan_detector import NanDetector
from torch import nn

OUTPUTS = {
    "an encoder's": lambda x: {"encoder_embedding": [], "encoder_out": [x]},
    "no tensor at all": lambda x: {"encoder_states": [], "src_lengths": None},
    "a decoder's": lambda x: (x, {"attn": [None], "inner_states": [x]}),
    "an empty tuple": lambda x: (),
    "None": lambda x: None,
    "a number": lambda x: 1.0,
    "a named tuple": lambda x: NamedTuple("Out", [("a", list), ("b", torch.Tensor)])([], x),
    "tensors": lambda x: OrderedDict(a=x),
    "a tensor": lambda x: x,
}


class Model(nn.Module):
    def __init__(self, output):
        super().__init__()
        self.linear = nn.Linear(2, 2)
        self.output = output

    def forward(self, x):
        return self.output(self.linear(x))


@pytest.mark.parametrize("output", list(OUTPUTS))
def test_any_output_is_looked_at(output):
    model = Model(OUTPUTS[output])
    with NanDetector(model):
        model(torch.ones(3, 2))
    assert not model._forward_hooks
    assert not model.linear._forward_hooks


def test_fairseq_alone_stops_at_an_encoder(unrepaired, monkeypatch):
    monkeypatch.setattr(NanDetector, "add_hooks", unrepaired(NanDetector.add_hooks))
    monkeypatch.setattr(NanDetector, "__exit__", unrepaired(NanDetector.__exit__))
    model = Model(OUTPUTS["no tensor at all"])
    with pytest.raises(StopIteration), NanDetector(model):
        model(torch.ones(3, 2))


@pytest.mark.parametrize("output", ["an encoder's", "a tensor"])
def test_the_first_nan_is_reported_in_both_directions(output, caplog):
    class Break(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, gradient):
            return gradient * float("nan")

    model = nn.Sequential(nn.Linear(2, 2), Model(OUTPUTS[output]))
    caplog.set_level(logging.WARNING)
    with NanDetector(model):
        found = model(torch.ones(3, 2))
        last = found["encoder_out"][0] if isinstance(found, dict) else found
        Break.apply(last).sum().backward()
    assert "NaN detected in output of 1" in caplog.text
    assert "backward" in caplog.text

    caplog.clear()
    with NanDetector(model):
        model(torch.full((3, 2), float("nan")))
    assert "NaN detected in output of 0, shape: torch.Size([3, 2]), forward" in caplog.text


def test_a_failure_of_the_search_is_logged_only(caplog):
    with NanDetector(nn.Linear(1, 1)):
        raise RuntimeError("out of memory")
    assert "ended early: RuntimeError('out of memory')" in caplog.text
    with pytest.raises(KeyboardInterrupt), NanDetector(nn.Linear(1, 1)):
        raise KeyboardInterrupt


@pytest.mark.parametrize("optimizer", [pytest.param("adam", marks=pytest.mark.slow), "sam"])
def test_a_diverged_run_says_so(fairseq_train_alone, optimizer):
    run = fairseq_train_alone(
        f"--optimizer {optimizer} --lr 1e30 --clip-norm 0 --max-update 20 --encoder-layers 2"
    )
    assert run.status != 0
    assert run.output.splitlines()[-1].startswith("FloatingPointError")
    assert "StopIteration" not in run.output
