"""What holds for any weights and gradients: the constraint, its optimum, no NaN, exact restore."""

import math
from typing import Any, List, NamedTuple

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from fairseq_sam.perturbation import PerturbationSettings, PerturbedWeights
from fairseq_sam.perturbation.ascent import SCALES
from tests.perturbation import reference
from tests.perturbation.small_net import MIXTURES, assert_all_equal, generator, values

SHAPES = [(), (1,), (5,), (3, 2), (1, 4), (2, 3, 2), (4, 1)]


class Example(NamedTuple):
    weights: List[Tensor]
    steps: List[List[Any]]
    settings: PerturbationSettings


@st.composite
def examples(draw: Any, dtypes: Any = (torch.float32, torch.float64)) -> Example:
    """Weights and gradients of a wild range of sizes, some zero, some absent."""
    dtype = draw(st.sampled_from(dtypes))
    shapes = draw(st.lists(st.sampled_from(SHAPES), min_size=1, max_size=5))
    random = generator(draw(st.integers(0, 2**31)))
    num_steps = draw(st.integers(1, 3))
    absent = [draw(st.integers(0, 9)) == 0 for _ in shapes]

    def tensors(exponents: Any, some_zero: bool) -> List[Tensor]:
        made = []
        for shape in shapes:
            values = torch.randn(shape, dtype=torch.float64, generator=random)
            values = values * 10.0 ** draw(exponents)
            if some_zero:
                kind = draw(st.sampled_from(["dense", "dense", "sparse", "zero"]))
                keep = torch.rand(shape, generator=random) < {"sparse": 0.5, "zero": 0}.get(kind, 2)
                values = values * keep
            made.append(values.to(dtype))
        return made

    weights = tensors(st.integers(-3, 1), draw(st.booleans()))
    steps = [tensors(st.integers(-4, 3), True) for _ in range(num_steps)]
    steps = [[None if gone else g for g, gone in zip(step, absent)] for step in steps]
    scale, granularity = draw(st.sampled_from(MIXTURES))
    return Example(
        weights,
        steps,
        PerturbationSettings(
            rho=draw(st.sampled_from([1e-4, 0.01, 0.5, 3.0])),
            norm=draw(st.sampled_from(["l2", "linf"])),
            scale=scale,
            granularity=granularity,
            num_steps=num_steps,
        ),
    )


def scale_by_loops(example: Example) -> List[float]:
    """T of the weights that have a gradient, with 1e-4 of leeway around the floor of noise."""
    moving = [i for i, g in enumerate(example.steps[0]) if g is not None]
    return reference.scale_of(
        example.settings.scale,
        example.settings.granularity,
        [example.weights[i].shape for i in moving],
        reference.flat([example.weights[i] for i in moving]),
        reference.flat([example.steps[0][i] for i in moving]),
    )


