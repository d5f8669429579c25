"""What a run tells of its perturbations, and where it shows."""

import math

import pytest
import torch

NUMBERS = ("sharpness", "perturbation_norm", "perturbation_skipped", "perturbation_on")
OURS = (*NUMBERS, "perturbation_realised")


def test_json_logs_of_intervals_and_epochs(fairseq_train):
    run = fairseq_train("--optimizer ga_sam --sam-rho 0.05 --max-epoch 2")
    assert len(run.records["train_inner"]) == 12
    assert len(run.records["train"]) == 2
    for tag in ("train_inner", "train"):
        for key in NUMBERS:
            assert all(math.isfinite(value) for value in run.values(key, tag))
        assert set(run.values("perturbation_on", tag)) == {1.0}
        assert not any("realised" in key for record in run.records[tag] for key in record)


def test_an_epoch_averages_its_updates(fairseq_train):
    run = fairseq_train("--optimizer sam --max-epoch 1 --sam-interval 2")
    on = [record for record in run.records["train_inner"] if record["perturbation_on"] == "1"]
    assert len(on) == 3
    norms = [float(record["perturbation_norm"]) for record in on]
    assert run.values("perturbation_norm", "train") == pytest.approx([sum(norms) / 3], abs=1e-4)
    weights = [float(record["wpb"]) for record in on]
    sharpness = [float(record["sharpness"]) for record in on]
    mean = sum(w * s for w, s in zip(weights, sharpness)) / sum(weights)
    assert run.values("sharpness", "train") == pytest.approx([mean], abs=2e-4)
    assert run.values("perturbation_on", "train") == [0.5]


def test_intervals_sum_over_accumulated_micro_batches(fairseq_train):
    run = fairseq_train("--optimizer sam --max-epoch 1 --update-freq 3 --log-interval 2")
    assert [record["num_updates"] for record in run.records["train_inner"]] == ["2"]
    assert run.values("perturbation_norm") == pytest.approx([0.05], abs=1e-4)


def losses_of_passes(monkeypatch, criterion_class):
    """The summed losses and sample sizes that the criterion returns, pass by pass."""
    passes, forward = [], criterion_class.forward

    def watched(self, model, sample, reduce=True):
        loss, sample_size, logging_output = forward(self, model, sample, reduce)
        passes.append((float(loss.detach()), sample_size, float(logging_output["loss"])))
        return loss, sample_size, logging_output

    monkeypatch.setattr(criterion_class, "forward", watched)
    return passes


@pytest.mark.parametrize(
    "flags",
    [
        "--criterion cross_entropy",
        "--criterion label_smoothed_cross_entropy --label-smoothing 0.1",
        "--criterion cross_entropy --sentence-avg --lr 0.001",
        "--criterion cross_entropy --update-freq 3",
    ],
)
def test_sharpness_is_perturbed_minus_clean_loss_in_the_unit_of_loss(
    fairseq_train, monkeypatch, flags
):
    from fairseq.criterions import CRITERION_REGISTRY

    passes = losses_of_passes(monkeypatch, CRITERION_REGISTRY[flags.split()[1]])
    run = fairseq_train("--optimizer sam --sam-rho 0.3 --max-update 1", flags)
    clean, perturbed = passes[0::2], passes[1::2]
    size = sum(sample_size for _, sample_size, _ in clean)
    bits = [sum(loss for loss, _, _ in some) / size / math.log(2) for some in (clean, perturbed)]
    assert run.values("loss") == pytest.approx([bits[0]], abs=1e-3)  # the clean pass's
    assert run.values("sharpness") == pytest.approx([bits[1] - bits[0]], abs=1e-3)
    assert run.values("sharpness")[0] > 0.01


def test_the_criterions_own_numbers_are_the_clean_pass(fairseq_train):
    flags = "--criterion label_smoothed_cross_entropy --label-smoothing 0.1 --report-accuracy"
    adam = fairseq_train("--optimizer adam --max-update 1", flags).records["train_inner"][0]
    run = fairseq_train("--optimizer ga_sam --sam-rho 0.1 --sam-steps 2 --max-update 1", flags)
    for key in ("loss", "nll_loss", "ppl", "accuracy", "total", "n_correct", "wpb", "bsz"):
        assert run.records["train_inner"][0].get(key) == adam.get(key), key
    assert "accuracy" in adam


def test_validation_logs_none_of_it(fairseq_train):
    run = fairseq_train("--optimizer ga_sam --max-epoch 1", validate=True)
    keys = {key for record in run.records["valid"] for key in record}
    assert "valid_loss" in keys
    assert not any(name in key for key in keys for name in OURS)


