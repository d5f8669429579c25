"""A task that generates its mini-batch within the step, as online_backtranslation does."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from fairseq_sam.perturbation import method_settings
from fairseq_sam.training import seam
from fairseq_sam.training.configuration import Gate, SharpnessAwareConfig
from tests.training.test_seam import Notes


class Generator:
    """ "Translates" by the weights, and draws a random number on the way."""

    def __init__(self, model):
        self.model = model
        self.calls = []

    def generate(self, sample):
        self.calls.append(self.model.weight.detach().clone())
        return self.model.weight.detach() * sample * torch.rand(())


class Task:
    def __init__(self, model):
        self.sequence_generators = {"de": Generator(model), "en": Generator(model)}
        self.seen = Notes()

    def begin_epoch(self, epoch, model):
        pass

    def reduce_metrics(self, logging_outputs, criterion):
        pass

    def train_step(self, sample, model, criterion, optimizer, update_num, ignore_grad=False):
        before, total = torch.rand(()), 0.0
        for language in ("de", "en"):
            translation = self.sequence_generators[language].generate(sample)
            dropout = torch.rand(())
            self.seen.append((before, translation, dropout))
            loss = (model.weight * translation * dropout).square().sum()
            optimizer.backward(loss)
            total += loss.item()
        return total, 1, {"loss": total}


@pytest.mark.parametrize(
    ("method", "passes"), [("sam", 2), ("ga_sam", 3), ("multi_step_defense", 4)]
)
def test_all_passes_train_on_what_was_generated_at_w(method, passes):
    model, criterion = nn.Module(), nn.Module()
    model.weight = nn.Parameter(torch.tensor([3.0, 4.0]))
    start = model.weight.detach().clone()
    task = Task(model)
    seam.connect(task)
    settings = method_settings(method, rho=0.5, num_steps=passes - 1)
    optimizer = SimpleNamespace(
        sharpness_aware=SharpnessAwareConfig(method, settings, Gate()),
        backward=torch.Tensor.backward,
    )
    torch.manual_seed(1)
    task.train_step(torch.tensor(2.0), model, criterion, optimizer, 0)
    after = torch.rand(())
    for generator in task.sequence_generators.values():
        assert len(generator.calls) == 1
        assert torch.equal(generator.calls[0], start)
        assert "generate" not in vars(generator)
    assert len(task.seen) == 2 * passes
    for i, seen in enumerate(task.seen):
        assert all(torch.equal(one, other) for one, other in zip(seen, task.seen[i % 2]))
    torch.manual_seed(1)
    torch.rand(5)  # what a single pass draws
    assert torch.equal(after, torch.rand(()))
