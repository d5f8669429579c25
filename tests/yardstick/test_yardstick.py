"""With a radius of nothing, training is Adam's, whatever fairseq is asked to train.

One property over everything that fairseq registers: ``--optimizer sam --sam-rho 1e-12`` gives the
losses, gradient norms, weights, buffers and random states of ``--optimizer adam``, and a sharpness
of 0. And a radius that matters does something: nothing trains unperturbed without a word. The same
holds for methods that go another way, but for what they refuse in one line.
"""

import pytest

from tests.yardstick.cases import CASES
from tests.yardstick.made_cases import MADE_CASES, REFUSED
from tests.yardstick.runs import Case, differences, refusal, sharpness_is_zero, train

NOTHING = "--optimizer sam --sam-rho 1e-12"
MUCH = "--optimizer sam --sam-rho 0.5"

OTHER_WAYS = {
    "functional": ("--optimizer functional_sam", "argument --sam-risk: functional cannot be had"),
    "momentum": ("--optimizer momentum_sam", None),
    "friendly": ("--optimizer friendly_sam", None),
    "a part": ("--optimizer sam --sam-ascent-fraction 0.5", "argument --sam-ascent-fraction"),
}
"""Methods whose steps are not those of SAM: their flags, and what they refuse."""


def named(cases):
    marks = {True: [pytest.mark.slow], False: []}
    return [pytest.param(case, id=case.name, marks=marks[case.slow]) for case in cases]


# What fairseq says of its own examples, wherever their criterion is called from.
@pytest.mark.filterwarnings("ignore:Criterions should implement the reduce_metrics API")
@pytest.mark.parametrize("case", named([*CASES, *MADE_CASES]))
def test_a_radius_of_nothing_is_adam(case: Case, adam_and_data):
    adam, data = adam_and_data(case)
    with refusal(case.may_refuse):
        ours = train(case, data, NOTHING)
        gaps = differences(ours, adam)
        assert not gaps, "\n".join(gaps)
        sharpness, is_zero = ours.values("sharpness"), sharpness_is_zero(ours)
        assert is_zero, sharpness
        first = train(case, data, MUCH, epochs=1).weights
        moved = [key for key, weight in first.items() if not weight.equal(adam.first_weights[key])]
        assert moved, "a radius that matters changes nothing"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Criterions should implement the reduce_metrics API")
@pytest.mark.parametrize("way", OTHER_WAYS)
@pytest.mark.parametrize("case", named([*CASES, *MADE_CASES]))
def test_other_ways_are_adam_too(case: Case, way: str, adam_and_data):
    adam, data = adam_and_data(case)
    flags, refused = OTHER_WAYS[way]
    try:
        with refusal(case.may_refuse):
            ours = train(case, data, f"{flags} --sam-rho 1e-12")
    except SystemExit as stopped:
        if refused is not None and refused in str(stopped):
            pytest.skip(str(stopped))
        raise
    gaps = differences(ours, adam)
    assert not gaps, "\n".join(gaps)
    assert sharpness_is_zero(ours) or not ours.values("sharpness")
    assert any(norm > 0 for norm in ours.values("perturbation_norm"))  # however little


BY_SENTENCE = {
    "wav2vec2": "what wav2vec logs cannot be summed",
    "online_backtranslation": "OnlineBackTranslationTask makes its batch in the step",
}
"""What is not perturbed sentence by sentence, and what is said of it."""


@pytest.mark.parametrize("case", named(case for case in CASES if case.name in BY_SENTENCE))
def test_what_cannot_be_perturbed_by_sentence_is_refused(case: Case, adam_and_data):
    _, data = adam_and_data(case)
    with pytest.raises(SystemExit, match=BY_SENTENCE[case.name]):
        train(case, data, "--optimizer per_instance_sam --sam-rho 0.5")


@pytest.mark.parametrize("case", named(REFUSED))
def test_what_cannot_be_perturbed_is_refused(case: Case, adam_and_data):
    _, data = adam_and_data(case)
    with pytest.raises(SystemExit) as refused:
        train(case, data, MUCH)
    message = str(refused.value)
    assert message.startswith("error: ")
    assert "\n" not in message
