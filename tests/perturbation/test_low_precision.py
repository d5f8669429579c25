"""Half-precision weights: stochastic rounding, the share of a perturbation that they take."""

import math
from typing import Any, List

import pytest
import torch
from torch import Tensor, nn

from fairseq_sam.perturbation import (
    ForwardPass,
    PerturbedWeights,
    SharpnessAwareLoss,
    method_settings,
)
from fairseq_sam.perturbation.weights import add_perturbation_, stochastic_round
from tests.perturbation.small_net import (
    SmallNet,
    assert_all_equal,
    batch,
    forward_pass,
    generator,
    gradients_of,
    values,
    watching,
)

every_format = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
MANTISSA = {torch.bfloat16: 7, torch.float16: 10}
LOWEST_EXPONENT = {torch.bfloat16: -126, torch.float16: -14}


@pytest.fixture(autouse=True)
def _keep_generator() -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(7)
        yield


def neighbours(value: float, dtype: torch.dtype) -> List[float]:
    """The two numbers of the format around a value."""
    exponent = max(math.frexp(abs(value))[1] - 1, LOWEST_EXPONENT[dtype])
    step = 2.0 ** (exponent - MANTISSA[dtype])
    low = math.floor(value / step) * step
    return [low, low + step]


def steps_from(value: float, part: float, dtype: torch.dtype) -> float:
    """A float32 number that lies the given part of the way to the next number of the format."""
    low = float(torch.tensor(value).to(dtype))
    step = 2.0 ** (max(math.frexp(abs(low))[1] - 1, LOWEST_EXPONENT[dtype]) - MANTISSA[dtype])
    return float(torch.tensor(low + part * step))


@every_format
@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("part", [0.02, 0.1, 0.25, 0.5, 0.75, 0.98, -0.02, -0.2, -0.4])
@pytest.mark.parametrize("value", [1.0, 0.03125, 0.0301, 1.37, 1.99, 100.0, "subnormal", "tiny"])
def test_rounding_at_random_is_unbiased(value: Any, part: float, sign: int, dtype: Any):
    """Powers of two included (layer norms start at 1): there the spacing changes."""
    tiny = torch.finfo(dtype).tiny
    value = {"subnormal": tiny / 8, "tiny": tiny}.get(value, value)
    value = sign * steps_from(value, part, dtype)
    draws = 40000
    rounded = stochastic_round(torch.full((draws,), value), dtype)
    assert rounded.dtype == dtype
    low, high = neighbours(value, dtype)
    assert set(rounded.double().unique().tolist()) <= {low, high}
    deviation = (high - low) / 2 / math.sqrt(draws)
    assert abs(float(rounded.double().mean()) - value) < 5 * deviation


@every_format
def test_numbers_of_the_format_stay_as_they_are(dtype: Any):
    patterns = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype)
    numbers = patterns[torch.isfinite(patterns.float())]
    assert torch.equal(stochastic_round(numbers.float(), dtype), numbers)


@every_format
def test_infinities_and_nan_pass_through(dtype: Any):
    values = torch.tensor([math.inf, -math.inf, math.nan])
    rounded = stochastic_round(values, dtype).float()
    torch.testing.assert_close(rounded, values, equal_nan=True)


@every_format
def test_what_is_added_and_what_was_asked_for(dtype: Any):
    weight = torch.tensor([1.0, -2.0, 0.5]).to(dtype)
    before = weight.clone()
    asked = torch.tensor([0.25, 0.5, 0.0])  # exact in both formats
    share, whole = add_perturbation_(weight, asked)
    assert weight.tolist() == [1.25, -1.5, 0.5]
    assert float(share) == float(whole) == pytest.approx(0.3125)
    assert before.tolist() == [1.0, -2.0, 0.5]


def weights_and_gradient(dtype: Any, count: int = 20000) -> Any:
    weight = (0.033 + 0.025 * torch.rand(count, generator=generator(1))).to(dtype)
    gradient = torch.randn(count, generator=generator(2)).to(dtype)
    return weight, gradient


