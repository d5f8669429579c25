"""Paired differences, against scipy and by hand."""

import doctest

import pytest

from fairseq_sam.commands import main
from fairseq_sam.reporting import comparison
from fairseq_sam.reporting.comparison import (
    comparison_table,
    differences,
    holm,
    paired_difference,
    relative_times,
)
from fairseq_sam.reporting.runs import Run
from fairseq_sam.reporting.scores import Score
from fairseq_sam.reporting.train_log import EpochLog
from tests.commands.test_report import json_line

stats = pytest.importorskip("scipy.stats")
BY_SEED = r"/seed\d+"


def run(name, score, *seconds, metric="BLEU"):
    epochs = [EpochLog(number, {"train_wall": each}) for number, each in enumerate(seconds, 1)]
    return Run(name, epochs, {metric: Score(score)})


def runs_of(**scores):
    return [
        run(f"{name}/seed{seed}", value)
        for name, values in scores.items()
        for seed, value in enumerate(values, 1)
    ]


def test_examples_of_the_docs():
    assert doctest.testmod(comparison).failed == 0


class TestPairedDifference:
    values, others = [30.1, 29.5, 31.0, 30.2, 30.6], [29.8, 29.6, 30.1, 30.0, 30.0]

    def test_against_scipy(self):
        found = paired_difference(self.values, self.others)
        test = stats.ttest_rel(self.values, self.others)
        assert found.p_value == pytest.approx(test.pvalue)
        interval = test.confidence_interval(0.95)
        assert (found.low, found.high) == pytest.approx((interval.low, interval.high))
        assert found.effect == pytest.approx(test.statistic / 5**0.5)

    def test_one_pair_has_no_interval(self):
        assert paired_difference([2.0], [1.0]) == (1, 1.0, None, None, None, None, None)

    def test_the_same_twice(self):
        found = paired_difference([2.0, 3.0], [2.0, 3.0])
        assert (found.mean, found.low, found.high, found.p_value) == (0, 0, 0, 1)
        assert found.effect is None

    @pytest.mark.parametrize(
        ("values", "others", "mean"),
        [
            ([24.3, 24.1], [24.0, 23.8], 0.3),
            ([75.5, 75.7, 76.1], [75.4, 75.6, 76.0], 0.1),
            ([3.0, 4.0], [2.0, 3.0], 1.0),
        ],
    )
    def test_of_equal_differences_nothing_is_known_but_their_mean(self, values, others, mean):
        found = paired_difference(values, others)
        assert found == (len(values), pytest.approx(mean), None, None, None, None, None)

    def test_a_run_that_diverged_has_no_interval(self):
        assert paired_difference([2.0, float("inf")], [2.0, 3.0]).low is None


class TestHolm:
    def test_by_hand(self):
        # 5 · 0.001, 4 · 0.012, 3 · 0.02; 2 · 0.02 would be less than that before; 0.9.
        assert holm([0.02, 0.001, 0.9, 0.012, 0.02]) == pytest.approx(
            [0.06, 0.005, 0.9, 0.048, 0.06]
        )

    def test_limits(self):
        assert holm([]) == []
        assert holm([0.03]) == [0.03]
        assert holm([0.6, 0.7]) == [1.0, 1.0]


