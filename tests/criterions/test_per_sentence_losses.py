"""The vectors against fairseq's own losses, and against one sentence at a time."""

import contextlib
from typing import Any, ContextManager, Dict, List, Tuple

import pytest
import torch
import torch.autograd.forward_ad as forward_ad
from fairseq.criterions import CRITERION_DATACLASS_REGISTRY
from fairseq.logging import metrics

from fairseq_sam.criterions.float64 import preserve_float64

SETTINGS: List[Tuple[str, str, Dict[str, Any]]] = [
    ("translation", "cross_entropy", {}),
    ("translation", "cross_entropy", {"sentence_avg": True}),
    ("translation", "label_smoothed_cross_entropy", {}),
    ("translation", "label_smoothed_cross_entropy", {"label_smoothing": 0.1}),
    (
        "translation",
        "label_smoothed_cross_entropy",
        {"label_smoothing": 0.1, "ignore_prefix_size": 3, "report_accuracy": True},
    ),
    (
        "translation",
        "label_smoothed_cross_entropy",
        {"label_smoothing": 0.2, "sentence_avg": True, "report_accuracy": True},
    ),
    ("translation", "label_smoothed_cross_entropy", {"ignore_prefix_size": 8}),
    ("transformer_lm", "cross_entropy", {}),
    ("transformer_lm", "label_smoothed_cross_entropy", {"label_smoothing": 0.1}),
    ("lstm_lm", "cross_entropy", {}),
    ("lstm_lm", "label_smoothed_cross_entropy", {"label_smoothing": 0.1}),
    ("classification", "sentence_prediction", {}),
    ("classification", "sentence_prediction", {"classification_head_name": "my_head"}),
    ("classification", "sentence_prediction", {"report_mcc": True}),
    ("regression", "sentence_prediction", {"regression_target": True}),
    (
        "regression",
        "sentence_prediction",
        {"regression_target": True, "report_pearson_and_spearman": True},
    ),
    ("regression_2", "sentence_prediction", {"regression_target": True}),
    ("masked_lm", "masked_lm", {}),
    ("masked_lm", "masked_lm", {"tpu": True}),
    ("masked_lm_nothing", "masked_lm", {}),
    ("masked_lm_everything", "masked_lm", {}),
]
# A term of the batch, which one sentence at a time would count several times.
BATCH_TERM = [("pruned_classification", "sentence_prediction", {})]


def label(setting: Any) -> str:
    case, criterion, flags = setting
    return "-".join([case, criterion, *(f"{name}={value}" for name, value in flags.items())])


@pytest.fixture(params=SETTINGS + BATCH_TERM, ids=label)
def setting(request: Any) -> Any:
    return request.param


@pytest.fixture
def pair(setting: Any, make_case: Any, make_criterion: Any) -> Any:
    """A case in float64 with the stock criterion and its stand-in."""
    case_name, name, flags = setting
    skip_unknown_flags(name, flags)
    case = make_case(case_name)
    stock = make_criterion(name, case.task, **flags)
    ours = make_criterion("per_sentence_" + name, case.task, **flags)
    return case, stock, ours


def skip_unknown_flags(name: str, flags: Dict[str, Any]) -> None:
    known = CRITERION_DATACLASS_REGISTRY[name]()
    if not all(hasattr(known, flag) for flag in flags):
        pytest.skip("this fairseq has no such flag")


def gradients(model: Any, loss: torch.Tensor) -> List[torch.Tensor]:
    model.zero_grad()
    loss.backward()
    return [p.grad.clone() for p in model.parameters() if p.grad is not None]


def assert_same_logs(actual: Dict[str, Any], expected: Dict[str, Any]) -> None:
    assert list(actual) == list(expected)
    for key, value in expected.items():
        assert type(actual[key]) is type(value)
        if torch.is_tensor(value):
            assert actual[key].dtype == value.dtype
            assert torch.equal(actual[key], value), key
        else:
            assert actual[key] == value, key


def reduced(criterion: Any, logging_outputs: List[Dict[str, Any]]) -> Dict[str, Any]:
    with metrics.aggregate(new_root=True) as aggregator:
        type(criterion).reduce_metrics(logging_outputs)
    return {key: str(value) for key, value in aggregator.get_smoothed_values().items()}


