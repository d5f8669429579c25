"""δ-SAM's sentence weights: slow loops, invariances, fallbacks, what they mean on quadratics."""

import math
from typing import Any, List, NamedTuple, Tuple

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from fairseq_sam.perturbation import PerturbedWeights, method_settings, sentence_weights
from fairseq_sam.perturbation.sentence_weights import (
    Probes,
    SentenceProbes,
    draft_weights,
    probe_length,
    published_weights,
    random_direction,
    usable,
    weigh,
)
from tests.perturbation import sentence_reference

quick = settings(max_examples=50, deadline=None)
losses = st.floats(0, 100)
changes = st.floats(-10, 10).map(lambda x: 0.0 if abs(x) < 1e-3 else x)
triples = st.lists(st.tuples(losses, changes, changes), min_size=1, max_size=8)


def vector(numbers: Any) -> Tensor:
    return torch.tensor(list(numbers), dtype=torch.float64)


def probes_of(rows: List[Tuple[float, float, float]]) -> Probes:
    clean = vector(row[0] for row in rows)
    return Probes(clean, clean + vector(r[1] for r in rows), clean + vector(r[2] for r in rows))


def assert_close(ours: Tensor, theirs: Any, rtol: float = 1e-9) -> None:
    theirs = torch.as_tensor(theirs, dtype=ours.dtype)
    size = max(1.0, float(theirs.abs().max()))
    torch.testing.assert_close(ours, theirs, rtol=rtol, atol=rtol * size)


@quick
@given(rows=triples, eta=st.floats(1e-4, 10))
def test_published_weights_are_those_of_a_slow_loop(rows: Any, eta: float):
    probes = probes_of(rows)
    expected = sentence_reference.published(*(part.tolist() for part in probes), eta)
    # (p − c) − (c − m) and p + m − 2c round differently: by 1e-14 of a loss of 100, over η.
    torch.testing.assert_close(
        published_weights(probes, eta), vector(expected), rtol=1e-10, atol=1e-12 / eta
    )


@quick
@given(rows=triples, beta=st.floats(0, 100))
def test_draft_weights_are_those_of_a_slow_loop(rows: Any, beta: float):
    probes = probes_of(rows)
    assume(well_conditioned(probes))
    expected = sentence_reference.draft(probes.clean.tolist(), probes.plus.tolist(), beta)
    assert_close(draft_weights(probes, beta), expected)


def well_conditioned(probes: Probes) -> bool:
    """Whether a_s is not made of rounding errors alone."""
    a = probes.plus - probes.clean
    return not a.any() or abs(float((a.abs() * a).sum())) > 1e-6 * float(a.square().sum())


def test_published_weights_by_hand():
    probes = Probes(vector([1, 2, 3]), vector([3, 2, 3.5]), vector([2, 2, 2.5]))
    # (3 + 2 − 2) / 1; 0 / max(0, η); 0 / 1
    assert_close(published_weights(probes, eta=0.25), [3, 0, 0])
    # A flat first difference: 0.5 / max(0, η)
    probes = Probes(vector([1]), vector([1.25]), vector([1.25]))
    assert_close(published_weights(probes, eta=0.125), [4])


def test_draft_weights_by_hand():
    # a = (1, 3): g = (1/4, 3/4), ā = 2, a_s = 5/2, r = β 4/5
    probes = Probes(vector([1, 2]), vector([2, 5]))
    assert_close(draft_weights(probes, beta=1.0), [0.3, 0.7])
    # a = (1, −3): g as before, ā = −1, a_s = −2, r = β / 2
    probes = Probes(vector([1, 4]), vector([2, 1]))
    assert_close(draft_weights(probes, beta=8.0), [-0.5, 1.5])


@quick
@given(rows=triples, beta=st.floats(0, 1000))
def test_draft_weights_add_up_to_one(rows: Any, beta: float):
    probes = probes_of(rows)
    assume(well_conditioned(probes))
    weights = draft_weights(probes, beta)
    size = max(1.0, float(weights.abs().max()))
    assert abs(float(weights.sum()) - 1) < 1e-12 * size * len(rows)


