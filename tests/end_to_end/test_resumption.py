"""A run stopped in mid-epoch and continued is the run that was not stopped, with every method."""

import pytest

OPTIONS = "--update-freq 2 --sam-start-update 3 --sam-interval 2"
PER_SENTENCE = "--criterion per_sentence_cross_entropy"
R_DROP = "--criterion r_drop_cross_entropy"

METHODS = {
    "sam": "sam --sam-rho 0.1",
    "asam": "asam --sam-rho 0.1",
    "layer_sam": "layer_sam --sam-rho 1e-3",
    "ga_sam": "ga_sam --sam-rho 1e-3 --sam-steps 2",
    "multi_step_defense": "multi_step_defense --sam-rho 1e-3 --sam-steps 3",
    "delta_sam": f"delta_sam --sam-rho 0.1 {PER_SENTENCE}",
    "delta_sam_draft": f"delta_sam --delta-sam-variant draft --sam-rho 0.1 {PER_SENTENCE}",
    "per_instance_sam": "per_instance_sam --sam-rho 0.1",
    "functional_sam": "functional_sam --sam-rho 5%",
    "functional_sam, a half": "functional_sam --sam-rho 5% --sam-ascent-fraction 0.5",
    "r_drop_delta_sam": f"delta_sam --sam-rho 0.1 --sam-risk mean {R_DROP}",
}

BASES = {
    "sgd": "--base-optimizer sgd --momentum 0.9",
    "nag": "--base-optimizer nag --momentum 0.9",
    "adafactor": "--base-optimizer adafactor",
    "adagrad": "--base-optimizer adagrad",
    "adadelta": "--base-optimizer adadelta",
    "adamax": "--base-optimizer adamax",
}

EVERY = pytest.mark.slow


def few(names, *fast):
    return [pytest.param(name, marks=[] if name in fast else [EVERY]) for name in names]


def assert_resumes(fairseq_train, flags):
    """An epoch has three updates; the run stops within the second, where the gate has opened."""
    stopped = fairseq_train(flags, "--max-update 4")
    again = fairseq_train(flags, "--max-update 9", save_dir=stopped.save_dir)
    whole = fairseq_train(flags, "--max-update 9")
    again.assert_same_training(whole)
    # Updates 3, 5 and 7 are closed, 4, 6 and 8 open.
    assert whole.values("perturbation_on") == [0.0] * 4 + [1.0, 0.0, 1.0, 0.0, 1.0]
    for key in ("loss", "perturbation_norm", "sharpness", "gnorm"):
        ours = [record[key] for record in again.records["train_inner"] if key in record]
        theirs = [record[key] for record in whole.records["train_inner"] if key in record]
        assert ours == theirs[-len(ours) :], key


@pytest.mark.parametrize("method", few(METHODS, "ga_sam", "delta_sam"))
def test_methods(fairseq_train, method):
    assert_resumes(fairseq_train, f"--optimizer {METHODS[method]} {OPTIONS}")


@pytest.mark.parametrize("base", few(BASES, "adafactor"))
def test_base_optimizers(fairseq_train, base):
    assert_resumes(fairseq_train, f"--optimizer {METHODS['sam']} {BASES[base]} {OPTIONS}")


@pytest.mark.slow
def test_half_precision(fairseq_train):
    flags = f"--optimizer {METHODS['ga_sam']} {OPTIONS} --memory-efficient-bf16"
    assert_resumes(fairseq_train, flags)


@pytest.mark.parametrize("method", few(METHODS, "sam"))
def test_the_base_optimizer_up_to_the_gate_is_what_the_gate_does(fairseq_train, method):
    """Adam alone for four updates, then the method, is the method with a gate at update four."""
    flags, _, criterion = METHODS[method].partition(" --criterion")
    criterion = criterion and f"--criterion {criterion}"
    both = f"--update-freq 2 {criterion}"
    adam = fairseq_train("--optimizer adam --max-update 4", both)
    continued = fairseq_train(f"--optimizer {flags} --max-update 8", both, save_dir=adam.save_dir)
    gated = fairseq_train(f"--optimizer {flags} --sam-start-update 4 --max-update 8", both)
    continued.assert_same_training(gated)
    # … and back.
    back = fairseq_train("--optimizer adam --max-update 10", both, save_dir=gated.save_dir)
    assert back.updates() == 10
