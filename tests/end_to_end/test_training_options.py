"""fairseq's own training options keep their meaning; steps are recomputed by hand."""

import copy
from typing import Any, Dict, List, NamedTuple

import pytest
import torch

from tests.fairseq_runs import TRANSLATION, Run, parse_log, run_in_process, split, trained

RHO = 0.05
SGD = f"--optimizer sam --base-optimizer sgd --sam-rho {RHO} --lr 0.5 --dropout 0 --max-update 3"


class Step(NamedTuple):
    """One update as the trainer took it."""

    trainer: Any
    samples: List[Dict[str, Any]]
    before: Dict[str, torch.Tensor]
    after: Dict[str, torch.Tensor]


@pytest.fixture
def steps(monkeypatch):
    """The updates of the runs to come."""
    from fairseq.trainer import Trainer

    seen: List[Step] = []
    original = Trainer.train_step

    def train_step(self, samples, *args, **kwargs):
        before = copy.deepcopy(self.get_model().state_dict())
        outcome = original(self, samples, *args, **kwargs)
        after = copy.deepcopy(self.get_model().state_dict())
        seen.append(Step(self, list(samples), before, after))
        return outcome

    monkeypatch.setattr(Trainer, "train_step", train_step)
    return seen


def trained_parameters(model):
    names = trained(dict(model.named_parameters()))
    return [weight for name, weight in model.named_parameters() if name in names]


def sam_gradients(model, criterion, sample):
    """The summed loss's gradients at w + rho g / ‖g‖, and the batch's sample size."""
    weights = trained_parameters(model)
    loss, sample_size, _ = criterion(model, sample)
    gradients = torch.autograd.grad(loss, weights)
    norm = torch.sqrt(sum(g.double().square().sum() for g in gradients)).float()
    with torch.no_grad():
        for w, g in zip(weights, gradients):
            w.add_(g * (RHO / norm))
    loss, _, _ = criterion(model, sample)
    return torch.autograd.grad(loss, weights), sample_size


def sam_step_by_hand(step: Step, lr: float = 0.5, clip_norm: float = 0.0):
    """SGD on the sum over micro-batches of their SAM gradients, over their sample sizes."""
    model, criterion = step.trainer.get_model(), step.trainer.get_criterion()
    model.train()
    criterion.train()
    totals, size = None, 0
    for sample in step.samples:
        model.load_state_dict(step.before)
        gradients, sample_size = sam_gradients(model, criterion, sample)
        totals = gradients if totals is None else [t + g for t, g in zip(totals, gradients)]
        size += sample_size
    totals = [t / size for t in totals]
    norm = torch.sqrt(sum(t.square().sum() for t in totals))
    clip = min(1.0, clip_norm / float(norm + 1e-6)) if clip_norm else 1.0
    model.load_state_dict(step.before)
    with torch.no_grad():
        for w, t in zip(trained_parameters(model), totals):
            w.sub_(lr * clip * t)
    return model.state_dict()


def assert_as_by_hand(steps, **kwargs):
    for step in steps:
        by_hand = sam_step_by_hand(step, **kwargs)
        assert any((step.after[key] != step.before[key]).any() for key in by_hand)
        for key, weight in trained(by_hand).items():
            torch.testing.assert_close(step.after[key], weight, rtol=1e-4, atol=2e-6)


def test_plain(fairseq_train, steps):
    fairseq_train(SGD)
    assert_as_by_hand(steps)


def test_accumulation_sums_over_micro_batches(fairseq_train, steps):
    fairseq_train(SGD, "--update-freq 4")
    assert [len(step.samples) for step in steps] == [4, 2, 4]
    assert_as_by_hand(steps)