@quick
@given(rows=triples)
def test_beta_of_zero_gives_uniform_weights(rows: Any):
    assert_close(draft_weights(probes_of(rows), beta=0.0), [1 / len(rows)] * len(rows), 1e-14)


def test_draft_weights_keep_the_sign_that_a_large_beta_gives_them():
    probes = Probes(vector([0, 0, 0]), vector([1, 2, 6]))
    weights = draft_weights(probes, beta=50.0)
    assert float(weights.min()) < 0
    assert_close(weights, sentence_reference.draft([0, 0, 0], [1, 2, 6], 50.0))
    assert_close(weigh("draft", probes, eta=1.0, beta=50.0).values, 3 * weights)


@quick
@given(rows=triples, factor=st.floats(0.01, 100), beta=st.floats(0, 20))
def test_the_unit_of_the_losses_does_not_matter(rows: Any, factor: float, beta: float):
    """Draft: in no way. Published: as far as η does not, which is a length in that unit."""
    probes = probes_of(rows)
    scaled = Probes(*(part * factor for part in probes))
    if well_conditioned(probes):
        assert_close(draft_weights(scaled, beta), draft_weights(probes, beta), rtol=1e-6)
    ours = published_weights(scaled, 0.01 * factor)
    assert_close(ours, published_weights(probes, 0.01), rtol=1e-7)


@quick
@given(rows=triples, factor=st.floats(0.01, 100))
def test_a_long_probe_is_brought_back_to_rho(rows: Any, factor: float):
    """With l_j = c + s h + b h²: what is measured at h = factor ρ counts as if measured at ρ."""
    clean, slope, bend = (vector(part) for part in zip(*rows))

    def at(h: float) -> Probes:
        return Probes(clean, clean + slope * h + bend * h * h, clean - slope * h + bend * h * h)

    rho = 0.1
    expected = published_weights(at(rho), eta=0.01)
    found = published_weights(at(factor * rho), eta=0.01, ratio=1 / factor)
    assert_close(found, expected, rtol=1e-6)


several = st.lists(st.tuples(losses, changes, changes), min_size=2, max_size=8)
every_weighting = pytest.mark.parametrize("weighting", ["published", "draft"])
not_finite = pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])


@quick
@given(rows=several)
@every_weighting
def test_the_weights_that_are_used_have_mean_one(weighting: str, rows: Any):
    probes = probes_of(rows)
    assume(weighting == "published" or well_conditioned(probes))
    values, uniform = weigh(weighting, probes, eta=0.01, beta=5.0)
    size = max(1.0, float(values.abs().max()))
    assert abs(float(values.mean()) - 1) < 1e-12 * size
    if weighting == "published":
        weights = published_weights(probes, 0.01)
        assert bool(uniform) == (not weights.any())
    else:
        weights = draft_weights(probes, 5.0)
        assert bool(uniform) == torch.equal(probes.plus, probes.clean)
    if not uniform:
        assert_close(values, weights * len(rows) / weights.sum(), rtol=1e-9)


@quick
@given(rows=several, ratio=st.floats(0.01, 100))
def test_a_ratio_reaches_the_published_weights(rows: Any, ratio: float):
    probes = probes_of(rows)
    clean, plus, minus = (part.tolist() for part in probes)
    second = [abs(p + m - 2 * c) * ratio**2 for c, p, m in zip(clean, plus, minus)]
    first = [abs(p - m) * ratio for p, m in zip(plus, minus)]
    expected = [s / max(f, 0.03) for s, f in zip(second, first)]
    assume(max(expected) > 1e-6)
    found = weigh("published", probes, eta=0.03, beta=1.0, ratio=ratio)
    assert_close(found.values, sentence_reference.mean_one(expected), rtol=1e-6)


