"""When a run is perturbed, and how far."""

from argparse import Namespace
from typing import Any

import pytest

from fairseq_sam.perturbation import method_settings
from fairseq_sam.training.configuration import Gate, SharpnessAwareConfig
from fairseq_sam.training.flags import _gate_from, warn_of_no_effect


def gate(**given: Any) -> Gate:
    flags = {
        "sam_start_epoch": 1,
        "sam_start_update": 0,
        "sam_start_fraction": None,
        "sam_interval": 1,
        "sam_ramp_updates": 0,
    }
    return _gate_from(Namespace(**{**flags, **given}))


@pytest.mark.parametrize(
    ("share", "run", "start"),
    [
        (0.7, {"max_update": 1000}, (1, 700)),
        (0.7, {"max_update": 1000, "max_epoch": 10}, (8, 700)),
        (0.5, {"max_update": 1000, "max_epoch": 1}, (1, 500)),
        (0.5, {"max_update": 5}, (1, 3)),
        (0.7, {"max_update": 0, "max_epoch": 10}, (8, 0)),
        (2 / 3, {"max_epoch": 30}, (21, 0)),
        (0.0, {"max_epoch": 30}, (1, 0)),
        (1.0, {"max_update": 30}, (1, 30)),
    ],
)
def test_a_share_of_the_run(share: float, run: Any, start: Any):
    found = gate(sam_start_fraction=share, **run)
    assert (found.start_epoch, found.start_update) == start


def test_of_two_limits_the_one_that_ends_the_run_counts():
    found = gate(sam_start_fraction=0.5, max_update=100_000, max_epoch=4)
    assert not found.is_open(epoch=2, update=200)
    assert found.is_open(epoch=3, update=201)  # the epochs end first
    assert found.is_open(epoch=2, update=50_000)  # the updates do


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"sam_start_fraction": 0.5}, "start_fraction is 0.5: it needs the end of the run"),
        ({"sam_start_fraction": 0.5, "sam_start_epoch": 2, "max_epoch": 9}, "takes the place"),
        ({"sam_start_fraction": 0.5, "sam_start_update": 2, "max_epoch": 9}, "takes the place"),
        ({"sam_ramp_updates": 9, "sam_start_epoch": 2}, "ramp_updates is 9"),
        ({"sam_ramp_updates": 9, "sam_start_fraction": 0.5, "max_epoch": 4}, "ramp_updates is 9"),
        (
            {"sam_ramp_updates": 9, "sam_start_fraction": 0.5, "max_epoch": 4, "max_update": 100},
            "ramp_updates is 9",
        ),
    ],
)
def test_what_cannot_be_together(given: Any, told: str):
    with pytest.raises(ValueError, match=told):
        gate(**given)


NEVER = "no update of this run will be perturbed"


@pytest.mark.parametrize(
    ("given", "run", "told"),
    [
        ({"sam_start_update": 1000}, {"max_update": 1000}, NEVER),
        ({"sam_start_update": 999}, {"max_update": 1000}, None),
        ({"sam_start_fraction": 1.0}, {"max_update": 1000}, NEVER),
        ({"sam_start_fraction": 1.0}, {"max_update": 1000, "max_epoch": 3}, NEVER),
        ({"sam_start_fraction": 0.9}, {"max_update": 1000, "max_epoch": 3}, None),
        ({"sam_start_epoch": 4}, {"max_epoch": 3}, NEVER),
        ({"sam_start_epoch": 3}, {"max_epoch": 3}, None),
        ({"sam_start_fraction": 0.3}, {"max_epoch": 3}, "is perturbed from its first update on"),
        (
            {"sam_start_fraction": 0.5},
            {"max_epoch": 1, "max_update": 1000},
            "less than one epoch: the run is perturbed from update 500 on, if it comes that far",
        ),
        ({"sam_start_fraction": 0.0}, {"max_epoch": 3}, None),
    ],
)
def test_a_start_that_is_another_than_one_may_think_is_told(caplog, given, run, told):
    config = SharpnessAwareConfig("sam", method_settings("sam"), gate(**given, **run))
    warn_of_no_effect(config, Namespace(**{"sam_start_fraction": None, **given, **run}))
    messages = [record.getMessage() for record in caplog.records]
    assert len(messages) == (told is not None)
    assert all(str(told) in message for message in messages)


def test_the_radius_grows_linearly_from_the_first_perturbed_update():
    ramp = gate(sam_start_update=100, sam_ramp_updates=50)
    assert [ramp.reach(update) for update in (100, 124, 149, 150)] == [0.02, 0.5, 1.0, 1.0]
    assert gate().reach(0) == 1.0
