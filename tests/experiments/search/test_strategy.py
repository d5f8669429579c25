"""The strategy finds known optima, in a bounded number of runs, whatever the noise."""

import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fairseq_sam.experiments.search.strategy import (
    BASELINE,
    GRID,
    best_radius,
    follow,
    order_then_grid,
    radius,
    spread,
)
from tests.experiments.search.objectives import (
    BASELINE_LOSS,
    Recorder,
    flat_dip_explode,
    narrow_dip,
    noisy,
)

LOWEST, HIGHEST = -6, 1
EVERY_RADIUS = [radius(d, m) for m in range(LOWEST, HIGHEST + 1) for d in GRID]
MOST = 1 + math.ceil(math.log2(HIGHEST - LOWEST + 2)) + 3 + 4

exponents_of_optima = st.floats(min_value=LOWEST, max_value=HIGHEST + 0.9)


def search(objective, lowest=LOWEST, highest=HIGHEST, **options):
    recorder = Recorder(objective)
    recorder.remark = follow(order_then_grid(lowest, highest, **options), recorder)
    return recorder


def best_of_all(objective):
    return best_radius({rho: objective(rho) for rho in EVERY_RADIUS})


class TestFindsTheOptimum:
    @pytest.mark.parametrize("shape", [flat_dip_explode, narrow_dip])
    @given(position=exponents_of_optima)
    def test_best_of_every_radius_of_the_range(self, shape, position):
        objective = shape(10**position)
        recorder = search(objective)
        assert best_radius(recorder.costs) == best_of_all(objective)
        assert len(recorder.asked) <= MOST

    @given(position=exponents_of_optima, depth=st.floats(min_value=0.004, max_value=1.0))
    def test_shallow_and_deep_dips(self, position, depth):
        """From a tenth of the margin to many times it."""
        objective = flat_dip_explode(10**position, depth)
        recorder = search(objective)
        assert best_radius(recorder.costs) == best_of_all(objective)
        assert len(recorder.asked) <= MOST

    @given(position=exponents_of_optima, seed=st.integers(0, 10**6))
    def test_noise_below_the_margin(self, position, seed):
        """A tenth of the dip: the radius found is almost as good as the best."""
        depth = 0.05
        objective = flat_dip_explode(10**position, depth)
        recorder = search(noisy(objective, depth / 10, seed))
        found = best_radius(recorder.costs)
        assert objective(found) <= objective(best_of_all(objective)) + 2 * depth / 10
        assert len(recorder.asked) <= MOST + 4

    @given(position=exponents_of_optima, width=st.integers(1, 10))
    def test_the_same_with_runs_in_parallel(self, position, width):
        objective = flat_dip_explode(10**position)
        recorder = search(objective, width=width)
        assert best_radius(recorder.costs) == best_of_all(objective)

    @pytest.mark.parametrize("optimum", [1e-6, 3e-3, 0.05, 80.0])
    def test_maximised_scores_are_negated_losses(self, optimum):
        def cost(rho):
            return flat_dip_explode(optimum)(rho) - 34.0  # a BLEU of about 30

        assert best_radius(search(cost).costs) == best_of_all(cost)


class TestWhatIsAsked:
    @given(position=st.floats(-12, 6), width=st.integers(1, 4))
    def test_baseline_first_and_nothing_twice(self, position, width):
        asked = search(flat_dip_explode(10**position), width=width).asked
        assert asked[0] == BASELINE
        assert len(set(asked)) == len(asked)
        assert set(asked[1:]) <= set(EVERY_RADIUS)

    def test_the_steps_of_a_search(self):
        recorder = search(flat_dip_explode(3e-3))
        bisection, grid = recorder.batches[:-1], recorder.batches[-1]
        assert bisection == [[0.0, 1e-2], [1e-4], [1e-3]]
        assert grid == [2e-3, 5e-3, 8e-3]
        assert best_radius(recorder.costs) == 2e-3
        assert recorder.remark == ""

    def test_a_decade_below_where_the_smallest_of_the_grid_is_best(self):
        recorder = search(flat_dip_explode(8e-4))
        assert recorder.batches[-2:] == [[2e-3, 5e-3, 8e-3], [2e-4, 5e-4, 8e-4]]
        assert best_radius(recorder.costs) == 8e-4

    def test_several_at_once_need_fewer_rounds(self):
        one, four = (search(flat_dip_explode(3e-3), width=width) for width in (1, 4))
        assert len(four.batches) < len(one.batches)
        assert max(map(len, four.batches[1:])) <= 4

    @given(bits=st.integers(0, 2**9 - 1))
    def test_ends_whatever_it_is_told(self, bits):
        def cost(rho):
            if rho == 0:
                return BASELINE_LOSS
            return BASELINE_LOSS + ((bits >> round(math.log10(rho)) % 9) & 1) - 0.5

        asked = search(cost).asked
        assert len(set(asked)) == len(asked) <= 1 + 4 * (HIGHEST - LOWEST + 1)

    def test_a_radius_that_never_matters_costs_little(self):
        recorder = search(lambda rho: BASELINE_LOSS)
        assert len(recorder.asked) <= MOST
        assert best_radius(recorder.costs) == 8 * 10**HIGHEST

    def test_one_exponent(self):
        assert search(flat_dip_explode(0.02), -2, -2).asked == (0, 0.01, 0.02, 0.05, 0.08)


class TestRemarks:
    @pytest.mark.parametrize(
        ("optimum", "remark"),
        [(1e-8, "range should begin lower"), (1e-6, "smallest"), (1e-3, ""), (1e3, "largest")],
    )
    def test_of_the_range(self, optimum, remark):
        found = search(flat_dip_explode(optimum)).remark
        assert remark in found
        assert bool(remark) == bool(found)

    def test_nothing_bearable(self):
        recorder = search(lambda rho: math.inf if rho else BASELINE_LOSS)
        assert best_radius(recorder.costs) is None
        assert len(recorder.asked) <= 1 + math.ceil(math.log2(HIGHEST - LOWEST + 2))

    @pytest.mark.parametrize("most", [2, 3, 5, 20])
    def test_limit_on_runs(self, most):
        recorder = Recorder(flat_dip_explode(3e-3))
        remark = follow(order_then_grid(LOWEST, HIGHEST), recorder, most)
        assert len(recorder.asked) == min(most, 7)
        assert ("limit" in remark) == (most < 7)


class TestParts:
    @given(low=st.integers(-9, 5), gap=st.integers(2, 9), count=st.integers(1, 9))
    def test_spread_lies_strictly_between_without_doubles(self, low, gap, count):
        points = spread(low, low + gap, count)
        assert len(points) == min(count, gap - 1)
        assert points == sorted(set(points))
        assert low < points[0] <= points[-1] < low + gap

    def test_the_larger_of_equal_radii(self):
        assert best_radius({0.0: 1.0, 1e-3: 2.0, 1e-2: 2.0, 1e-1: math.inf}) == 1e-2

    def test_imports_neither_torch_nor_fairseq(self):
        package = Path(__file__).parents[3] / "fairseq_sam" / "experiments" / "search"
        for name in ("strategy", "trials", "summary", "training_command"):
            text = (package / f"{name}.py").read_text()
            assert "import torch" not in text
            assert "import fairseq\n" not in text