@not_finite
@pytest.mark.parametrize("position", [0, 2])
def test_weights_that_are_not_finite_give_way_to_uniform_ones(position: int, bad: float):
    weights = vector([1, 2, 3])
    weights[position] = bad
    values, uniform = usable(weights, torch.tensor(True))
    assert values.tolist() == [1, 1, 1]
    assert bool(uniform)


@not_finite
@every_weighting
@pytest.mark.parametrize("where", [0, 1, 2])
def test_losses_that_overflow_give_uniform_weights(where: int, weighting: str, bad: float):
    rows = [[1.0, 2.0, 3.0], [1.5, 2.0, 3.5], [0.5, 2.5, 2.5]]
    rows[where][1] = bad
    if weighting == "draft" and where == 2:
        return  # it does not look there
    probes = Probes(*(vector(row) for row in rows))
    values, uniform = weigh(weighting, probes, eta=0.01, beta=5.0)
    assert values.tolist() == [1, 1, 1]
    assert bool(uniform)


def test_weights_too_large_to_add_up_give_uniform_weights():
    clean = torch.zeros(2)
    probes = Probes(clean, clean + 2e-3, clean + 1e-3)
    values, uniform = weigh("published", probes, eta=1e-4, beta=1.0, ratio=1e38)
    assert bool(torch.isfinite(values).all())
    assert float(values.mean()) == 1
    assert bool(uniform)


@every_weighting
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_losses_that_do_not_change_give_uniform_weights(dtype: Any, weighting: str):
    same = torch.tensor([1, 2, 3], dtype=dtype)
    values, uniform = weigh(weighting, Probes(same, same, same), eta=0.01, beta=5.0)
    assert values.tolist() == [1, 1, 1]
    assert values.dtype == dtype
    assert bool(uniform)


@every_weighting
def test_a_sentence_on_its_own_weighs_one(weighting: str, caplog: Any):
    """And it is said once in a run."""
    sentence_weights._say_that_one_sentence_weighs_one.cache_clear()
    for plus, minus in ((2.0, 3.0), (1.0, 1.0), (math.nan, 1.0)):
        probes = Probes(vector([1]), vector([plus]), vector([minus]))
        values, uniform = weigh(weighting, probes, eta=0.01, beta=5.0)
        assert values.tolist() == [1]
        assert not bool(uniform)
    said = [record.getMessage() for record in caplog.records if "one sentence" in record.message]
    assert len(said) == 1


@pytest.mark.parametrize("exponent", range(4, 30))
def test_draft_weights_whose_weighted_change_cancels_keep_sign_and_size(exponent: int):
    """As a_s goes to 0 the weights grow without bound, and their sum is rounding noise.

    Dividing by that sum would give the ascent direction any length, and half of the time the
    wrong sign. Here a = (1, −1, δ): a_s = δ² / (2 + δ), without rounding.
    """
    small = 2.0**-exponent
    clean, plus = torch.zeros(3), torch.tensor([1.0, -1.0, small])
    values, uniform = weigh("draft", Probes(clean, plus), eta=1.0, beta=10.0)
    expected = 3 * vector(sentence_reference.draft([0, 0, 0], [1, -1, small], 10.0))
    assert not bool(uniform)
    torch.testing.assert_close(values.double(), expected, rtol=0.01, atol=0.0)


# On a quadratic everything is known: l_j(w + r) = l_j + s + a_j s² / 2 with s = rᵀ∇l_j, that is
# H_j = a_j ∇l_j ∇l_jᵀ. For r uniform on the sphere of radius h in n dimensions
# E s² = h² ‖∇l_j‖² / n and E |s| = h ‖∇l_j‖ Γ(n/2) / (√π Γ((n + 1)/2)).


class Quadratic(NamedTuple):
    """Losses of sentences around the weights, which are two tensors with n = 6 numbers in all."""

    weights: List[Tensor]
    origin: List[Tensor]
    gradients: Tensor
    bends: Tensor

    def losses(self) -> Tensor:
        moved = torch.cat([(w - o).flatten() for w, o in zip(self.weights, self.origin)])
        s = self.gradients @ moved
        return 1.0 + s + 0.5 * self.bends * s * s


