"""State in less usual places: a radius of nothing is Adam, or the run is refused with one line."""

from typing import Any, List

import pytest

from tests.yardstick import (
    made_data,
    odd_components,  # noqa: F401  registers them
)
from tests.yardstick.cases import SMALL, TRANSLATION
from tests.yardstick.made_cases import model, task
from tests.yardstick.runs import Case, differences, refusal, sharpness_is_zero, train

MODELS = [
    "own_torch_generator",
    "own_numpy_generator",
    "own_python_generator",
    "iterator",
    "dictionary_counter",
    "queue",
    "list_memory",
    "deep_in_containers",
    "plain_object",
    "tensor_attribute",
    "slots",
    "writes_later",
    "momentum_encoder",
    "sets_data",
    "lazy_batch_norm",
    "expanded_buffer",
    "growing_buffer",
    "buffer_made_in_forward",
    "parametrized",
    "pruned",
    "scripted",
    "unusual_attributes",
    "tricky_attributes",
    "shared_dictionary",
    "wrapped_part",
]
TASKS = ["calls_itself", "remembers", "own_optimizer", "dictionary_class", "named_tuple"]

CASES: List[Case] = [
    *(model(name) for name in MODELS),
    *(task(name) for name in TASKS),
    Case(
        "updates_late",
        f"--task yardstick_updates_late -s de -t en --arch yardstick_counts_and_updates {SMALL}",
        made_data.text_pairs,
    ),
    Case(
        "excluded_weight_written",
        f"{TRANSLATION} --arch yardstick_writes_weights {SMALL}",
        made_data.text_pairs,
    ),
]

NOT_SEEN = {
    "model_iterator": "an iterator cannot be rewound",
    "model_plain_object": "what lies in an object of a module's own",
    "model_slots": "what lies in slots",
    "model_scripted": "attributes of a compiled module",
    "model_writes_later": "a write past autograd that begins late is seen in the 8th, 64th, … step",
    "task_own_optimizer": "a task that trains a module of its own trains it in each pass",
}
"""What the README says that replaying does not cover."""

EXCLUDED = {"excluded_weight_written": "--sam-exclude layer.weight"}


def with_what_is_not_seen(cases: List[Case]) -> List[Any]:
    marks = {
        name: pytest.mark.xfail(strict=True, reason=reason) for name, reason in NOT_SEEN.items()
    }
    return [
        pytest.param(case, id=case.name, marks=[marks[case.name]] if case.name in marks else [])
        for case in cases
    ]


@pytest.mark.parametrize("case", with_what_is_not_seen(CASES))
def test_a_radius_of_nothing_is_adam(case: Case, adam_and_data):
    _, data = adam_and_data(case)
    adam = train(case, data, "--optimizer adam", epochs=3)
    with refusal(allowed=True):
        exclude = EXCLUDED.get(case.name, "")
        ours = train(case, data, f"--optimizer sam --sam-rho 1e-12 {exclude}", epochs=3)
        gaps = differences(ours, adam)
        assert not gaps, "\n".join(gaps)
        sharpness, is_zero = ours.values("sharpness"), sharpness_is_zero(ours)
        assert is_zero, sharpness