def test_sum_is_the_stock_loss_with_its_gradient(pair: Any) -> None:
    case, stock, ours = pair
    sample = case.batch()
    with preserve_float64(case.model):
        expected_loss, expected_size, expected_logs = stock(case.model, sample)
    actual = ours.per_sentence_losses(case.model, sample)
    assert actual.losses.shape == (4,)
    assert actual.losses.dtype == torch.float64
    assert expected_loss.dtype == torch.float64
    torch.testing.assert_close(actual.losses.sum(), expected_loss, rtol=1e-13, atol=1e-13)
    assert actual.sample_size == expected_size
    assert_same_logs(actual.logging_output, expected_logs)
    if expected_loss.requires_grad:
        expected = gradients(case.model, expected_loss)
        computed = gradients(case.model, actual.losses.sum())
        assert len(computed) == len(expected) > 0
        for a, b in zip(computed, expected):
            torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-12)


def test_forward_and_logs_are_the_stock_ones_to_the_bit(
    setting: Any, make_case: Any, make_criterion: Any
) -> None:
    case_name, name, flags = setting
    skip_unknown_flags(name, flags)
    case = make_case(case_name, torch.float32)
    sample = case.batch()
    stock = make_criterion(name, case.task, **flags)
    ours = make_criterion("per_sentence_" + name, case.task, **flags)
    expected_loss, expected_size, expected_logs = stock(case.model, sample)
    loss, size, logs = ours(case.model, sample)
    vector = ours.per_sentence_losses(case.model, sample)
    assert torch.equal(loss, expected_loss)
    assert size == expected_size == vector.sample_size
    assert_same_logs(logs, expected_logs)
    assert_same_logs(vector.logging_output, expected_logs)
    assert vector.losses.dtype == torch.float32
    assert torch.equal(ours.losses_only(case.model, sample), vector.losses)
    torch.testing.assert_close(vector.losses.sum(), expected_loss, rtol=1e-5, atol=1e-5)
    if expected_size > 0:
        assert reduced(ours, [vector.logging_output] * 2) == reduced(stock, [expected_logs] * 2)
    if loss.requires_grad:
        for a, b in zip(gradients(case.model, loss), gradients(case.model, expected_loss)):
            assert torch.equal(a, b)


