"""The seam on its own: a made task and criterion, without fairseq's trainer."""

import copy
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from fairseq.logging import metrics as fairseq_metrics
from torch import nn

import fairseq_sam
from fairseq_sam.perturbation import method_settings
from fairseq_sam.training import seam
from fairseq_sam.training.configuration import Gate, SharpnessAwareConfig, carry
from fairseq_sam.training.parameters import select_perturbed

fairseq_sam.register()


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([3.0, 4.0], dtype=torch.float64))
        self.frozen = nn.Parameter(torch.ones(2, dtype=torch.float64), requires_grad=False)


class Notes(list):
    """A list that is no part of the state that the passes of a step share."""


class Criterion(nn.Module):
    """Half the squared norm: its gradient is the weight itself."""

    def __init__(self):
        super().__init__()
        self.seen = Notes()

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
        optimizer.backward(loss * 0 if ignore_grad else loss)
        return loss, sample_size, logging_output

    def reduce_metrics(self, logging_outputs, criterion):
        self.reduced = logging_outputs
        criterion.__class__.reduce_metrics(logging_outputs)


def optimizer(method="sam", rho=0.5, num_steps=None, **gate):
    settings = method_settings(method, rho=rho, num_steps=num_steps)
    return SimpleNamespace(
        sharpness_aware=SharpnessAwareConfig(method, settings, Gate(**gate), exclude=None),
        backward=torch.Tensor.backward,
    )


@pytest.fixture
def parts():
    task, model, criterion = Task(), Model(), Criterion()
    seam.connect(task)
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
    _, _, logging_output = task.train_step(
        1.0, model, criterion, SimpleNamespace(backward=torch.Tensor.backward), 0
    )
    assert len(criterion.seen) == 1
    assert torch.equal(model.weight.grad, W)
    assert set(logging_output) == {"loss", "sample_size"}


@pytest.mark.parametrize("wrapper", ["fp32_optimizer", "wrapped_optimizer"])
def test_the_configuration_is_found_inside_fairseqs_wrappers(parts, wrapper):
    task, model, criterion = parts
    outer = SimpleNamespace(**{wrapper: optimizer()}, backward=torch.Tensor.backward)
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


def test_a_worker_without_data_runs_the_passes_of_the_others_and_leaves_no_gradient(parts):
    task, model, criterion = parts
    _, _, output = task.train_step(1.0, model, criterion, optimizer(), 0, ignore_grad=True)
    assert len(criterion.seen) == 2
    assert not model.weight.grad.any()
    _, _, other = task.train_step(1.0, model, criterion, optimizer(), 0)
    assert {key: type(value) for key, value in output.items()} == {
        key: type(value) for key, value in other.items()
    }


@pytest.mark.parametrize("method", ["sam", "ga_sam", "multi_step_defense"])
def test_a_worker_without_data_logs_on_the_device_what_the_others_log_there(method):
    """fairseq reduces numbers and tensors of the host in one buffer, those of a device in another.

    A worker whose keys are spread otherwise waits for the others for ever.
    """
    task, model, criterion = Task(), Model().to("meta"), Criterion()
    seam.connect(task)

    def places(ignore_grad):
        output = task.train_step(1.0, model, criterion, optimizer(method), 0, ignore_grad)[2]
        return {k: str(v.device) if torch.is_tensor(v) else "host" for k, v in output.items()}

    assert places(True) == places(False)
    assert {places(False)[key] for key in ("sam_loss", "sam_norm", "sam_skipped")} == {"meta"}


def test_gradients_add_up_over_micro_batches(parts):
    task, model, criterion = parts
    for sample in (1.0, 2.0):
        task.train_step(sample, model, criterion, optimizer("sam"), 0)
    torch.testing.assert_close(model.weight.grad, 3 * W * 1.1)


def test_a_step_without_a_loss_leaves_everything_in_place(parts):
    _, model, criterion = parts
    fresh = Task()
    fresh.train_step = lambda *args, **kwargs: (0.0, 0, {})
    seam.connect(fresh)
    assert fresh.train_step(1.0, model, criterion, optimizer("ga_sam"), 0)[1] == 0
    assert torch.equal(model.weight.detach(), W)
    assert model.weight.grad is None


def test_a_step_that_goes_backward_by_itself_stops_the_run(parts):
    _, model, criterion = parts

    class PastTheOptimizer(Task):
        def train_step(self, sample, model, criterion, optimizer, update_num, ignore_grad=False):
            loss, sample_size, logging_output = criterion(model, sample)
            loss.backward()
            return loss, sample_size, logging_output

    fresh = PastTheOptimizer()
    seam.connect(fresh)
    with pytest.raises(SystemExit, match=r"PastTheOptimizer.train_step calls loss"):
        fresh.train_step(1.0, model, criterion, optimizer(), 0)
    assert torch.equal(model.weight.detach(), W)


