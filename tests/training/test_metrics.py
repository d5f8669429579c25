"""What the perturbation's numbers in the logging outputs add up to."""

import pytest
import torch
from fairseq.criterions.cross_entropy import CrossEntropyCriterion
from fairseq.logging import metrics as fairseq_metrics

from fairseq_sam.perturbation import ForwardPass, Outcome
from fairseq_sam.training import metrics

CRITERION = CrossEntropyCriterion(task=None, sentence_avg=False)


def logging_output(loss=8.0, ntokens=4):
    return {
        "loss": torch.tensor(loss),
        "ntokens": ntokens,
        "nsentences": 2,
        "sample_size": ntokens,
    }


def outcome(clean=8.0, perturbed=10.0, ntokens=4, norm=0.5, realised=None, finite=True):
    def a_pass(loss):
        return ForwardPass(torch.tensor(loss), ntokens, logging_output(loss, ntokens))

    return Outcome(
        clean=a_pass(clean),
        perturbed=a_pass(perturbed),
        norm=torch.tensor(norm),
        rho=torch.tensor(0.05),
        realised=None if realised is None else torch.tensor(realised),
        finite=torch.tensor(finite),
    )


def described(*args, **kwargs):
    return metrics.describe_on([outcome(*args, **kwargs)])


def logged(outputs):
    with fairseq_metrics.aggregate(new_root=True) as aggregator:
        metrics.log(outputs, CRITERION)
    return {name: float(value) for name, value in aggregator.get_smoothed_values().items()}


def test_an_update_without_a_target_does_not_count():
    """Of masked tokens there may be none: the loss is 0 / 0, and fairseq gives it no weight."""
    with fairseq_metrics.aggregate(new_root=True) as aggregator:
        for outputs in (
            [described(8.0, 10.0)],
            [described(0.0, 0.0, torch.tensor(0.0))],
            [described(8.0, 10.0)],
        ):
            metrics.log(outputs, CRITERION)
        found = aggregator.get_smoothed_values()["sharpness"]
    assert float(found) == pytest.approx(logged([described(8.0, 10.0)])["sharpness"])


def test_nothing_without_a_sharpness_aware_run():
    assert logged([logging_output(), logging_output()]) == {}


def test_before_the_gate_opens_only_that():
    assert logged([metrics.describe_off(logging_output())]) == {"perturbation_on": 0.0}


def test_sharpness_is_in_the_criterions_own_unit():
    """fairseq's cross entropy logs bits per token."""
    outputs = [described(8.0, 10.0), described(3.0, 4.0, 2)]
    bits = (14.0 - 11.0) / 6 / torch.log(torch.tensor(2.0)).item()
    assert logged(outputs)["sharpness"] == pytest.approx(bits, abs=1e-3)


def test_means_over_micro_batches():
    outputs = [
        described(norm=0.25, realised=0.75),
        described(norm=0.75, realised=0.25, finite=False),
    ]
    values = logged(outputs)
    assert values["perturbation_norm"] == 0.5
    assert values["perturbation_realised"] == 0.5
    assert values["perturbation_skipped"] == 0.5
    assert values["perturbation_on"] == 1.0


def test_full_precision_has_no_realised_share():
    assert "perturbation_realised" not in logged([described()])


def test_small_numbers_are_not_rounded_to_nothing():
    assert logged([described(norm=1.25e-6)])["perturbation_norm"] == (
        pytest.approx(1.25e-6, rel=0.01)
    )


def test_the_criterion_gets_back_what_it_made():
    theirs = logging_output()
    for ours in (metrics.describe_off(theirs), described()):
        assert metrics.without_ours([ours]) == [theirs]
    assert metrics.without_ours([described()]) == [outcome().clean.extra]


def test_the_logging_output_is_that_of_the_clean_pass():
    assert described(8.0, 10.0)["loss"] == 8.0


def test_sentences_perturbed_on_their_own_add_up():
    both = metrics.describe_on([outcome(8.0, 10.0, 4, norm=0.25), outcome(3.0, 4.0, 2, norm=0.75)])
    assert both["loss"] == 11.0
    assert both["ntokens"] == 6
    assert both["sam_loss"] == 14.0
    values = logged([both])
    assert values["perturbation_norm"] == 0.5
    bits = (14.0 - 11.0) / 6 / torch.log(torch.tensor(2.0)).item()
    assert values["sharpness"] == pytest.approx(bits, abs=1e-3)


def test_nested_and_textual_logs_of_sentences():
    each = [
        outcome(8.0, 10.0)._replace(clean=ForwardPass(8.0, 4, log))
        for log in (
            {"loss": 1.0, "by_head": {"first": 2}, "text": "a b", "missing later": 5},
            {"loss": 2.0, "by_head": {"first": 3}, "text": "c"},
        )
    ]
    both = metrics.without_ours([metrics.describe_on(each)])[0]
    assert both == {"loss": 3.0, "by_head": {"first": 5}, "text": "a b", "missing later": 5}


@pytest.mark.parametrize(("cosine", "warnings"), [(-0.01, 1), (0.01, 0)])
def test_a_direction_that_goes_downhill_is_told_once(caplog, cosine, warnings):
    check = metrics.UphillCheck(interval=10)
    for _ in range(50):
        check.note(outcome()._replace(cosine=torch.tensor(cosine)))
    assert len([r for r in caplog.records if "goes downhill" in r.message]) == warnings


def test_without_a_pass_at_w_the_loss_is_that_of_the_last_pass():
    described = metrics.describe_on([outcome(perturbed=3.0)._replace(clean=None)])
    assert "sam_loss" not in described
    assert described["loss"] == 3.0


def added_up(outputs):
    """As fairseq does where there are several workers."""
    keys = {key for output in outputs for key in output}
    return [{key: sum(output.get(key, 0) for output in outputs) for key in keys}]


@pytest.mark.parametrize("across", [list, added_up])
def test_where_some_only_have_a_pass_at_w_there_is_no_sharpness(across):
    outputs = [described(), metrics.describe_on([outcome()._replace(clean=None)])]
    assert "sharpness" not in logged(across(outputs))
    assert "sharpness" in logged(across([described(), described()]))


@pytest.mark.parametrize("across", [list, added_up])
def test_uniform_weights_are_a_share_of_the_batches_that_had_weights(across):
    weighed = [outcome()._replace(uniform=torch.tensor(uniform)) for uniform in (True, False)]
    outputs = [metrics.describe_on([each]) for each in (*weighed, outcome(), outcome())]
    assert logged(across(outputs))["perturbation_uniform"] == 0.5
