"""Names, flags, and criterions of the user's own."""

import pathlib
import re
from typing import Any, Dict, Iterator

import pytest
import torch
from fairseq.criterions import (
    CRITERION_DATACLASS_REGISTRY,
    CRITERION_REGISTRY,
    FairseqCriterion,
    register_criterion,
)
from fairseq.criterions.cross_entropy import CrossEntropyCriterion
from fairseq.criterions.label_smoothed_cross_entropy import LabelSmoothedCrossEntropyCriterion

from fairseq_sam.criterions import (
    PerSentenceCriterion,
    PerSentenceLosses,
    per_sentence_name_of,
    register_per_sentence,
)

STOCK = ["cross_entropy", "label_smoothed_cross_entropy", "sentence_prediction", "masked_lm"]
GUIDE = pathlib.Path(__file__).parents[2] / "docs" / "criterions.md"


@pytest.fixture
def registry() -> Iterator[Dict[str, Any]]:
    """fairseq's registry, restored afterwards."""
    from fairseq_sam.criterions import registration

    tables = [CRITERION_REGISTRY, CRITERION_DATACLASS_REGISTRY, registration._stand_ins]
    saved = [dict(table) for table in tables]
    yield CRITERION_REGISTRY
    for table, contents in zip(tables, saved):
        table.clear()
        table.update(contents)


@pytest.mark.parametrize("name", STOCK)
def test_stand_in_takes_the_flags_and_the_forward_of_the_stock_criterion(name: str) -> None:
    ours, stock = CRITERION_REGISTRY["per_sentence_" + name], CRITERION_REGISTRY[name]
    assert ours is not stock
    assert issubclass(ours, stock)
    assert issubclass(ours, PerSentenceCriterion)
    assert (
        CRITERION_DATACLASS_REGISTRY["per_sentence_" + name] is CRITERION_DATACLASS_REGISTRY[name]
    )
    for method in ("forward", "reduce_metrics", "logging_outputs_can_be_summed", "__init__"):
        assert getattr(ours, method).__qualname__ == getattr(stock, method).__qualname__
    # fairseq compares this name when it resumes from a checkpoint.
    assert ours.__name__ == stock.__name__


def test_names() -> None:
    for name in STOCK:
        assert per_sentence_name_of(name) == "per_sentence_" + name
        assert per_sentence_name_of("per_sentence_" + name) == "per_sentence_" + name
    assert per_sentence_name_of("ctc") is None


def test_name_of_a_criterion(make_case: Any, make_criterion: Any) -> None:
    task = make_case("translation").task
    for name in ("cross_entropy", "per_sentence_cross_entropy"):
        assert per_sentence_name_of(make_criterion(name, task)) == "per_sentence_cross_entropy"
    assert per_sentence_name_of(FairseqCriterion(task)) is None


def test_unknown_or_unrelated_criterions_are_refused(registry: Dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="no criterion 'nothing'"):
        register_per_sentence("nothing")
    with pytest.raises(ValueError, match="must derive from"):
        register_per_sentence("cross_entropy")(
            type("Unrelated", (PerSentenceCriterion, LabelSmoothedCrossEntropyCriterion), {})
        )


def test_default_needs_compute_loss(make_case: Any) -> None:
    case = make_case("translation")

    class Bare(PerSentenceCriterion):
        def forward(self, model: Any, sample: Any, reduce: bool = True) -> Any:
            model(**sample["net_input"])
            return torch.zeros(()), 1, {}

    with pytest.raises(NotImplementedError, match="Bare must define unreduced_losses"):
        Bare(case.task).per_sentence_losses(case.model, case.batch())


def test_two_calls_of_the_model_are_refused(make_case: Any) -> None:
    case = make_case("translation")

    class Twice(PerSentenceCriterion, CrossEntropyCriterion):
        def forward(self, model: Any, sample: Any, reduce: bool = True) -> Any:
            super().forward(model, sample, reduce)
            return super().forward(model, sample, reduce)

    with pytest.raises(RuntimeError, match="called the model 2 times"):
        Twice(case.task, False).per_sentence_losses(case.model, case.batch())


def test_losses_only_follows_an_overridden_method(make_case: Any) -> None:
    case = make_case("translation")

    class Own(PerSentenceCriterion, CrossEntropyCriterion):
        def per_sentence_losses(
            self, model: Any, sample: Any, dtype: Any = None
        ) -> PerSentenceLosses:
            return PerSentenceLosses(torch.arange(4.0), 4, {})

    assert Own(case.task, False).losses_only(case.model, {}).tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("miscounted", [1, 9])
def test_sentences_are_counted_by_their_numbers(make_case: Any, miscounted: int) -> None:
    """``nsentences`` of fairseq's denoising is how many words the first one has."""
    case = make_case("translation")
    criterion = CRITERION_REGISTRY["per_sentence_cross_entropy"](case.task, False)
    sample = case.batch()
    expected = criterion.losses_only(case.model, sample)
    sample.update(nsentences=miscounted, id=torch.arange(len(expected)))
    assert torch.equal(criterion.losses_only(case.model, sample), expected)


def test_wrong_number_of_rows_is_refused(make_case: Any) -> None:
    case = make_case("translation")

    class TimeMajor(PerSentenceCriterion, CrossEntropyCriterion):
        def unreduced_losses(self, model: Any, net_output: Any, sample: Any) -> torch.Tensor:
            return torch.zeros(9)

    with pytest.raises(ValueError, match="returned 9 rows for 4 sentences"):
        TimeMajor(case.task, False).per_sentence_losses(case.model, case.batch())


def test_recorded_model_hands_attributes_on(make_case: Any, make_criterion: Any) -> None:
    case = make_case("translation")

    class Marking(PerSentenceCriterion, CrossEntropyCriterion):
        def forward(self, model: Any, sample: Any, reduce: bool = True) -> Any:
            model.mark = model.training
            return super().forward(model, sample, reduce)

    output = Marking(case.task, False).per_sentence_losses(case.model, case.batch())
    assert isinstance(output, PerSentenceLosses)
    assert case.model.mark is False


def test_examples_of_the_guide(registry: Any, make_case: Any, make_criterion: Any) -> None:
    """Runs the Python blocks of docs/criterions.md in order, and holds them to their promise."""
    namespace: Dict[str, Any] = {
        "register_criterion": register_criterion,
        "__name__": "guide",
    }
    blocks = re.findall(r"```python\n(.*?)```", GUIDE.read_text(), re.DOTALL)
    classes, usage = blocks[:2], blocks[2:]
    for block in classes:
        exec(block, namespace)
    case = make_case("translation")
    sample = case.batch()
    for name in ("focal_loss", "length_normalized_cross_entropy"):
        stock, ours = (make_criterion(p + name, case.task) for p in ("", "per_sentence_"))
        losses = ours.per_sentence_losses(case.model, sample).losses
        expected = stock(case.model, sample)[0]
        torch.testing.assert_close(losses.sum().float(), expected.float())
        alone = [ours.per_sentence_losses(case.model, case.collate([i])).losses for i in range(4)]
        torch.testing.assert_close(losses, torch.cat(alone))
        assert per_sentence_name_of(name) == "per_sentence_" + name
    namespace.update(criterion=ours, model=case.model, sample=sample)
    assert usage
    for block in usage:
        exec(block, namespace)