def test_weights_on_losses_count_as_the_task_weighs_them(parts):
    """Several criterion calls a step, each with a weight: one perturbation along their sum."""
    _, model, criterion = parts

    class Weighing(Task):
        def train_step(self, sample, model, criterion, optimizer, update_num, ignore_grad=False):
            total = 0.0
            for weight in (0.25, 0.5):
                loss, sample_size, logging_output = criterion(model, sample)
                loss *= weight
                optimizer.backward(loss)
                total += loss.item()
            return total, sample_size, logging_output

    fresh = Weighing()
    seam.connect(fresh)
    loss, _, _ = fresh.train_step(1.0, model, criterion, optimizer(), 0)
    assert loss == 0.75 * 12.5
    torch.testing.assert_close(model.weight.grad, 0.75 * 1.1 * W)
    assert [float(w[0]) for w in criterion.seen] == pytest.approx([3, 3, 3.3, 3.3])


def test_sentences_perturbed_on_their_own_count_as_the_task_weighs_them():
    class ByRow(nn.Module):
        padding_idx = 1

        def forward(self, model, sample):
            loss = (model.weight[0] * sample["x"]).sum()
            return loss, sample["nsentences"], {"loss": loss.detach()}

    class Weighing(Task):
        def train_step(self, sample, model, criterion, optimizer, update_num, ignore_grad=False):
            loss, sample_size, logging_output = criterion(model, sample)
            loss *= 0.2
            optimizer.backward(loss)
            return loss, sample_size, logging_output

    task, model = Weighing(), Model()
    seam.connect(task)
    x = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
    sample = {"id": torch.arange(3), "nsentences": 3, "x": x}
    _, sample_size, _ = task.train_step(sample, model, ByRow(), optimizer("per_instance_sam"), 0)
    assert sample_size == 3
    assert model.weight.grad.tolist() == pytest.approx([0.2 * 6, 0])


def test_losses_that_are_means_are_not_taken_sentence_by_sentence():
    """tacotron2 and its kind say that what they log cannot be summed."""

    class OfMeans(nn.Module):
        padding_idx = 1

        def forward(self, model, sample):
            loss = (model.weight[0] * sample["x"]).mean()
            return loss, sample["nsentences"], {"loss": loss.detach()}

        @staticmethod
        def logging_outputs_can_be_summed():
            return False

    task, model = Task(), Model()
    seam.connect(task)
    sample = {"id": torch.arange(3), "nsentences": 3, "x": torch.ones(3, dtype=torch.float64)}
    with pytest.raises(SystemExit, match="OfMeans logs cannot be summed"):
        task.train_step(sample, model, OfMeans(), optimizer("per_instance_sam"), 0)
    task.train_step(sample, model, OfMeans(), optimizer("sam"), 0)


class CouplingSentences(Criterion):
    couples_sentences = True


@pytest.mark.parametrize(
    ("parts_of_method", "exclude", "sample", "criterion", "reason"),
    [
        ({"per_instance": True}, None, {}, CouplingSentences(), "needs the other sentences"),
        ({"per_instance": True}, None, {"alignments": 0}, Criterion(), "--load-alignments"),
        ({"ascent_fraction": 0.5}, None, {"alignments": 0}, Criterion(), "--load-alignments"),
        ({"weighting": "published"}, None, {}, Criterion(), "the loss of each sentence"),
        ({}, "weight|frozen", {}, Criterion(), "--sam-exclude"),
    ],
)
def test_what_cannot_be_perturbed_is_refused_long_before_the_start(
    parts, parts_of_method, exclude, sample, criterion, reason
):
    task, model, _ = parts
    late = optimizer(start_epoch=30)
    settings = method_settings("sam", **parts_of_method)
    late.sharpness_aware = replace(late.sharpness_aware, perturbation=settings, exclude=exclude)
    sample = {"id": torch.arange(3), "nsentences": 3, **sample}
    with pytest.raises(SystemExit, match=reason):
        task.train_step(sample, model, criterion, late, 0)
    assert not criterion.seen


def test_what_may_thaw_before_the_start_is_not_refused(parts):
    task, model, criterion = parts
    late = optimizer(start_epoch=30)
    late.sharpness_aware = replace(late.sharpness_aware, exclude="weight")
    for _ in range(2):
        task.train_step(1.0, model, criterion, late, 0)
    task.begin_epoch(30, model)
    with pytest.raises(SystemExit, match="--sam-exclude"):
        task.train_step(1.0, model, criterion, late, 0)
    model.frozen.requires_grad_()
    task.train_step(1.0, model, criterion, late, 0)


