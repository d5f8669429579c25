"""Every optimizer of fairseq that a CPU runs can be the base, with its own flags."""

import pytest

from tests.fairseq_runs import Run

# A flag or two of each, and what they become in the torch optimizer's parameter group.
BASES = {
    "adam": ("--adam-betas '(0.5, 0.6)' --weight-decay 0.1", {"betas": [0.5, 0.6]}),
    "nag": ("--momentum 0.5 --weight-decay 0.1", {"momentum": 0.5, "weight_decay": 0.1}),
    "sgd": ("--momentum 0.5 --weight-decay 0.1", {"momentum": 0.5, "weight_decay": 0.1}),
    "adagrad": ("--weight-decay 0.1", {"weight_decay": 0.1}),
    "adadelta": ("--adadelta-rho 0.5 --adadelta-eps 0.01", {"rho": 0.5, "eps": 0.01}),
    "adamax": ("--adamax-betas '(0.5, 0.6)' --adamax-eps 0.01", {"betas": (0.5, 0.6), "eps": 0.01}),
    "adafactor": (
        "--adafactor-eps '(1e-20, 1e-2)' --decay-rate -0.5 --beta1 0.3 --clip-threshold 2",
        {"eps": (1e-20, 1e-2), "decay_rate": -0.5, "beta1": 0.3, "clip_threshold": 2.0},
    ),
}
NOT_ON_CPU = {
    "lamb": "needs apex",
    "cpu_adam": "needs DeepSpeed",
    "composite": "has no command line; see test_hydra.py",
}


def names():
    import fairseq  # noqa: F401

    import fairseq_sam

    fairseq_sam.register()
    from fairseq_sam.training.base_optimizers import base_names

    return base_names()


def parameter_group(run: Run):
    (group,) = run.checkpoint()["last_optimizer_state"]["param_groups"]
    return group


def test_nothing_that_fairseq_registers_is_forgotten():
    assert set(names()) == {*BASES, *NOT_ON_CPU}


@pytest.mark.parametrize("name", sorted(NOT_ON_CPU))
def test_unavailable(name):
    pytest.skip(NOT_ON_CPU[name])


@pytest.mark.parametrize("name", list(BASES))
def test_flags_reach_the_base_optimizer(fairseq_train, name):
    flags, expected = BASES[name]
    run = fairseq_train(f"--optimizer ga_sam --base-optimizer {name} --max-update 3", flags)
    group = parameter_group(run)
    for key, value in expected.items():
        assert type(value)(group[key]) == value, key
    assert all(weight.isfinite().all() for weight in run.weights().values())
    assert run.values("perturbation_on") == [1.0] * 3


@pytest.mark.parametrize("name", list(BASES))
def test_rho_zero_is_the_base_optimizer(fairseq_train, name):
    flags = f"--max-update 8 {BASES[name][0]}"
    run = fairseq_train(f"--optimizer sam --sam-rho 0 --base-optimizer {name}", flags)
    run.assert_same_training(fairseq_train(f"--optimizer {name}", flags))


@pytest.mark.parametrize("name", list(BASES))
def test_defaults_are_the_base_optimizers_own(fairseq_train, name):
    run = fairseq_train(f"--optimizer sam --sam-rho 0 --base-optimizer {name} --max-update 2")
    run.assert_same_training(fairseq_train(f"--optimizer {name} --max-update 2"))


@pytest.mark.parametrize("name", ["sgd", "adafactor"])
def test_perturbed_training_differs(fairseq_train, name):
    flags = f"--max-update 3 {BASES[name][0]}"
    run = fairseq_train(f"--optimizer sam --sam-rho 0.5 --base-optimizer {name}", flags)
    assert run.differs_from(fairseq_train(f"--optimizer {name}", flags))


@pytest.mark.parametrize("name", list(BASES))
def test_flags_of_other_optimizers_are_refused(fairseq_train, capsys, name):
    foreign = {"adam": "--momentum 0.5"}.get(name, "--adam-eps 1e-6")
    with pytest.raises(SystemExit):
        fairseq_train(f"--optimizer ga_sam --base-optimizer {name} --max-update 1", foreign)
    assert foreign.split()[0] in capsys.readouterr().err


@pytest.mark.parametrize("order", ["before", "after", "with ="])
def test_flags_may_come_in_any_order(fairseq_train, order):
    flags = {
        "before": "--momentum 0.5 --base-optimizer sgd --optimizer sam",
        "after": "--optimizer sam --base-optimizer sgd --momentum 0.5",
        "with =": "--optimizer=sam --momentum=0.5 --base-optimizer=sgd",
    }[order]
    group = parameter_group(fairseq_train(flags, "--max-update 1"))
    assert group["momentum"] == 0.5


def test_several_learning_rates(fairseq_train):
    """--lr is a list with one entry an epoch."""
    flags = "--lr 0.01,0.001 --force-anneal 5 --max-epoch 2 --save-interval 2"
    run = fairseq_train("--optimizer sam --sam-rho 0", flags)
    run.assert_same_training(fairseq_train("--optimizer adam", flags))
    assert run.values("lr")[-1] == 0.001


@pytest.mark.parametrize("name", list(BASES))
def test_added_to_a_whole_command_its_optimizer_stays(fairseq_train, name):
    command = f"--optimizer {name} {BASES[name][0]} --max-update 3"
    run = fairseq_train(command, "--optimizer sam --sam-rho 0.5")
    run.assert_same_training(
        fairseq_train(command, f"--optimizer sam --sam-rho 0.5 --base-optimizer {name}")
    )