@pytest.mark.parametrize("one_setting", SETTINGS, ids=label)
def test_batch_equals_one_sentence_at_a_time(
    one_setting: Any, make_case: Any, make_criterion: Any
) -> None:
    case_name, name, flags = one_setting
    skip_unknown_flags(name, flags)
    case = make_case(case_name)
    ours = make_criterion("per_sentence_" + name, case.task, **flags)
    stock = make_criterion(name, case.task, **flags)
    with torch.no_grad():
        batch = ours.per_sentence_losses(case.model, case.batch()).losses
        with preserve_float64(case.model):
            alone = [stock(case.model, case.collate([i]))[0] for i in range(4)]
        reversed_batch = ours.per_sentence_losses(case.model, case.collate([3, 2, 1, 0])).losses
    torch.testing.assert_close(batch, torch.stack(alone), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(batch, reversed_batch.flip(0), rtol=1e-12, atol=1e-12)


def test_gradient_of_one_loss_is_that_of_its_sentence_alone(
    make_case: Any, make_criterion: Any
) -> None:
    case = make_case("translation")
    ours = make_criterion(
        "per_sentence_label_smoothed_cross_entropy", case.task, label_smoothing=0.1
    )
    for i in range(4):
        in_batch = gradients(
            case.model, ours.per_sentence_losses(case.model, case.batch()).losses[i]
        )
        alone = gradients(
            case.model, ours.per_sentence_losses(case.model, case.collate([i])).losses.sum()
        )
        for a, b in zip(in_batch, alone):
            torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


def test_masked_lm_row_without_masked_tokens_is_zero(make_case: Any, make_criterion: Any) -> None:
    case = make_case("masked_lm")
    losses = make_criterion("per_sentence_masked_lm", case.task).per_sentence_losses(
        case.model, case.batch()
    )[0]
    assert losses[2] == 0
    assert (losses[[0, 1, 3]] > 0).all()


@pytest.mark.parametrize("name", ["cross_entropy", "label_smoothed_cross_entropy"])
def test_adaptive_softmax_as_far_as_the_stock_criterion_goes(
    name: str, make_case: Any, make_criterion: Any
) -> None:
    case = make_case("adaptive_lm")
    flags = {"label_smoothing": 0.1}
    with torch.no_grad(), preserve_float64(case.model):
        expected = make_criterion(name, case.task, **flags)(case.model, case.batch())[0]
        losses = make_criterion("per_sentence_" + name, case.task, **flags).per_sentence_losses(
            case.model, case.batch()
        )[0]
    torch.testing.assert_close(losses.sum(), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize(
    ("case_name", "name"),
    [
        ("translation", "cross_entropy"),
        ("translation", "label_smoothed_cross_entropy"),
        ("classification", "sentence_prediction"),
        ("masked_lm", "masked_lm"),
    ],
)
def test_half_precision_logits_are_reduced_in_float32(
    case_name: str, name: str, dtype: torch.dtype, make_case: Any, make_criterion: Any
) -> None:
    """The exact losses of the rounded logits, not rounded a second time."""
    case = make_case(case_name, torch.float32)
    ours = make_criterion("per_sentence_" + name, case.task, label_smoothing=0.1)
    plain_forward = case.model.forward

    def losses_with_logits_in(*dtypes: torch.dtype) -> torch.Tensor:
        def forward(*args: Any, **kwargs: Any) -> Any:
            logits, *rest = plain_forward(*args, **kwargs)
            for each in dtypes:
                logits = logits.to(each)
            return (logits, *rest)

        case.model.forward = forward
        with torch.no_grad():
            return ours.per_sentence_losses(case.model, case.batch()).losses

    half, exact = losses_with_logits_in(dtype), losses_with_logits_in(dtype, torch.float64)
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, exact.float(), rtol=3e-6, atol=3e-6)


@pytest.mark.parametrize("name", ["cross_entropy", "label_smoothed_cross_entropy"])
def test_half_precision_log_probabilities_are_reduced_in_float32(
    name: str, make_case: Any, make_criterion: Any
) -> None:
    """A model's own get_normalized_probs may put out half precision (an adaptive softmax does)."""
    case = make_case("translation", torch.float32)
    ours = make_criterion("per_sentence_" + name, case.task, label_smoothing=0.1)
    plain = case.model.get_normalized_probs
    case.model.get_normalized_probs = lambda *args, **kwargs: plain(*args, **kwargs).half()
    with torch.no_grad():
        half = ours.per_sentence_losses(case.model, case.batch()).losses
        case.model.get_normalized_probs = lambda *args, **kwargs: (
            plain(*args, **kwargs).half().float()
        )
        exact = ours.per_sentence_losses(case.model, case.batch()).losses
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, exact, rtol=1e-6, atol=1e-6)


def test_autocast(make_case: Any, make_criterion: Any) -> None:
    case = make_case("translation", torch.float32)
    ours = make_criterion("per_sentence_label_smoothed_cross_entropy", case.task)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses, _, logging_output = ours.per_sentence_losses(case.model, case.batch())
    assert losses.dtype == torch.float32
    torch.testing.assert_close(losses.sum(), logging_output["loss"])


def test_dtype_of_the_sums_can_be_chosen(make_case: Any, make_criterion: Any) -> None:
    case = make_case("translation", torch.float32)
    ours = make_criterion("per_sentence_cross_entropy", case.task)
    losses = ours.per_sentence_losses(case.model, case.batch(), dtype=torch.float64).losses
    assert losses.dtype == torch.float64
    tokens = ours.unreduced_losses(
        case.model, case.model(**case.batch()["net_input"]), case.batch()
    )
    assert torch.equal(losses, tokens.double().sum(dim=1))


def test_one_forward_pass_and_no_hooks(make_case: Any, make_criterion: Any) -> None:
    case = make_case("translation")
    ours = make_criterion(
        "per_sentence_label_smoothed_cross_entropy", case.task, report_accuracy=True
    )
    calls: List[str] = []
    case.model.register_forward_hook(lambda *_: calls.append("model"))
    ours.register_forward_hook(lambda *_: calls.append("criterion"))
    ours.per_sentence_losses(case.model, case.batch())
    assert calls == ["model"]
    ours.losses_only(case.model, case.batch())
    assert calls == ["model", "model"]


