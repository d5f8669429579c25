"""Which parameters of a run there are."""

import torch
from torch import nn

from fairseq_sam.training.parameters import named_parameters


class Layer(nn.Module):
    """As fairseq 0.12.2's encoder layer, which holds some weights twice."""

    def __init__(self, has_second_copies: bool) -> None:
        super().__init__()
        self.fc1 = nn.Linear(2, 2)
        self.fc1_weight = nn.Parameter(torch.zeros(2, 2))
        self.in_proj_bias = nn.Parameter(torch.zeros(2))
        if has_second_copies:
            self.BT_version = False


def names(model: nn.Module) -> list:
    return [name for name, _ in named_parameters(model, nn.Module())]


def test_second_copies_are_left_out():
    assert names(nn.Sequential(Layer(True))) == ["0.fc1.weight", "0.fc1.bias"]


def test_other_layers_have_none():
    assert names(Layer(False)) == ["fc1_weight", "in_proj_bias", "fc1.weight", "fc1.bias"]


def test_each_once_with_the_criterions():
    model, criterion = nn.Linear(1, 1), nn.Linear(1, 1)
    criterion.weight = model.weight
    found = named_parameters(model, criterion)
    assert [name for name, _ in found] == ["weight", "bias", "bias"]
