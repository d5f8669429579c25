"""Whatever goes wrong at whatever point of a step, the weights are those of before, bit for bit.

So are buffers, attributes and gradients, nothing stays patched, and training goes on as if nothing
had happened. At a learning rate of 0, where any change is a fault.
"""

import logging
import random
import warnings

import pytest

import fairseq_sam

fairseq_sam.register()

from tests.end_to_end.faulty_training import (  # noqa: E402  registers what it makes
    ERRORS,
    METHODS,
    PRECISIONS,
    VALUES,
    Fault,
    FaultyTraining,
    faulty_ascent,
    make_data,
)

SETUPS = [(method, precision) for method in METHODS for precision in PRECISIONS]
FEW = [
    ("sam", "fp32"),
    ("ga_sam", "fp16"),
    ("delta_sam_draft", "bf16"),
    ("functional_sam_half", "fp16"),
    ("momentum_sam", "bf16"),
    ("mirror_bert", "memory_efficient_bf16"),
]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make_data(tmp_path_factory.mktemp("faults"))


@pytest.fixture(autouse=True)
def quiet():
    logging.disable(logging.CRITICAL)
    with faulty_ascent(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
    logging.disable(logging.NOTSET)


def fault_somewhere(points, rng):
    """Draws a fault; two in three raise, and at points where no numbers pass all do."""
    at = rng.randrange(len(points))
    if points[at] and rng.random() < 1 / 3:
        return Fault(at, value=rng.choice(VALUES))
    return Fault(at, error=rng.choice(ERRORS))


def try_faults(data, method, precision, count):
    rng, training = random.Random(f"{method} {precision}"), FaultyTraining(data, method, precision)
    for number in range(count):
        training.assert_survives(fault_somewhere(training.points, rng))
        if number % 3 == 0:
            training.assert_trains_on()
    training.assert_trains_on()


@pytest.mark.parametrize(("method", "precision"), FEW)
def test_a_few_faults(data, method, precision):
    try_faults(data, method, precision, 8)


@pytest.mark.slow
@pytest.mark.parametrize(("method", "precision"), SETUPS)
def test_many_faults(data, method, precision):
    try_faults(data, method, precision, 26)