def test_equal_micro_batches_accumulate_to_one(fairseq_train, steps, tmp_path, preprocess):
    for language in ("de", "en"):
        (tmp_path / f"train.{language}").write_text("w1 w2 w3 w4\n" * 16)
    text, data = tmp_path / "train", tmp_path / "data"
    preprocess("-s de -t en --trainpref", text, "--validpref", text, "--destdir", data)
    task = (data, TRANSLATION, "--batch-size 4")
    once = fairseq_train(SGD, "--max-update 1", task=task)
    fourfold = fairseq_train(SGD, "--max-update 1 --update-freq 4", task=task)
    assert [len(step.samples) for step in steps] == [1, 4]
    assert_as_by_hand(steps)
    for key, weight in once.weights().items():
        torch.testing.assert_close(fourfold.weights()[key], weight, rtol=1e-5, atol=1e-7)


def test_clip_norm_clips_the_sharpness_aware_gradient(fairseq_train, steps):
    run = fairseq_train(SGD, "--clip-norm 0.5 --update-freq 2")
    assert all(norm > 0.5 for norm in run.values("gnorm"))
    assert_as_by_hand(steps, clip_norm=0.5)


def test_sentence_avg(fairseq_train, steps):
    fairseq_train(SGD, "--sentence-avg --lr 0.05")
    assert_as_by_hand(steps, lr=0.05)


def test_perturbation_is_independent_of_what_was_accumulated(fairseq_train, steps):
    """The norm logged for a micro-batch is rho, however many there are."""
    run = fairseq_train(SGD, "--update-freq 3")
    assert run.values("perturbation_norm") == pytest.approx([RHO] * 3, rel=1e-3)


@pytest.mark.parametrize("method", ["sam", "ga_sam"])
def test_checkpointed_activations_change_nothing(fairseq_train, method):
    flags = f"--optimizer {method} --sam-rho 0.01 --sam-steps 2 --max-update 5"
    fairseq_train(flags, "--checkpoint-activations").assert_same_training(fairseq_train(flags))


def test_ema_averages_unperturbed_weights(fairseq_train, steps):
    run = fairseq_train(
        "--optimizer ga_sam --sam-rho 0.05 --max-update 4 --store-ema --ema-decay 0.5"
    )
    average = steps[0].after  # fairseq makes the average's model when it first needs it
    for step in steps[1:]:
        average = {key: 0.5 * average[key] + 0.5 * step.after[key] for key in average}
    stored = trained(run.checkpoint()["extra_state"]["ema"])
    assert len(stored) > 20
    for key, value in stored.items():
        torch.testing.assert_close(value, average[key])


def test_excluded_parameters_are_not_perturbed(fairseq_train, monkeypatch):
    from fairseq_sam.perturbation import PerturbedWeights

    moved = set()
    ascend = PerturbedWeights.ascend

    def watched(self, gradients, *args, **kwargs):
        moved.update(id(w) for w, g in zip(self.weights, gradients) if g is not None)
        ascend(self, gradients, *args, **kwargs)

    monkeypatch.setattr(PerturbedWeights, "ascend", watched)
    run = fairseq_train("--optimizer sam --max-update 2 --sam-exclude 'embed_tokens|layer_norm'")
    assert "--sam-exclude leaves" in run.output
    kept = [key for key in run.weights() if not ("embed_tokens" in key or "layer_norm" in key)]
    assert len(moved) == len(kept)


def test_validation_sees_unperturbed_weights(fairseq_train, corpus, capsys):
    """Valid losses in training are those that fairseq-validate computes from the checkpoint."""
    from fairseq_cli.validate import cli_main

    run = fairseq_train(
        "--optimizer ga_sam --sam-rho 0.1 --max-epoch 1 --save-interval 1 --max-update 6",
        validate=True,
    )
    log = run_in_process(
        cli_main,
        split(
            corpus,
            "--task translation --cpu --log-format json --batch-size 8 "
            "--required-batch-size-multiple 1 --path",
            run.save_dir / "checkpoint_last.pt",
        ),
    )
    # The command sets up logging to the standard output anew.
    again = parse_log(Run(run.save_dir), log + capsys.readouterr().out.splitlines())
    assert again.records["valid"][-1]["valid_loss"] == run.records["valid"][-1]["valid_loss"]
    assert not any("perturbation" in k or "sharpness" in k for k in run.records["valid"][-1])