def quadratic() -> Quadratic:
    numbers = torch.Generator().manual_seed(5)
    origin = [torch.randn(2, 2, generator=numbers).double(), torch.randn(2).double()]
    gradients = torch.randn(5, 6, generator=numbers).double() * vector([1, 0.3, 2, 1, 5])[:, None]
    bends = vector([1.0, 4.0, 0.5, -2.0, 0.0])
    return Quadratic([part.clone() for part in origin], origin, gradients, bends)


def mean_absolute_cosine(n: int) -> float:
    return math.exp(math.lgamma(n / 2) - math.lgamma((n + 1) / 2)) / math.sqrt(math.pi)


@pytest.fixture(autouse=True)
def _keep_generator() -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(11)
        yield


def test_random_directions_are_uniform_on_the_sphere():
    draws = 3000
    weights = [torch.zeros(2, 2, dtype=torch.float64), torch.zeros(2, dtype=torch.float64)]
    directions = torch.stack(
        [torch.cat([part.flatten() for part in random_direction(weights)]) for _ in range(draws)]
    )
    torch.testing.assert_close(directions.norm(dim=1), torch.ones(draws).double())
    assert directions.mean(dim=0).abs().max() < 5 / math.sqrt(6 * draws)
    covariance = directions.T @ directions / draws
    torch.testing.assert_close(
        covariance, torch.eye(6).double() / 6, rtol=0, atol=5 * 0.25 / math.sqrt(draws)
    )


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [
        (torch.float16, torch.float32),
        (torch.bfloat16, torch.float32),
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
    ],
)
def test_random_directions_have_full_precision(dtype: Any, expected: Any):
    direction = random_direction([torch.ones(3, 4, dtype=dtype), torch.ones((), dtype=dtype)])
    assert [part.dtype for part in direction] == [expected] * 2
    assert [part.shape for part in direction] == [(3, 4), ()]
    length = math.sqrt(sum(float(part.double().square().sum()) for part in direction))
    assert length == pytest.approx(1, rel=1e-6)


def test_random_directions_are_not_the_numbers_of_dropout():
    """Drawn from torch's own generator, r would be made of the numbers that the masks are."""
    weights = [torch.zeros(2000)]
    state = torch.get_rng_state()
    r = random_direction(weights)[0]
    for skipped in (0, 1, 2, 3):
        torch.set_rng_state(state)
        torch.rand(skipped)
        for other in (torch.randn(2000), torch.rand(2000) - 0.5):
            cosine = float(r @ other) / float(r.norm() * other.norm())
            assert abs(cosine) < 5 / math.sqrt(2000)


def probe_losses(weights: PerturbedWeights, problem: Quadratic) -> List[Any]:
    """Returns the losses where a step's probes have the weights, and ρ / h."""
    probes = SentenceProbes(weights.settings)
    found: List[Any] = [problem.losses() for _ in probes.displace(weights, torch.float64)]
    assert probes.length is not None
    return [*found, weights.settings.rho / probes.length]


