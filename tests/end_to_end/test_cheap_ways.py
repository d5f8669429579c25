"""Ways of less than two passes: momentum, an ascent on a part of the batch, a late start."""

import pytest

from fairseq_sam.perturbation import METHODS
from tests.end_to_end.test_methods import criterion

PLAIN = "--dropout 0.0 --max-update 5"


def test_momentum_reads_and_does_not_write(fairseq_train):
    """A radius of nothing is Adam, bit for bit; before there is momentum nothing is perturbed."""
    adam = fairseq_train(f"--optimizer adam {PLAIN}")
    fairseq_train(f"--optimizer momentum_sam --sam-rho 1e-30 {PLAIN}").assert_same_training(adam)
    much = fairseq_train(f"--optimizer momentum_sam --sam-rho 0.5 {PLAIN}")
    assert much.values("perturbation_norm") == [0.0] + [0.5] * 4
    assert much.values("loss")[:2] != adam.values("loss")[:2]
    assert much.values("loss")[0] == adam.values("loss")[0]
    cosines = [record.get("perturbation_cosine") for record in much.records["train_inner"]]
    assert cosines[0] is None
    assert all(-1 <= float(cosine) <= 1 for cosine in cosines[1:])


@pytest.mark.parametrize("base", ["nag --momentum 0.9", "sgd --momentum 0.9", "adamax"])
def test_momentum_of_other_optimizers(fairseq_train, base):
    run = fairseq_train(f"--optimizer momentum_sam --base-optimizer {base} {PLAIN}")
    assert run.values("perturbation_norm")[1:] == pytest.approx([0.5] * 4, rel=1e-5)


@pytest.mark.parametrize("base", ["sgd", "adagrad", "adadelta"])
def test_optimizers_without_momentum_are_refused(fairseq_train, base):
    with pytest.raises(SystemExit, match=f"--base-optimizer: {base} keeps no momentum"):
        fairseq_train(f"--optimizer momentum_sam --base-optimizer {base} {PLAIN}")


@pytest.mark.parametrize("base", ["adam", "adafactor"])
@pytest.mark.parametrize("flags", ["", "--bf16"])
def test_scale_of_the_base_optimizer(fairseq_train, base, flags):
    """SAM until there is an update to remember; its own from the second update on."""
    flags = f"--optimizer sam --sam-rho 5% --base-optimizer {base} {flags} {PLAIN}"
    sam = fairseq_train(flags)
    ours = fairseq_train(f"{flags} --sam-scale adam")
    assert ours.values("rho")[0] == sam.values("rho")[0]
    assert all(a != b for a, b in zip(ours.values("rho")[1:], sam.values("rho")[1:]))
    assert all(sharpness > 0 for sharpness in ours.values("sharpness"))


def test_scale_of_the_base_optimizer_reads_and_does_not_write(fairseq_train):
    adam = fairseq_train(f"--optimizer adam {PLAIN}")
    ours = fairseq_train(f"--optimizer sam --sam-scale adam --sam-rho 1e-30 {PLAIN}")
    ours.assert_same_training(adam)


def test_optimizers_without_second_moments_are_refused(fairseq_train):
    with pytest.raises(SystemExit, match="--base-optimizer: adagrad keeps no second moments"):
        fairseq_train(f"--optimizer sam --sam-scale adam --base-optimizer adagrad {PLAIN}")


@pytest.mark.parametrize("flags", ["--fp16", "--bf16", "--fp16 --memory-efficient-fp16"])
def test_momentum_in_half_precision(fairseq_train, flags):
    extra = "--fp16-no-flatten-grads --fp16-init-scale 4" if "--fp16" in flags else ""
    run = fairseq_train(f"--optimizer momentum_sam {PLAIN}", flags, extra)
    assert all(norm > 0.3 for norm in run.values("perturbation_norm")[1:])


@pytest.mark.parametrize("method", sorted(m for m, s in METHODS.items() if s.needs_pass))
def test_the_whole_batch_as_a_part_is_the_method_itself(fairseq_train, method):
    flags = f"--optimizer {method} --sam-rho 5% --max-update 3 {criterion(method, 'cross_entropy')}"
    ours = fairseq_train(flags, "--sam-ascent-fraction 1")
    ours.assert_same_training(fairseq_train(flags))


@pytest.mark.parametrize(
    "method", ["sam", "asam", "delta_sam", "functional_sam", "vasso", "friendly_sam"]
)
def test_a_quarter_trains_and_resumes(fairseq_train, method):
    """The sentences are drawn by seed, update and worker, so that a resumed run draws the same."""
    state = method in ("vasso", "friendly_sam")  # what these remember is not in checkpoints
    flags = f"--optimizer {method} --sam-rho 5% --sam-ascent-fraction 0.25"
    flags += f" {criterion(method, 'cross_entropy')}"
    stopped = fairseq_train(flags, "--max-update 3")
    again = fairseq_train(flags, "--max-update 6", save_dir=stopped.save_dir)
    whole = fairseq_train(flags, "--max-update 6")
    if not state:
        again.assert_same_training(whole)
    assert all(rho > 0 for rho in whole.values("rho"))
    assert bool(whole.records["train_inner"][0].get("sharpness")) == (method == "functional_sam")


def test_the_mean_risk_and_a_sentence_each_are_refused(fairseq_train, capsys):
    for method in ("ga_sam", "multi_step_defense", "per_instance_sam"):
        with pytest.raises(SystemExit):
            fairseq_train(f"--optimizer {method} --sam-ascent-fraction 0.5 --max-update 2")
        assert "argument --sam-ascent-fraction: 0.5 is not allowed" in capsys.readouterr().err


def test_a_part_of_the_run(fairseq_train):
    late = fairseq_train("--optimizer sam --sam-start-fraction 0.5 --max-update 6")
    assert late.values("perturbation_on") == [0.0] * 3 + [1.0] * 3
    same = fairseq_train("--optimizer sam --sam-start-update 3 --max-update 6")
    late.assert_same_training(same)


def test_the_radius_grows(fairseq_train):
    run = fairseq_train("--optimizer sam --sam-rho 0.4 --sam-ramp-updates 4 --max-update 6")
    assert run.values("rho") == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.4, 0.4])
    assert run.values("perturbation_norm") == pytest.approx(run.values("rho"), rel=1e-5)


def test_micro_batches_share_an_ascent(fairseq_train):
    flags = "--optimizer sam --sam-rho 5% --update-freq 3 --max-update 4"
    run = fairseq_train(flags, "--sam-ascent-share 0.3")
    assert all(norm > 0 for norm in run.values("perturbation_norm"))
    assert not any("sharpness" in record for record in run.records["train_inner"])
    all_of_them = fairseq_train(flags, "--sam-ascent-share 1")
    all_of_them.assert_same_training(fairseq_train(flags))
    assert run.differs_from(all_of_them)