def test_losses_only_leaves_the_stock_loss_out(
    make_case: Any, make_criterion: Any, monkeypatch: Any
) -> None:
    case = make_case("translation")
    ours = make_criterion("per_sentence_label_smoothed_cross_entropy", case.task)
    expected = ours.per_sentence_losses(case.model, case.batch()).losses
    monkeypatch.setattr(ours, "compute_loss", None)
    assert torch.equal(ours.losses_only(case.model, case.batch()), expected)
    rounded = ours.losses_only(case.model, case.batch(), dtype=torch.float32)
    assert rounded.dtype == torch.float32


def test_data_parallel_wrapper(make_case: Any, make_criterion: Any) -> None:
    from fairseq.distributed import ModuleProxyWrapper

    class Wrapper(torch.nn.Module):
        def __init__(self, module: torch.nn.Module) -> None:
            super().__init__()
            self.module = module

        def forward(self, *args: Any, **kwargs: Any) -> Any:
            return self.module(*args, **kwargs)

    case = make_case("classification")
    ours = make_criterion("per_sentence_sentence_prediction", case.task)
    wrapped = ModuleProxyWrapper(Wrapper(case.model))
    expected = ours.per_sentence_losses(case.model, case.batch()).losses
    assert torch.equal(ours.per_sentence_losses(wrapped, case.batch()).losses, expected)


def test_float64_is_float64_all_the_way(make_case: Any, make_criterion: Any) -> None:
    """A second difference of 1e-10 is there, which float32 log-probabilities would bury."""
    case = make_case("translation")
    ours = make_criterion("per_sentence_cross_entropy", case.task)
    bias = case.model.decoder.layers[0].fc1.bias

    def losses(shift: float) -> torch.Tensor:
        with torch.no_grad():
            bias.add_(shift)
            result = ours.per_sentence_losses(case.model, case.batch()).losses
            bias.sub_(shift)
        return result

    curvature = [(losses(h) + losses(-h) - 2 * losses(0.0)) / h**2 for h in (1e-4, 2e-4)]
    torch.testing.assert_close(curvature[0], curvature[1], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(
    ("case_name", "name"),
    [
        ("translation", "cross_entropy"),
        ("translation", "label_smoothed_cross_entropy"),
        ("classification", "sentence_prediction"),
        ("masked_lm", "masked_lm"),
    ],
)
def test_forward_mode_derivative(
    case_name: str, name: str, make_case: Any, make_criterion: Any
) -> None:
    """Directional derivatives in forward mode, for estimators that use them."""
    case = make_case(case_name)
    ours = make_criterion("per_sentence_" + name, case.task, label_smoothing=0.1)
    encoder = getattr(case.model.encoder, "sentence_encoder", case.model.encoder)
    layer = encoder.layers[1].fc1
    direction = torch.randn(layer.weight.shape, dtype=torch.float64)
    losses = ours.per_sentence_losses(case.model, case.batch()).losses
    rows = torch.eye(4, dtype=torch.float64)
    grads = [torch.autograd.grad(losses, layer.weight, row, retain_graph=True)[0] for row in rows]
    expected = torch.stack([(grad * direction).sum() for grad in grads])
    with torch.no_grad(), without_fused_attention(), forward_ad.dual_level():
        plain = layer.weight.detach().clone()
        del layer.weight
        layer.weight = forward_ad.make_dual(plain, direction)
        tangent = forward_ad.unpack_dual(
            ours.per_sentence_losses(case.model, case.batch())[0]
        ).tangent
    torch.testing.assert_close(tangent, expected, rtol=1e-9, atol=1e-10)


def without_fused_attention() -> ContextManager[Any]:
    """torch's fused attention has no forward-mode derivative on CPU."""
    if not hasattr(torch.nn, "attention"):
        return contextlib.nullcontext()
    from torch.nn.attention import SDPBackend, sdpa_kernel

    return sdpa_kernel(SDPBackend.MATH)