def mean_share(
    weight: Tensor, gradient: Tensor, norm: str, entry: float, num_steps: int, draws: int
) -> Any:
    """⟨mean of (w + a_K) − w, a⟩/⟨a, a⟩, where a is the perturbation of a linear loss."""
    settings = method_settings(
        "sam",
        rho=entry * (math.sqrt(weight.numel()) if norm == "l2" else 1),
        norm=norm,
        num_steps=num_steps,
    )
    g = gradient.double()
    exact = settings.rho * (g / g.norm() if norm == "l2" else g.sign())
    perturbed = PerturbedWeights([weight], settings)
    before = weight.clone()
    total, reported = torch.zeros_like(exact), []
    for _ in range(draws):
        for _ in range(num_steps):
            perturbed.ascend([gradient.clone()])
        total += weight.double() - before.double()
        reported.append(float(perturbed.realised))
        perturbed.restore()
        assert torch.equal(weight, before)
    share = float((total / draws) @ exact / (exact @ exact))
    return share, sum(reported) / draws, exact


@every_format
@pytest.mark.parametrize("norm", ["l2", "linf"])
@pytest.mark.parametrize("num_steps", [1, 2, 3])
def test_a_perturbation_far_below_the_spacing_is_realised_in_expectation(
    num_steps: int, norm: str, dtype: Any
):
    """On a linear loss a_K is known: ρ g/‖g‖ or ρ sgn(g). Spacing here: 1/40 of it is asked for."""
    weight, gradient = weights_and_gradient(dtype)
    entry = 2.0 ** (-5 - MANTISSA[dtype]) / 40
    share, reported, exact = mean_share(weight, gradient, norm, entry, num_steps, draws=40)
    to_nearest = (weight.double() + exact).to(dtype).double() - weight.double()
    assert float(to_nearest @ exact / (exact @ exact)) < 0.2
    assert share == pytest.approx(1.0, abs=0.15)
    assert reported == pytest.approx(1.0, abs=0.15)


@every_format
@pytest.mark.parametrize("sign", [1, -1])
def test_layer_norms_at_one_move_the_way_they_are_asked_to(sign: int, dtype: Any):
    """Below a power of two the numbers lie twice as close as above it."""
    weight, gradient = torch.ones(20000, dtype=dtype), torch.full((20000,), sign, dtype=dtype)
    entry = torch.finfo(dtype).eps / 40
    share, reported, _ = mean_share(weight, gradient, "linf", entry, 1, draws=10)
    assert share == pytest.approx(1.0, abs=0.15)
    assert reported == pytest.approx(1.0, abs=0.15)


@every_format
@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_what_is_reported_as_realised_is_what_the_weights_took(norm: str, dtype: Any):
    """With K > 1 too: one draw, against the whole perturbation a_2 of a linear loss."""
    weight, gradient = weights_and_gradient(dtype)
    settings = method_settings("sam", rho=1e-3 if norm == "linf" else 0.14, norm=norm, num_steps=2)
    before = weight.double()
    perturbed = PerturbedWeights([weight], settings)
    for _ in range(2):
        perturbed.ascend([gradient.clone()])
    g = gradient.double()
    exact = settings.rho * (g / g.norm() if norm == "l2" else g.sign())
    realised = (weight.double() - before) @ exact / (exact @ exact)
    assert float(perturbed.realised) == pytest.approx(float(realised), abs=0.02)