class TestDifferences:
    def test_pairs_are_of_the_same_seed(self):
        # Of the second seed there is no run of sam; the order of the runs does not matter.
        runs = [*runs_of(baseline=[1.0, 5.0, 9.0]), run("sam/seed3", 9.5), run("sam/seed1", 1.5)]
        found = differences(runs, BY_SEED, "baseline", "BLEU")
        assert found["sam"][:2] == (2, 0.5)
        assert "baseline" not in found

    def test_correction_is_for_the_number_of_rows(self):
        runs = runs_of(
            baseline=[1.0, 2.0, 3.0], sam=[1.5, 2.4, 3.6], other=[1.1, 1.9, 3.0], one=[2.0]
        )
        found = differences(runs, BY_SEED, "baseline", "BLEU")
        expected = holm([found["sam"].p_value, found["other"].p_value])
        assert [found["sam"].corrected, found["other"].corrected] == expected
        assert found["one"].corrected is None

    def test_nothing_to_compare(self):
        runs = runs_of(sam=[1.0])
        assert differences(runs, BY_SEED, "baseline", "BLEU") == {}
        assert comparison_table(runs, BY_SEED, "baseline", ["BLEU"]) == ""

    def test_relative_times(self):
        # The fastest of each epoch: 20 + 10 s, and 40 + 40 s.
        runs = [run("baseline/seed1", 1, 20.0, 100.0), run("baseline/seed2", 1, 100.0, 10.0)]
        runs += [run("sam/seed1", 1, 40.0, 40.0), run("sam/seed2", 1)]
        found = relative_times(runs, BY_SEED, "baseline")
        assert found == pytest.approx({"baseline": 1, "sam": 8 / 3})
        assert relative_times([run("baseline/seed1", 1, 0.0)], BY_SEED, "baseline") == {}
        assert relative_times(runs, BY_SEED, "absent") == {}

    @pytest.mark.parametrize(("shortest", "expected"), [(10.0, 2.0), (8.0, 1.6)])
    def test_one_clock_measures_all(self, shortest, expected):
        """With 4 s of validation, which the updates per second count in."""
        runs = []
        for name, seconds in (("baseline/seed1", shortest), ("sam/seed1", 2 * shortest)):
            log = {"train_wall": seconds, "num_updates": 10.0, "ups": 10 / (seconds + 4)}
            runs.append(Run(name, [EpochLog(1, log)], {}))
        found = relative_times(runs, BY_SEED, "baseline")["sam"]
        assert found == pytest.approx(expected if shortest == 10 else 20 / 12)

    def test_table(self):
        runs = runs_of(baseline=[1.0, 2.0, 3.0], sam=[2.0, 3.1, 4.2], bad=[0.0, 1.2, 2.5])
        lines = comparison_table(runs, BY_SEED, "baseline", ["BLEU", "absent"]).splitlines()
        assert lines[0] == "| minus baseline | pairs | time (baseline = 1) | BLEU |"
        assert lines[2].startswith("| sam | 3 | – | +1.10 [+0.85, +1.35] p 0.005* d +11.0 |")
        assert "−0.77 [" in lines[3]

    def test_pairs_of_each_metric_are_told(self):
        runs = runs_of(baseline=[1.0, 2.0], sam=[2.0, 3.5])
        runs += [Run(f"{name}/seed3", [EpochLog(1)], {}) for name in ("baseline", "sam")]
        for each in runs:
            each.epochs.append(EpochLog(1, {}, {"loss": float(len(each.scores))}))
        assert "| sam | 2–3 |" in comparison_table(runs, BY_SEED, "baseline", ["BLEU"])

    def test_the_lowest_validation_loss_is_there_too(self):
        runs = runs_of(baseline=[1.0, 2.0], sam=[2.0, 3.0])
        for each, losses in zip(runs, ([3.0, 2.0], [3.0, 2.5], [1.5, 9.0], [2.0, 9.0])):
            for number, loss in enumerate(losses, 1):
                each.epochs.append(EpochLog(number, {}, {"loss": loss}))
        found = differences(runs, BY_SEED, "baseline", comparison.VALID_LOSS)
        assert found["sam"].mean == -0.5
        assert f"| {comparison.VALID_LOSS} |" in comparison_table(runs, BY_SEED, "baseline", [])


class TestCommand:
    @pytest.fixture
    def folders(self, tmp_path):
        found = []
        for name, shift in (("baseline", 0.0), ("sam", 1.0)):
            for seed in (1, 2, 3):
                folder = tmp_path / name / f"seed{seed}"
                folder.mkdir(parents=True)
                value = 20 + seed + shift * (1 + seed / 10)
                (folder / "scores.json").write_text(
                    f'[{{"name": "BLEU", "score": {value}}}, {{"name": "chrF2", "score": 1}}]'
                )
                (folder / "train.log").write_text(
                    json_line("train", 1, loss=2, train_wall=30 + 30 * shift, ups=9)
                )
                found.append(str(folder))
        return found

    def test_report(self, folders, tmp_path, capsys):
        pytest.importorskip("matplotlib")
        options = ["--group-by", "/seed[0-9]+", "--relative-to", str(tmp_path)]
        options += ["--metrics", "BLEU", "--against", "baseline,absent"]
        picture = tmp_path / "cost.png"
        assert main(["report", *folders, *options, "--cost-plot", str(picture)]) == 0
        text = capsys.readouterr().out
        assert "| sam | 3 | 2.00 | +1.20 [+0.95, +1.45] p 0.002* d +12.0 |" in text
        assert "chrF2" not in text
        assert "absent" not in text
        assert picture.stat().st_size > 0

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            (["--against", "baseline"], "--against needs --group-by"),
            (["--cost-plot", "x.png"], "--cost-plot needs --against and --metrics"),
        ],
    )
    def test_misuse(self, folders, capsys, options, message):
        assert main(["report", *folders, *options]) != 0
        assert message in capsys.readouterr().err


def test_pairs_are_told_apart_by_all_that_is_matched():
    """Folds and seeds: each run has its own partner."""
    runs = [
        run(f"{method}/fold{fold}/seed{seed}", 10 * fold + seed + gain)
        for method, gain in (("baseline", 0.0), ("sam", 1.0))
        for fold in (1, 2)
        for seed in (1, 2, 3)
    ]
    runs[-1] = run("sam/fold2/seed3", 26.0)  # gains 3
    found = differences(runs, r"/(fold|seed)\d+", "baseline", "BLEU")
    assert found["sam"].pairs == 6
    assert found["sam"].mean == pytest.approx(8 / 6)