def test_half_precision_weights_log_the_share_realised(fairseq_train):
    run = fairseq_train("--optimizer sam --sam-rho 0.5 --bf16 --max-update 3")
    assert all(0.2 < share < 2 for share in run.values("perturbation_realised"))


def test_tensorboard(fairseq_train, tmp_path, monkeypatch):
    pytest.importorskip("tensorboardX")
    from fairseq.logging import progress_bar

    monkeypatch.setattr(progress_bar, "_tensorboard_writers", {})
    fairseq_train("--optimizer sam --max-epoch 1 --tensorboard-logdir", str(tmp_path / "board"))
    for writer in progress_bar._tensorboard_writers.values():
        writer.close()
    for part in ("train_inner", "train"):
        events = b"".join(f.read_bytes() for f in (tmp_path / "board" / part).iterdir())
        for key in NUMBERS:
            assert key.encode() in events, (part, key)


def test_the_progress_bar_shows_them(fairseq_train):
    run = fairseq_train("--optimizer sam --max-update 2 --log-format simple")
    lines = [line for line in run.output.splitlines() if "| train_inner |" in line]
    assert len(lines) == 2
    for line in lines:
        assert all(f"{key}=" in line for key in NUMBERS)


def test_the_start_of_the_run_says_what_was_chosen(fairseq_train):
    run = fairseq_train("--optimizer ga_sam --sam-rho 0.25 --sam-steps 2 --max-update 1")
    chosen = [
        line for line in run.output.splitlines() if "| fairseq_sam.training.optimizers |" in line
    ]
    assert len(chosen) == 1
    for part in ("ga_sam", "rho 0.25", "linf", "gradient-strength", "layer", "2 step", "adam"):
        assert part in chosen[0]


def test_a_small_radius_is_not_logged_as_zero(fairseq_train):
    """rho defaults to 1e-5 in Layer-SAM: four decimals would show nothing of the norm."""
    run = fairseq_train("--optimizer sam --sam-rho 1e-5 --max-update 2")
    assert run.values("perturbation_norm") == pytest.approx([1e-5] * 2, rel=0.01)


def test_numbers_stay_on_the_device(fairseq_train, monkeypatch):
    """Nothing is turned into a Python number for the logs while a batch is under way."""
    from fairseq_sam.training import metrics

    kept = []
    describe = metrics.describe_on
    monkeypatch.setattr(metrics, "describe_on", lambda o: kept.append(describe(o)) or kept[-1])
    fairseq_train("--optimizer sam --max-update 1")
    for key in ("sam_loss", "sam_norm", "sam_skipped"):
        assert torch.is_tensor(kept[0][key]), key


LAYERS = ("encoder.embed_tokens", "encoder.layers.0", "decoder.layers.0")
"""Some of those that the small Transformer has."""


@pytest.mark.parametrize(
    "flags",
    [
        "--optimizer sam --sam-rho 0 --clip-norm 0",
        "--optimizer ga_sam --sam-rho 0.01 --clip-norm 0.1 --update-freq 2",
        "--optimizer sam --fp16 --fp16-no-flatten-grads --fp16-init-scale 4 --clip-norm 0.1",
        "--optimizer sam --memory-efficient-bf16",
        "--optimizer sam --bf16",
        "--optimizer sam --amp",
    ],
)
def test_the_layers_add_up_to_the_gradient(fairseq_train, flags):
    run = fairseq_train(flags, "--max-update 3 --sam-log-gradients 1")
    for record in run.records["train_inner"]:
        norms = {key[6:]: float(value) for key, value in record.items() if key[:6] == "gnorm_"}
        assert {*LAYERS} < {*norms}
        total = math.sqrt(sum(norm**2 for norm in norms.values()))
        assert total == pytest.approx(float(record["gnorm"]), rel=1e-2, abs=1e-3)


def test_gradients_by_layer_are_those_of_the_loss(fairseq_train, monkeypatch):
    """Of every other update only; training is as ever."""
    from fairseq.optim.adam import FairseqAdam

    seen, step = [], FairseqAdam.step

    def watched(self, *args, **kwargs):
        gradients = [p.grad.double() for p in self.params if p.grad is not None]
        seen.append(math.sqrt(sum(float((g**2).sum()) for g in gradients)))
        return step(self, *args, **kwargs)

    monkeypatch.setattr(FairseqAdam, "step", watched)
    flags = "--optimizer sam --max-update 5 --log-interval 1"
    logged = fairseq_train(flags, "--sam-log-gradients 2")
    measured = [
        [float(value) for key, value in record.items() if key[:6] == "gnorm_" and value]
        for record in logged.records["train_inner"]
    ]
    assert [bool(norms) for norms in measured] == [True, False, True, False, True]
    assert math.hypot(*measured[0]) == pytest.approx(seen[0], rel=1e-3)
    logged.assert_same_training(fairseq_train(flags))