def test_a_copy_of_a_criterion_is_perturbed_like_the_original(parts):
    task, model, criterion = parts
    clone = copy.deepcopy(criterion)
    task.train_step(1.0, model, clone, optimizer(), 0)
    assert (len(clone.seen), len(criterion.seen)) == (2, 0)
    torch.testing.assert_close(model.weight.grad, W * 1.1)


def test_a_weight_of_model_and_criterion_counts_once(parts):
    """‖g‖ is 5 and not 5 √2."""
    task, model, criterion = parts
    criterion.shared = model.weight
    task.train_step(1.0, model, criterion, optimizer(), 0)
    torch.testing.assert_close(model.weight.grad, W * 1.1)


def test_models_of_the_past_are_let_go(parts):
    import gc
    import weakref

    task, model, criterion = parts
    gated = optimizer(start_epoch=2)
    task.train_step(1.0, model, criterion, gated, 0)
    passing = Model()
    gone = weakref.ref(passing)
    task.train_step(1.0, passing, criterion, optimizer(), 0)
    task.train_step(1.0, model, criterion, optimizer(), 0)
    del passing
    gc.collect()
    assert gone() is None


def test_set_num_updates_happens_once_a_step_and_at_w(parts):
    """A teacher that follows the model would follow it twice, and towards perturbed weights."""
    criterion = parts[2]
    calls = []

    class Following(Model):
        def set_num_updates(self, number):
            calls.append((number, self.weight.detach().clone(), copy.deepcopy(self)))
            self.seen_by = number

    class Telling(Task):
        def train_step(self, sample, model, criterion, optimizer, update_num, ignore_grad=False):
            model.set_num_updates(update_num)
            assert model.seen_by == update_num
            return super().train_step(sample, model, criterion, optimizer, update_num, ignore_grad)

    fresh, following = Telling(), Following()
    seam.connect(fresh)
    for update in (0, 1):
        fresh.train_step(1.0, following, criterion, optimizer("ga_sam", num_steps=2), update)
        assert following.seen_by == update
    assert [number for number, _, _ in calls] == [0, 1]
    assert all(torch.equal(weight, W) for _, weight, _ in calls)
    assert all("set_num_updates" not in vars(each) for each in (following, calls[0][2]))


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
    named = [
        (name, nn.Parameter(torch.zeros(1))) for name in ("encoder.bias", "decoder.weight", "head")
    ]
    chosen = select_perturbed(named, "^encoder|head$")
    assert len(chosen) == 1
    assert chosen[0] is named[1][1]
    assert len(select_perturbed(named, None)) == 3
    with pytest.raises(SystemExit, match="--sam-exclude"):
        select_perturbed(named, "e")


def test_an_optimizer_step_without_a_training_step_stops_the_run():
    taken = []
    base = optimizer()
    base.step = lambda: taken.append(1)
    carry(base, base.sharpness_aware)
    with pytest.raises(SystemExit, match=r"did not go through task\.train_step"):
        base.step()
    task, model, criterion = Task(), Model(), Criterion()
    seam.connect(task)
    task.train_step(1.0, model, criterion, base, 0)
    base.step()
    assert taken == [1]


def test_a_model_that_recomputes_activations_has_no_unperturbed_part(parts):
    from fairseq.modules.checkpoint_activations import checkpoint_wrapper

    task, model, _ = parts
    model.layer = checkpoint_wrapper(nn.Linear(2, 2).double())

    class OneView(Criterion):
        def forward(self, model, sample, reduce=True):
            task.sharpness_aware_seam.call_unperturbed(model)
            return super().forward(model, sample, reduce)

    with pytest.raises(SystemExit, match="--checkpoint-activations"):
        task.train_step(1.0, model, OneView(), optimizer(), 0)


def test_data_sets_have_numpys_generator_to_themselves_while_they_have_it_seeded():
    import threading

    from fairseq.data import data_utils

    from fairseq_sam.perturbation.replay import numpy_lock

    def is_free():
        found = []

        def look():
            found.append(numpy_lock().acquire(blocking=False))
            if found[0]:
                numpy_lock().release()

        thread = threading.Thread(target=look)
        thread.start()
        thread.join()
        return found[0]

    with data_utils.numpy_seed(1, 2):
        assert not is_free()
    assert is_free()


def test_installing_twice_connects_once():
    from fairseq import criterions

    build = criterions.build_criterion
    seam.install()
    assert criterions.build_criterion is build