@every_format
@pytest.mark.parametrize("method", ["sam", "asam", "layer_sam", "multi_step_defense", "ga_sam"])
@pytest.mark.parametrize("num_steps", [1, 2, 3])
def test_half_precision_weights_come_back_bit_for_bit(num_steps: int, method: str, dtype: Any):
    net, x = SmallNet().to(dtype), batch().to(dtype)
    parameters = list(net.parameters())
    before = values(parameters)
    settings = method_settings(method, num_steps=num_steps, rho=0.05)
    sharpness_aware = SharpnessAwareLoss(parameters, settings)
    for _ in range(3):
        seen: List[List[Tensor]] = []
        outcome = sharpness_aware.backward(watching(forward_pass(net, x), parameters, seen))
        assert bool(outcome.finite)
        assert math.isfinite(float(outcome.realised))
        assert not all(torch.equal(p, w) for p, w in zip(seen[-1], before))
        assert_all_equal(values(parameters), before)
    assert all(g is None or g.dtype == dtype for g in gradients_of(parameters))


@every_format
@pytest.mark.parametrize("num_steps", [1, 2])
@pytest.mark.parametrize("method", ["sam", "asam", "ga_sam"])
def test_layer_norms_kept_in_float32_beside_half_precision_matrices(
    method: str, num_steps: int, dtype: Any
):
    matrix = torch.nn.Parameter(torch.randn(6, 4, generator=generator(1)).to(dtype))
    gain = torch.nn.Parameter(torch.randn(6, generator=generator(2)))
    x = torch.randn(3, 4, generator=generator(3)).to(dtype)
    before = values([matrix, gain])
    settings = method_settings(method, num_steps=num_steps, rho=0.1)
    sharpness_aware = SharpnessAwareLoss([matrix, gain], settings)
    seen: List[List[Tensor]] = []

    def forward() -> ForwardPass:
        return ForwardPass(((x @ matrix.T).float() * gain).square().sum())

    sharpness_aware.backward(watching(forward, [matrix, gain], seen))
    assert not torch.equal(seen[-1][0], before[0])
    assert not torch.equal(seen[-1][1], before[1])
    assert_all_equal(values([matrix, gain]), before)
    assert (matrix.grad.dtype, gain.grad.dtype) == (dtype, torch.float32)


@pytest.mark.parametrize("order", [1, -1])
def test_the_floor_of_noise_is_that_of_the_coarsest_format(order: int):
    """Whichever tensor comes first: gradients through bfloat16 matrices carry bfloat16 noise."""
    weights = [torch.ones(32), torch.ones(64, dtype=torch.bfloat16), torch.ones(4)][::order]
    gradients = [torch.ones(32), torch.ones(64, dtype=torch.bfloat16), torch.full((4,), 1e-4)]
    settings = method_settings("ga_sam", rho=1e-2)
    PerturbedWeights(weights, settings).ascend(gradients[::order])
    assert [bool((w == 1).all()) for w in weights[::order]][2]


@every_format
def test_half_precision_gradient_is_close_to_that_of_float64(dtype: Any):
    found = []
    for each in (torch.float64, dtype):
        net, x = SmallNet().to(each), batch().to(dtype).to(each)
        with torch.no_grad():
            for p, rounded in zip(net.parameters(), SmallNet().to(dtype).parameters()):
                p.copy_(rounded)
        settings = method_settings("ga_sam", rho=0.1, num_steps=2, norm="l2")
        SharpnessAwareLoss(list(net.parameters()), settings).backward(forward_pass(net, x))
        found.append(
            torch.cat([p.grad.double().flatten() for p in net.parameters() if p.grad is not None])
        )
    assert float(torch.cosine_similarity(*found, dim=0)) > 0.99


def test_steps_of_a_model_that_draws_nothing_are_rounded_otherwise_each_time():
    net = nn.Linear(16, 16).to(torch.bfloat16)
    loss = SharpnessAwareLoss(list(net.parameters()), method_settings("sam", rho=0.05))
    x, seen = torch.ones(4, 16, dtype=torch.bfloat16), []

    def forward() -> ForwardPass:
        seen.append(net.weight.detach().clone())
        return ForwardPass(net(x).square().sum(), 4)

    for _ in range(3):
        net.zero_grad()
        loss.backward(forward)
    at_w, first, _, second, _, third = seen
    assert not torch.equal(first, at_w)
    assert not torch.equal(first, second)
    assert not torch.equal(second, third)
