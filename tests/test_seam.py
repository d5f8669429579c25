"""The seam on its own: a made task and criterion, without fairseq's trainer."""

from types import SimpleNamespace

import pytest
import torch
from fairseq.logging import metrics as fairseq_metrics
from torch import nn

import fairseq_sam
from fairseq_sam import seam
from fairseq_sam.optim.flags import SharpnessAwareConfig
from fairseq_sam.optim.gate import Gate
from fairseq_sam.parameters import select_perturbed
from fairseq_sam.perturbation import method_settings

fairseq_sam.register()


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([3.0, 4.0], dtype=torch.float64))
        self.frozen = nn.Parameter(torch.ones(2, dtype=torch.float64), requires_grad=False)


class Criterion(nn.Module):
    """Half the squared norm: its gradient is the weight itself."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def forward(self, model, sample, reduce=True):
        self.seen.append(model.weight.detach().clone())
        loss = 0.5 * sample * (model.weight * model.frozen).square().sum()
        return loss, 1, {"loss": loss.detach(), "sample_size": 1}

    @staticmethod
    def reduce_metrics(logging_outputs):
        total = sum(float(output["loss"]) for output in logging_outputs)
        fairseq_metrics.log_scalar("loss", total / len(logging_outputs))


class Task:
    def __init__(self):
        self.begun = []

    def begin_epoch(self, epoch, model):
        self.begun.append(epoch)

    def train_step(self, sample, model, criterion, optimizer, update_num, ignore_grad=False):
        model.train()
        criterion.train()
        loss, sample_size, logging_output = criterion(model, sample)
        (loss * 0 if ignore_grad else loss).backward()
        return loss, sample_size, logging_output

    def reduce_metrics(self, logging_outputs, criterion):
        self.reduced = logging_outputs
        criterion.__class__.reduce_metrics(logging_outputs)


def optimizer(method="sam", rho=0.5, **gate):
    settings = method_settings(method, rho=rho)
    return SimpleNamespace(
        sharpness_aware=SharpnessAwareConfig(method, settings, Gate(**gate), exclude=None)
    )


@pytest.fixture
def parts():
    task, model, criterion = Task(), Model(), Criterion()
    seam.connect(task, criterion)
    return task, model, criterion


W = torch.tensor([3.0, 4.0], dtype=torch.float64)


def test_sam_of_a_quadratic(parts):
    """w + ρ w / ‖w‖ is both where the loss is differentiated and the gradient."""
    task, model, criterion = parts
    _, _, logging_output = task.train_step(1.0, model, criterion, optimizer(), 0)
    assert len(criterion.seen) == 2
    torch.testing.assert_close(criterion.seen[1], W * 1.1)
    torch.testing.assert_close(model.weight.grad, W * 1.1)
    assert torch.equal(model.weight.detach(), W)
    assert float(logging_output["loss"]) == 12.5
    assert logging_output["sam_on"] == 1


def test_other_optimizers_are_left_alone(parts):
    task, model, criterion = parts
    _, _, logging_output = task.train_step(1.0, model, criterion, SimpleNamespace(), 0)
    assert len(criterion.seen) == 1
    assert torch.equal(model.weight.grad, W)
    assert set(logging_output) == {"loss", "sample_size"}


@pytest.mark.parametrize("wrapper", ["fp32_optimizer", "wrapped_optimizer"])
def test_the_configuration_is_found_inside_fairseqs_wrappers(parts, wrapper):
    task, model, criterion = parts
    outer = SimpleNamespace(**{wrapper: optimizer()})
    task.train_step(1.0, model, criterion, outer, 0)
    assert len(criterion.seen) == 2


def test_evaluation_is_left_alone(parts):
    task, model, criterion = parts
    task.train_step(1.0, model, criterion, optimizer(), 0)
    criterion.eval()
    model.eval()
    with torch.no_grad():
        loss, _, logging_output = criterion(model, 1.0)
    assert loss == 12.5
    assert set(logging_output) == {"loss", "sample_size"}


def test_epochs_and_updates_open_the_gate(parts):
    task, model, criterion = parts
    gated = optimizer(start_epoch=2, start_update=5)
    for epoch, update, passes in ((1, 5, 1), (2, 4, 1), (2, 5, 2), (3, 6, 2)):
        criterion.seen.clear()
        task.begin_epoch(epoch, model)
        task.train_step(1.0, model, criterion, gated, update)
        assert len(criterion.seen) == passes, (epoch, update)
    assert task.begun == [1, 2, 2, 3]


def test_rho_zero_runs_one_pass(parts):
    task, model, criterion = parts
    task.train_step(1.0, model, criterion, optimizer(rho=0.0), 0)
    assert len(criterion.seen) == 1


def test_a_worker_without_data_runs_one_pass_and_leaves_no_gradient(parts):
    task, model, criterion = parts
    _, _, output = task.train_step(1.0, model, criterion, optimizer(), 0, ignore_grad=True)
    assert len(criterion.seen) == 1
    assert not model.weight.grad.any()
    _, _, other = task.train_step(1.0, model, criterion, optimizer(), 0)
    assert set(output) == set(other)


def test_gradients_add_up_over_micro_batches(parts):
    task, model, criterion = parts
    for sample in (1.0, 2.0):
        task.train_step(sample, model, criterion, optimizer("sam"), 0)
    torch.testing.assert_close(model.weight.grad, 3 * W * 1.1)


def test_a_loss_that_is_never_differentiated_leaves_the_weights_in_place(parts):
    task, model, criterion = parts
    original = task.train_step

    def forward_only(sample, model, criterion, optimizer, update_num, ignore_grad=False):
        model.train()
        return criterion(model, sample)

    fresh, criterion = Task(), Criterion()
    fresh.train_step = forward_only
    seam.connect(fresh, criterion)
    fresh.train_step(1.0, model, criterion, optimizer(), 0)
    assert len(criterion.seen) == 2
    assert torch.equal(model.weight.detach(), W)
    assert original is task.train_step


def test_several_criterions_of_one_task_share_the_seam(parts):
    task, model, criterion = parts
    second = Criterion()
    seam.connect(task, second)
    task.train_step(1.0, model, second, optimizer(), 0)
    assert len(second.seen) == 2
    task.train_step(1.0, model, criterion, optimizer(), 0)
    assert len(criterion.seen) == 2


def test_the_criterion_is_given_back_its_own_logging_outputs(parts):
    task, model, criterion = parts
    _, _, output = task.train_step(1.0, model, criterion, optimizer(), 0)
    with fairseq_metrics.aggregate(new_root=True) as aggregator:
        task.reduce_metrics([output], criterion)
    assert [set(seen) for seen in task.reduced] == [{"loss", "sample_size"}]
    values = aggregator.get_smoothed_values()
    assert float(values["loss"]) == 12.5
    assert float(values["sharpness"]) == pytest.approx(12.5 * 1.1**2 - 12.5)


def test_exclusion_by_name():
    named = [(name, torch.zeros(1)) for name in ("encoder.bias", "decoder.weight", "head")]
    chosen = select_perturbed(named, "^encoder|head$")
    assert len(chosen) == 1
    assert chosen[0] is named[1][1]
    assert len(select_perturbed(named, None)) == 3
    with pytest.raises(SystemExit, match="--sam-exclude"):
        select_perturbed(named, "e")


def test_installing_twice_connects_once():
    from fairseq import criterions

    build = criterions.build_criterion
    seam.install()
    assert criterions.build_criterion is build
