"""Fisher matrices against dense float64 ones, and against the Hessian of the model's own labels."""

import itertools
from typing import Any, Callable, Dict, List, Tuple

import numpy as np
import pytest
import torch
from fairseq.criterions import CRITERION_DATACLASS_REGISTRY, CRITERION_REGISTRY
from torch import Tensor, nn

from fairseq_sam.analysis import fisher
from fairseq_sam.analysis.measured_spectrum import fisher_spectrum
from fairseq_sam.criterions.drawn_labels import DRAWN, DrawnLabels
from fairseq_sam.criterions.float64 import preserve_float64
from tests.analysis.test_curvature import TextCNN, labelled
from tests.criterions.conftest import CASES, LENGTHS

Losses = List[Callable[[], Tensor]]


def text_cnn() -> Tuple[TextCNN, List[Tensor], Losses]:
    torch.manual_seed(0)
    model = TextCNN().double().eval()
    sample = labelled(7)

    def of(index: int) -> Callable[[], Tensor]:
        part = slice(index, index + 1)
        return lambda: nn.functional.cross_entropy(
            model(sample["tokens"][part]), sample["target"][part]
        )

    return model, list(model.parameters()), [of(index) for index in range(7)]


def rows(weights: List[Tensor], losses: Losses) -> np.ndarray:
    found = []
    for loss in losses:
        gradients = torch.autograd.grad(loss(), weights, allow_unused=True)
        parts = [torch.zeros_like(w) if g is None else g for w, g in zip(weights, gradients)]
        found.append(torch.cat([part.flatten() for part in parts]).numpy())
    return np.stack(found)


@pytest.mark.parametrize("held", [None, 1, 2, 3, 7, 100])
def test_gram_matrix_whatever_is_held(held: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fisher, "_CHUNK", 2)
    _, weights, losses = text_cnn()
    calls: List[int] = []
    gram = fisher.gram_matrix(weights, losses, held, lambda: calls.append(1))
    matrix = rows(weights, losses)
    assert np.abs(gram - matrix @ matrix.T).max() < 1e-13
    assert len(calls) == fisher.num_gradients(7, min(held or 7, 7))


def test_spectrum_against_the_dense_matrix() -> None:
    _, weights, losses = text_cnn()
    matrix = rows(weights, losses)
    dense = matrix.T @ matrix / 5.0
    found = fisher_spectrum(weights, losses, 5.0, 10, with_density=True)
    assert found.eigenvalues == pytest.approx(np.linalg.eigvalsh(dense)[::-1][:10], abs=1e-12)
    assert found.trace == pytest.approx((dense.trace(), 0.0))
    assert found.density is not None
    assert found.density.weights.sum() == pytest.approx(1)
    size = len(dense)
    assert found.density.weights @ found.density.nodes * size == pytest.approx(dense.trace())


def test_draws_are_averaged_and_their_error_is_given() -> None:
    _, weights, losses = text_cnn()
    first, second = losses[:3], losses[3:6]
    found = fisher_spectrum(weights, first + second, 3.0, 4, num_draws=2, drawn=True)
    traces = [(rows(weights, part) ** 2).sum() / 3.0 for part in (first, second)]
    assert found.trace.mean == pytest.approx(np.mean(traces))
    assert found.trace.standard_error == pytest.approx(abs(traces[0] - traces[1]) / 2)
    matrix = rows(weights, first + second)
    wanted = np.linalg.eigvalsh(matrix.T @ matrix / 6.0)[::-1][:4]
    assert found.eigenvalues == pytest.approx(wanted)


def test_more_than_there_are() -> None:
    _, weights, losses = text_cnn()
    with pytest.raises(ValueError, match="eigenvalues of a matrix"):
        fisher_spectrum(weights, losses, 1.0, 1000)


def test_infinite_gradients_are_an_error() -> None:
    model, weights, losses = text_cnn()
    with torch.no_grad():
        model.out.weight[0, 0] = float("inf")
    with pytest.raises(FloatingPointError, match="sentence is not finite"):
        fisher.gram_matrix(weights, losses)


def drawing_for(case_name: str, criterion_name: str, **flags: Any) -> Tuple[Any, DrawnLabels]:
    torch.manual_seed(0)
    case = CASES[case_name]()
    case.model.double().eval()
    for weight in case.model.parameters():
        weight.data.add_(0.1 * torch.randn_like(weight))
    cfg = CRITERION_DATACLASS_REGISTRY[criterion_name]()
    settings: Dict[str, Any] = {"sentence_avg": False, "tpu": False, "label_smoothing": 0.1}
    for flag, value in {**settings, **flags}.items():
        if hasattr(cfg, flag):
            setattr(cfg, flag, value)
    criterion = CRITERION_REGISTRY[criterion_name].build_criterion(cfg, case.task)
    return case, DrawnLabels(criterion)


