"""The mean loss over a data set, against losses and gradients written out."""

import random

import numpy as np
import torch
from torch import nn

from fairseq_sam.analysis.dataset_loss import DatasetLoss


class Masking(nn.Linear):
    """Draws what it masks in evaluation, too, by each of the generators."""

    def forward(self, x):
        kept = torch.rand(len(x)).double().unsqueeze(1) + np.random.rand() + random.random()
        return super().forward(x * kept)


class SquaredError(nn.Module):
    """Summed over a mini-batch, as fairseq's criterions are."""

    def forward(self, model, sample):
        return (model(sample["x"]) - sample["y"]).pow(2).sum(), len(sample["x"]), {}


def problem():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.5), nn.Linear(4, 1)).double().train()
    unused = nn.Linear(2, 2).double()
    model.add_module("unused", nn.Identity())
    model.unused.extra = unused.weight
    x, y = torch.randn(7, 3).double(), torch.randn(7, 1).double()
    samples = [{"x": x[:5], "y": y[:5]}, {"x": x[5:], "y": y[5:]}]
    return DatasetLoss(model, SquaredError(), samples), model, x, y


def reference(model, x, y):
    h = x @ model[0].weight.t() + model[0].bias
    return (h @ model[2].weight.t() + model[2].bias - y).pow(2).mean()


def test_value_and_gradient_of_batches_of_different_sizes():
    dataset, model, x, y = problem()
    wanted = reference(model, x, y)
    gradients = torch.autograd.grad(wanted, list(model.parameters())[:4])
    wanted = wanted.item()
    value, found = dataset.gradient()
    assert abs(dataset() - wanted) < 1e-12
    assert abs(value - wanted) < 1e-12
    assert dataset.names[:2] == ["0.weight", "0.bias"]
    for mine, theirs in zip(found, gradients):
        assert torch.allclose(mine, theirs, rtol=0, atol=1e-12)
    assert found[4] is None


def test_mode_and_gradients_are_left_as_they_were():
    dataset, model, _, _ = problem()
    model[0].weight.grad = torch.ones_like(model[0].weight)
    dataset.gradient()
    assert model.training
    assert model[1].training
    assert torch.equal(model[0].weight.grad, torch.ones_like(model[0].weight))
    assert model[2].weight.grad is None


def test_what_a_model_draws_is_the_same_each_time():
    torch.manual_seed(0)
    samples = [{"x": torch.randn(n, 3).double(), "y": torch.randn(n, 1).double()} for n in (5, 2)]
    dataset = DatasetLoss(Masking(3, 1).double(), SquaredError(), samples)

    def states():
        return torch.get_rng_state().tolist(), np.random.get_state()[1].tolist(), random.getstate()

    before = states()
    first, other = dataset(), dataset()
    assert first == other == dataset.gradient()[0]
    assert states() == before
    assert not dataset.model._forward_pre_hooks
