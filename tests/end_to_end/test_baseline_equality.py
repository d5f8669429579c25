"""Where nothing is perturbed, a run is the base optimizer's, bit for bit."""

import pytest

FIFTY = "--max-update 50 --keep-last-epochs 99 --save-interval 1"

UNPERTURBED = {
    "rho": "--sam-rho 0",
    "epoch": "--sam-start-epoch 100",
    "update": "--sam-start-update 50",
    "interval": "--sam-start-update 1 --sam-interval 50",
}


@pytest.fixture(scope="module")
def adam(shared_fairseq_train):
    """50 updates, with dropout, of plain fairseq; checkpoints of each epoch of 6 updates."""
    return shared_fairseq_train("--optimizer adam --weight-decay 0.1 --clip-norm 1", FIFTY)


@pytest.mark.parametrize("gate", list(UNPERTURBED))
def test_unperturbed_is_adam(fairseq_train, adam, gate):
    run = fairseq_train(
        "--optimizer ga_sam --weight-decay 0.1 --clip-norm 1", FIFTY, UNPERTURBED[gate]
    )
    assert run.updates() == 50
    assert set(run.values("perturbation_on")) == {0.0}
    run.assert_same_training(adam)


@pytest.mark.parametrize("method", ["sam", "asam", "layer_sam", "multi_step_defense"])
def test_rho_zero_is_adam_for_every_method(fairseq_train, adam, method):
    run = fairseq_train(f"--optimizer {method} --sam-rho 0 --weight-decay 0.1 --clip-norm 1", FIFTY)
    run.assert_same_training(adam)


def test_epochs_before_the_start_are_adams_and_later_ones_are_not(fairseq_train, adam):
    run = fairseq_train(
        "--optimizer ga_sam --weight-decay 0.1 --clip-norm 1 --sam-rho 0.05 --sam-start-epoch 4",
        FIFTY,
    )
    for epoch in (1, 2, 3):
        run.assert_same_training(adam, f"checkpoint{epoch}.pt")
    assert run.differs_from(adam, "checkpoint4.pt")
    assert run.values("perturbation_on") == [0.0] * 18 + [1.0] * 32


def test_updates_before_the_start_are_adams(fairseq_train, adam):
    run = fairseq_train(
        "--optimizer sam --weight-decay 0.1 --clip-norm 1 --sam-start-update 6", FIFTY
    )
    run.assert_same_training(adam, "checkpoint1.pt")
    assert run.differs_from(adam, "checkpoint2.pt")
    assert run.values("perturbation_on") == [0.0] * 6 + [1.0] * 44


def test_interval_perturbs_every_nth_update(fairseq_train):
    run = fairseq_train("--optimizer sam --sam-interval 3 --max-update 7")
    assert run.values("perturbation_on") == [1.0, 0, 0, 1, 0, 0, 1]
    # fairseq 0.12.2 shows what an interval has no value for as null.
    has_sharpness = [record.get("sharpness") is not None for record in run.records["train_inner"]]
    assert has_sharpness == [True, False, False, True, False, False, True]


def test_with_accumulation_and_checkpointed_activations(fairseq_train):
    flags = "--max-update 12 --update-freq 3 --checkpoint-activations"
    run = fairseq_train("--optimizer ga_sam --sam-rho 0", flags)
    run.assert_same_training(fairseq_train("--optimizer adam", flags))


def test_a_fairseq_without_the_plugin_trains_the_same(fairseq_train_alone, adam):
    """Nothing that the plugin does to fairseq changes an ordinary run."""
    run = fairseq_train_alone(
        "--optimizer adam --weight-decay 0.1 --clip-norm 1", FIFTY, user_dir=False
    )
    assert run.status == 0, run.output
    run.assert_same_training(adam)


def test_user_dir_with_another_optimizer_trains_and_logs_the_same(fairseq_train_alone, adam):
    run = fairseq_train_alone("--optimizer adam --weight-decay 0.1 --clip-norm 1", FIFTY)
    run.assert_same_training(adam)
    for tag in ("train_inner", "train"):
        assert [set(record) for record in run.records[tag]] == [
            set(record) for record in adam.records[tag]
        ]
        assert not any("perturbation" in key for record in run.records[tag] for key in record)