KINDS = [
    ("translation", "per_sentence_label_smoothed_cross_entropy"),
    ("lstm_lm", "per_sentence_cross_entropy"),
    ("transformer_lm", "per_sentence_cross_entropy"),
    ("classification", "per_sentence_sentence_prediction"),
    ("masked_lm", "per_sentence_masked_lm"),
    ("masked_lm_nothing", "per_sentence_masked_lm"),
    ("masked_lm_everything", "per_sentence_masked_lm"),
]


@pytest.mark.parametrize(("case_name", "criterion_name"), KINDS)
def test_labels_of_the_data_give_the_criterions_own_loss(
    case_name: str, criterion_name: str
) -> None:
    """With the data's labels in place of drawn ones, −log p is the loss without smoothing."""
    case, drawing = drawing_for(case_name, criterion_name, label_smoothing=0.0)
    sample = case.batch()
    own = drawing.criterion.losses_only(case.model, sample).sum()
    ours = drawing.losses_only(case.model, {**sample, DRAWN: sample["target"]})
    assert ours.item() == pytest.approx(own.item(), rel=1e-12)


@pytest.mark.parametrize(("case_name", "criterion_name"), KINDS)
def test_draws_follow_the_models_distribution(case_name: str, criterion_name: str) -> None:
    case, drawing = drawing_for(case_name, criterion_name)
    sample = case.collate([0])
    generator = torch.Generator().manual_seed(0)
    draws = torch.stack([drawing.draw(case.model, sample, generator) for _ in range(400)])
    assert draws.shape[1:] == sample["target"].shape
    with torch.no_grad():
        lprobs, predicted = drawing._predictions(case.model, sample)
    chosen = draws.flatten(1)[:, predicted.flatten()]
    assert chosen.shape[1] == len(lprobs)
    if not len(lprobs):
        return
    classes = lprobs.size(1)
    counts = torch.stack([torch.bincount(column, minlength=classes) for column in chosen.t()])
    probabilities = lprobs.exp()
    errors = (probabilities * (1 - probabilities) / 400).sqrt()
    assert ((counts / 400 - probabilities).abs() < 5 * errors).all()


def test_same_seed_same_labels() -> None:
    case, drawing = drawing_for(*KINDS[0])
    sample = case.batch()
    one, two, three = (
        drawing.draw(case.model, sample, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)
    )
    assert torch.equal(one, two)
    assert not torch.equal(one, three)


def test_smoothing_plays_no_role() -> None:
    losses = []
    for smoothing in (0.0, 0.3):
        case, drawing = drawing_for(*KINDS[0], label_smoothing=smoothing)
        sample = case.batch()
        losses.append(drawing.losses_only(case.model, {**sample, DRAWN: sample["target"]}))
    assert torch.equal(*losses)


def test_expected_outer_product_of_a_sentence_is_that_of_its_labels() -> None:
    """Two masked tokens: all pairs of labels with their probabilities, against token by token."""
    case, drawing = drawing_for("masked_lm", "per_sentence_masked_lm")
    sample = case.collate([0])
    weight = case.model.encoder.lm_head.bias  # a few of the weights are enough
    with preserve_float64(case.model):
        lprobs = drawing._predictions(case.model, sample)[0]
        slopes = [
            torch.stack([torch.autograd.grad(lp, weight, retain_graph=True)[0] for lp in row])
            for row in lprobs
        ]
    probabilities = lprobs.detach().exp()
    assert len(lprobs) == 2
    classes = lprobs.size(1)
    pairs = sum(
        probabilities[0, a] * probabilities[1, b]
        * torch.outer(slopes[0][a] + slopes[1][b], slopes[0][a] + slopes[1][b])
        for a, b in itertools.product(range(classes), repeat=2)
    )  # fmt: skip
    single = sum(
        probabilities[t, a] * torch.outer(slopes[t][a], slopes[t][a])
        for t, a in itertools.product(range(2), range(classes))
    )
    assert torch.allclose(pairs, single, atol=1e-14)
    assert LENGTHS[0] == sample["target"].size(1) - 1


def test_regression_has_no_labels_to_draw() -> None:
    with pytest.raises(ValueError, match="regression"):
        drawing_for("regression", "per_sentence_sentence_prediction", regression_target=True)