quick = settings(
    max_examples=150,
    deadline=None,
    database=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


@quick
@given(examples())
def test_every_step_stays_in_the_constraint_set_and_comes_back(example: Example):
    weights, before = values(example.weights), values(example.weights)
    moving = [i for i, g in enumerate(example.steps[0]) if g is not None]
    T = scale_by_loops(example) if moving else []
    eps = torch.finfo(weights[0].dtype).eps
    perturbed = PerturbedWeights(weights, example.settings)
    for step in example.steps:
        perturbed.ascend(values(step) if None not in step else [clone(g) for g in step])
        assert bool(perturbed.finite)
        assert math.isfinite(float(perturbed.norm))
        assert all(bool(torch.isfinite(w).all()) for w in weights)
        if not moving:
            continue
        a = [(weights[i].double() - before[i].double()).flatten() for i in moving]
        # w + a is rounded to a neighbour: take that off before asking for the length.
        slack = reference.flat([weights[i].abs() + before[i].abs() for i in moving]) * 4 * eps
        a = (torch.cat(a).abs() - slack).clamp(min=0).tolist()
        assert all(T_i > 0 for a_i, T_i in zip(a, T) if a_i > 0), "moved where T is 0"
        length = reference.constraint_norm(a, T, example.settings.norm)
        assert length <= example.settings.rho * (1 + 64 * eps)
    for i, g in enumerate(example.steps[0]):
        if g is None:
            assert torch.equal(weights[i], before[i])
    perturbed.restore()
    assert_all_equal(weights, before)


def clone(tensor: Any) -> Any:
    return None if tensor is None else tensor.clone()


@quick
@given(examples([torch.float64]), st.integers(0, 2**31))
def test_no_point_of_the_constraint_set_is_steeper_than_a_single_step(example: Example, seed: int):
    """u maximises uᵀg on {‖T⁻¹u‖_p ≤ ρ} (Eq. 15)."""
    moving = [i for i, g in enumerate(example.steps[0]) if g is not None]
    if not moving:
        return
    parts = {**vars(example.settings), "num_steps": 1}
    weights = values(example.weights)
    perturbed = PerturbedWeights(weights, PerturbationSettings(**parts))
    perturbed.ascend([clone(g) for g in example.steps[0]])
    g = reference.flat([example.steps[0][i] for i in moving])
    u = reference.flat([weights[i] for i in moving]) - reference.flat(
        [example.weights[i] for i in moving]
    )
    T = torch.tensor(scale_by_loops(example), dtype=torch.float64)
    rho = example.settings.rho
    best = float(u @ g)
    rounding = 1e-9 * best + 1e-14 * float(g.abs().sum()) * (1 + 100 * rho)
    random = generator(seed)
    for _ in range(20):
        inside = torch.randn(len(g), dtype=torch.float64, generator=random) * (T > 0)
        length = inside.norm() if example.settings.norm == "l2" else inside.abs().max()
        if length > 0:
            assert float(T * inside * (rho / length) @ g) <= best + rounding


@quick
@given(examples())
def test_gradients_lent_for_a_step_come_back_unchanged(example: Example):
    perturbed = PerturbedWeights(values(example.weights), example.settings)
    for step in example.steps:
        lent = [clone(g) for g in step]
        perturbed.ascend(lent)
        assert_all_equal(lent, step)


@pytest.mark.parametrize("norm", ["l2", "linf"])
@pytest.mark.parametrize(("scale", "granularity"), MIXTURES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_zero_gradients_move_nothing(dtype: Any, scale: str, granularity: Any, norm: str):
    weights = [torch.ones(3, 2, dtype=dtype), torch.zeros(4, dtype=dtype)]
    before = values(weights)
    settings = PerturbationSettings(
        rho=0.5, norm=norm, scale=scale, granularity=granularity, num_steps=2
    )
    perturbed = PerturbedWeights(weights, settings)
    for _ in range(2):
        perturbed.ascend([torch.zeros_like(w) for w in weights])
        assert_all_equal(weights, before)
        assert float(perturbed.norm) == 0
        assert bool(perturbed.finite)


@pytest.mark.parametrize(("scale", "granularity"), MIXTURES)
def test_only_scales_that_divide_by_the_gradient_hold_what_had_none_at_w(
    scale: str, granularity: Any
):
    weights = values([torch.ones(3), torch.ones(2)])
    settings = PerturbationSettings(rho=0.5, scale=scale, granularity=granularity, num_steps=2)
    perturbed = PerturbedWeights(weights, settings)
    perturbed.ascend([torch.zeros(3), torch.ones(2)])
    assert_all_equal(weights[:1], [torch.ones(3)])
    perturbed.ascend([torch.ones(3), torch.ones(2)])
    stays = SCALES[scale].divides_by_gradient and granularity != "model"
    assert torch.equal(weights[0], torch.ones(3)) == stays


@pytest.mark.parametrize("norm", ["l2", "linf"])
@pytest.mark.parametrize("num_steps", [1, 3])
@pytest.mark.parametrize("scale", ["weight-over-gradient", "gradient-strength", "inverse-gradient"])
class TestRoundingNoise:
    """The key-bias trap: a gradient of pure rounding noise must not become a large step."""

    @pytest.mark.parametrize(
        ("dtype", "compute_dtype", "noise"),
        [
            (torch.float32, None, 1e-8),
            (torch.float64, None, 1e-17),
            (torch.float32, torch.bfloat16, 1e-3),
            (torch.float32, torch.float16, 1e-4),
        ],
    )
    @pytest.mark.parametrize("granularity", ["element", "filter", "layer"])
    def test_noise_stays_where_it_is(
        self,
        granularity: str,
        dtype: Any,
        compute_dtype: Any,
        noise: float,
        scale: str,
        num_steps: int,
        norm: str,
    ):
        random = generator(3)
        weights = [
            torch.randn(8, 4, generator=random).to(dtype),
            torch.randn(4, generator=random).to(dtype),
        ]
        before = values(weights)
        settings = PerturbationSettings(
            rho=0.5, norm=norm, scale=scale, granularity=granularity, num_steps=num_steps
        )
        perturbed = PerturbedWeights(weights, settings)
        for _ in range(num_steps):
            signal = torch.randn(8, 4, generator=random).sign() * 2
            hum = torch.randn(4, generator=random) * noise
            perturbed.ascend([signal.to(dtype), hum.to(dtype)], compute_dtype=compute_dtype)
        assert torch.equal(weights[1], before[1])
        assert not torch.equal(weights[0], before[0])

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_a_weak_but_real_gradient_moves(
        self, dtype: Any, scale: str, num_steps: int, norm: str
    ):
        weights = [torch.ones(8, 4, dtype=dtype), torch.ones(4, dtype=dtype)]
        settings = PerturbationSettings(
            rho=1e-3, norm=norm, scale=scale, granularity="layer", num_steps=num_steps
        )
        perturbed = PerturbedWeights(weights, settings)
        for _ in range(num_steps):
            perturbed.ascend([torch.ones_like(weights[0]), torch.full_like(weights[1], 1e-4)])
        assert bool((weights[1] > 1).all())


def test_a_softmax_that_ignores_a_key_bias_keeps_it():
    """The trap as it occurs: attention in float32."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        attention = torch.nn.MultiheadAttention(8, 2)
        x = torch.randn(5, 3, 8)
    query, key, value = attention.in_proj_weight.detach().chunk(3)
    bias = torch.nn.Parameter(torch.zeros(8))
    weights = [torch.nn.Parameter(part.clone()) for part in (query, key, value)]
    q, v = x @ weights[0].T, x @ weights[2].T
    k = x @ weights[1].T + bias
    scores = torch.einsum("qbd,kbd->bqk", q, k).softmax(-1)
    torch.einsum("bqk,kbd->qbd", scores, v).square().sum().backward()
    assert 0 < float(bias.grad.abs().max()) < 1e-4
    settings = PerturbationSettings(
        rho=0.1, norm="linf", scale="gradient-strength", granularity="layer"
    )
    PerturbedWeights([*weights, bias], settings).ascend([w.grad for w in [*weights, bias]])
    assert torch.equal(bias.detach(), torch.zeros(8))
    assert not torch.equal(weights[1].detach(), key)
