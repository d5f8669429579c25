"""Half precision and mixed precision, as far as a CPU runs them."""

import math

import pytest
import torch

from fairseq_sam.perturbation import METHODS

FP16 = "--fp16 --fp16-no-flatten-grads --fp16-init-scale 1"
PRECISIONS = {
    "fp16": FP16,
    "fp16 accumulated": f"{FP16} --update-freq 2",
    "memory-efficient fp16": "--fp16 --memory-efficient-fp16 --fp16-init-scale 1",
    "bf16": "--bf16",
    "memory-efficient bf16": "--memory-efficient-bf16",
    "amp": "--amp",
}
HALF = {name: flags for name, flags in PRECISIONS.items() if name != "amp"}
RADII = {"layer_sam": 0.05, "asam": 0.5}


def assert_trained(run, updates):
    assert run.updates() == updates
    for key in ("loss", "gnorm", "sharpness", "perturbation_norm"):
        assert all(math.isfinite(value) for value in run.values(key)), key
    assert all(weight.isfinite().all() for weight in run.weights().values())


@pytest.mark.parametrize("precision", list(PRECISIONS))
@pytest.mark.parametrize("method", ["sam", "ga_sam"])
def test_trains(fairseq_train, precision, method):
    run = fairseq_train(
        f"--optimizer {method} --sam-rho 0.05 --max-update 5", PRECISIONS[precision]
    )
    assert_trained(run, 5)
    assert set(run.values("perturbation_skipped")) == {0.0}
    assert all(norm > 0 for norm in run.values("perturbation_norm"))
    if precision in HALF:
        assert all(0.3 < share < 1.5 for share in run.values("perturbation_realised"))


@pytest.mark.slow
@pytest.mark.parametrize("precision", list(PRECISIONS))
@pytest.mark.parametrize("method", sorted(METHODS))
def test_every_method_trains(fairseq_train, precision, method):
    per_sentence = "per_sentence_" if METHODS[method].needs_sentences else ""
    run = fairseq_train(
        f"--optimizer {method} --sam-rho {RADII.get(method, 0.05)} --sam-steps 2 --max-update 5",
        f"--criterion {per_sentence}cross_entropy",
        PRECISIONS[precision],
    )
    assert_trained(run, 5)


@pytest.mark.parametrize("precision", list(PRECISIONS))
def test_rho_zero_is_the_base_optimizer(fairseq_train, precision):
    flags = f"--max-update 5 {PRECISIONS[precision]}"
    run = fairseq_train("--optimizer ga_sam --sam-rho 0", flags)
    run.assert_same_training(fairseq_train("--optimizer adam", flags))


@pytest.mark.parametrize("precision", list(HALF))
def test_weights_come_back_bit_for_bit(fairseq_train, monkeypatch, precision):
    """A learning rate of 0 leaves the weights where they were."""
    run = fairseq_train(
        "--optimizer sam --sam-rho 0.5 --lr 0 --max-update 3 --stop-min-lr=-1", HALF[precision]
    )
    start = fairseq_train(
        "--optimizer adam --lr 0 --max-update 1 --stop-min-lr=-1", HALF[precision]
    )
    assert not run.differs_from(start)


@pytest.mark.parametrize("scale", [1, 16, 1024])
def test_the_loss_scale_does_not_change_the_perturbation(fairseq_train, scale):
    """Its norm is the radius, and scales of GA-SAM's kind see unscaled gradients."""
    flags = f"--fp16 --fp16-no-flatten-grads --fp16-init-scale {scale} --max-update 2"
    sam = fairseq_train("--optimizer sam --sam-rho 0.05", flags)
    assert sam.values("perturbation_norm") == pytest.approx([0.05] * 2, rel=0.02)
    once = fairseq_train(
        "--optimizer layer_sam --sam-rho 0.01 --fp16 --fp16-no-flatten-grads --max-update 1",
        "--fp16-init-scale 1",
    )
    scaled = fairseq_train(
        "--optimizer layer_sam --sam-rho 0.01 --max-update 1 --fp16 --fp16-no-flatten-grads",
        f"--fp16-init-scale {scale}",
    )
    assert scaled.values("perturbation_norm") == pytest.approx(
        once.values("perturbation_norm"), rel=0.02
    )


@pytest.mark.parametrize("method", ["sam", "ga_sam"])
def test_half_precision_is_close_to_full(fairseq_train, method):
    """The update of the float32 masters is the full-precision one up to rounding."""
    flags = f"--optimizer {method} --sam-rho 0.05 --dropout 0 --max-update 1 --base-optimizer sgd"
    full = fairseq_train(flags).weights()
    half = fairseq_train(flags, FP16, "--fp16-init-scale 128").weights()
    for key, weight in full.items():
        torch.testing.assert_close(half[key].float(), weight, rtol=2e-2, atol=2e-3)


def test_an_overflow_of_an_inner_pass_is_counted_and_survived(fairseq_train, monkeypatch):
    """fp16 gradients that overflow in the inner pass alone leave batch and run unharmed."""
    from fairseq_sam.perturbation import PerturbedWeights

    ascend = PerturbedWeights.ascend

    def overflowing(self, gradients, *args, **kwargs):
        gradients = [None if g is None else g.clone() for g in gradients]
        next(g for g in gradients if g is not None).view(-1)[0] = float("inf")
        ascend(self, gradients, *args, **kwargs)

    flags = f"{FP16} --max-update 3"
    adam = fairseq_train("--optimizer adam", flags)
    monkeypatch.setattr(PerturbedWeights, "ascend", overflowing)
    for method in ("sam", "ga_sam"):
        run = fairseq_train(f"--optimizer {method}", flags)
        assert run.values("perturbation_skipped") == [1.0] * 3
        run.assert_same_training(adam)