@pytest.mark.parametrize("h", [0.5, 0.02])
def test_what_the_differences_measure_on_a_quadratic(h: float):
    """E of Eq. 5's numerator is |a_j| h² ‖∇l_j‖² / n, of its denominator ‖∇l_j‖ times a constant.

    So with one constant for all sentences the weights are a_j ‖∇l_j‖: E g_j for η → 0 is half of
    E |a_j s|, and E numerator over (E denominator)² is proportional to a_j itself.
    """
    problem, draws, n = quadratic(), 800, 6
    weights = PerturbedWeights(problem.weights, method_settings("delta_sam", rho=h, probe_radius=h))
    clean = problem.losses()
    second, first, published, one_sided = (torch.zeros(5).double() for _ in range(4))
    for seed in range(draws):
        torch.manual_seed(seed)
        plus, minus, ratio = probe_losses(weights, problem)
        assert ratio == 1
        probes = Probes(clean, plus, minus)
        second += (plus + minus - 2 * clean).abs() / draws
        first += (plus - minus).abs() / draws
        published += published_weights(probes, eta=1e-12) / draws
        one_sided += (plus - minus) / draws
    lengths, bends = problem.gradients.norm(dim=1), problem.bends.abs()
    cosine = mean_absolute_cosine(n)
    # Five standard deviations of the mean of s² (relative 1.2) and of |s| (0.7).
    rtol_square, rtol_absolute = 5 * 1.2 / math.sqrt(draws), 5 * 0.7 / math.sqrt(draws)
    noise = 1e-12
    torch.testing.assert_close(second, bends * lengths**2 * h**2 / n, rtol=rtol_square, atol=noise)
    torch.testing.assert_close(first, 2 * h * lengths * cosine, rtol=rtol_absolute, atol=noise)
    torch.testing.assert_close(
        published, bends * lengths * h * cosine / 2, rtol=rtol_absolute, atol=noise / 1e-3
    )
    curved = bends > 0
    found = (second / first.square())[curved] * 4 * cosine**2 * n
    torch.testing.assert_close(found, bends[curved], rtol=2 * rtol_square, atol=0)
    assert (one_sided.abs() < 5 * 2 * h * lengths / math.sqrt(n * draws)).all()


def test_what_the_drafts_shares_measure():
    """E |a_j| is ‖∇l_j‖ times the same constant for all, up to h: the shares follow the lengths."""
    problem, draws, h = quadratic(), 800, 1e-4
    weights = PerturbedWeights(
        problem.weights, method_settings("delta_sam", weighting="draft", rho=h, probe_radius=h)
    )
    clean, total = problem.losses(), torch.zeros(5).double()
    for seed in range(draws):
        torch.manual_seed(seed)
        plus, _ = probe_losses(weights, problem)  # one probe
        total += (plus - clean).abs() / draws
    expected = h * problem.gradients.norm(dim=1) * mean_absolute_cosine(6)
    torch.testing.assert_close(total, expected, rtol=5 * 0.7 / math.sqrt(draws), atol=0)
    for weight, origin in zip(problem.weights, problem.origin):
        assert torch.equal(weight, origin)


@quick
@given(count=st.integers(2, 6), seed=st.integers(0, 1000))
@every_weighting
def test_the_order_of_the_sentences_does_not_matter(weighting: str, count: int, seed: int):
    numbers = torch.Generator().manual_seed(seed)
    probes = Probes(*torch.rand(3, count, generator=numbers, dtype=torch.float64).unbind())
    assume(well_conditioned(probes))
    order = torch.randperm(count, generator=numbers)
    shuffled = Probes(*(part[order] for part in probes))
    found = [weigh(weighting, each, eta=0.01, beta=5.0).values for each in (probes, shuffled)]
    assert_close(found[1], found[0][order], rtol=1e-6)


@pytest.mark.parametrize(("weighting", "exponent"), [("published", 0.25), ("draft", 0.5)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_probes_are_as_long_as_the_format_needs(weighting: str, exponent: float, dtype: Any):
    """But never shorter than the radius, and a given length is taken as it is."""
    norm = torch.tensor(80.0)
    reach = 0.5 * torch.finfo(dtype).eps ** exponent * 80
    chosen = method_settings("delta_sam", weighting=weighting, rho=1e-4)
    assert float(probe_length(chosen, norm, dtype)) == pytest.approx(max(reach, 1e-4))
    wide = method_settings("delta_sam", weighting=weighting, rho=1e3)
    assert float(probe_length(wide, norm, dtype)) == 1e3
    given_length = method_settings("delta_sam", weighting=weighting, rho=1e-4, probe_radius=0.25)
    assert float(probe_length(given_length, norm, dtype)) == 0.25
