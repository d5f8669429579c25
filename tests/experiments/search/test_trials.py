"""One run of a search: its log, its result, and when it is hopeless."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fairseq_sam.experiments.search.trials import (
    FINISHED,
    Result,
    StopRule,
    Trial,
    best_value,
    hopeless,
    parse_validations,
    read_result,
    read_validations,
    write_result,
)

RULE = StopRule(margin=0.1, patience=2)
BASELINE = {10: 5.0, 20: 4.0, 30: 3.0}


class TestHopeless:
    @pytest.mark.parametrize(
        ("run", "verdict"),
        [
            ({}, None),
            ({10: 5.4, 20: 4.3, 30: 3.2}, None),
            ({10: 9.0}, None),
            ({10: 9.0, 20: 4.1, 30: 9.0}, None),
            ({10: 5.6, 20: 4.5}, "4.5 after 20 updates, the baseline 4"),
            ({10: 5.0, 20: 4.0, 30: math.nan}, "nan after 30 updates"),
            ({10: math.inf}, "inf after 10 updates"),
        ],
    )
    def test_worse_twice_in_a_row_or_no_number(self, run, verdict):
        assert hopeless(run, BASELINE, RULE, maximise=False) == verdict

    def test_the_best_so_far_counts_on_both_sides(self):
        worsening = {10: 3.0, 20: 9.0, 30: 9.0}
        assert hopeless(worsening, BASELINE, RULE, maximise=False) is None
        overfitting = {10: 3.0, 20: 9.0, 30: 9.0}
        assert hopeless({10: 4.0, 20: 4.0, 30: 4.0}, overfitting, RULE, maximise=False)

    def test_nothing_is_compared_beyond_the_baseline(self):
        run = {10: 9.0, 20: 9.0, 30: 9.0}
        assert hopeless(run, {10: 5.0}, RULE, maximise=False) is None
        assert hopeless(run, {}, RULE, maximise=False) is None
        assert hopeless(run, {10: 5.0, 25: 4.0}, RULE, maximise=False)

    def test_maximised(self):
        baseline = {10: 20.0, 20: 30.0}
        assert hopeless({10: 15.0, 20: 20.0}, baseline, RULE, maximise=True)
        assert hopeless({10: 19.0, 20: 28.0}, baseline, RULE, maximise=True) is None
        assert hopeless({10: 40.0, 20: 50.0}, baseline, RULE, maximise=True) is None

    @given(
        values=st.lists(st.floats(0.1, 10), min_size=1, max_size=6),
        gain=st.floats(0, 5),
    )
    def test_never_where_it_is_at_least_as_good(self, values, gain):
        baseline = dict(enumerate(values))
        run = {updates: value - gain for updates, value in baseline.items()}
        assert hopeless(run, baseline, StopRule(0.0, 1), maximise=False) is None


class TestLog:
    LINES = (
        'x | INFO | train_inner | {"epoch": 1, "update": 0.5, "loss": "9", "num_updates": "5"}',
        'x | INFO | valid | {"epoch": 1, "valid_loss": "5.1", "valid_num_updates": "10"}',
        'x | INFO | train | {"epoch": 1, "train_loss": "6", "train_num_updates": "12"}',
        'x | INFO | valid | {"epoch": 1, "valid_loss": "4.9", "valid_num_updates": "12"}',
        'x | INFO | other | {"epoch": 1, "other_loss": "1", "other_num_updates": "12"}',
        'x | INFO | valid | {"epoch": 2, "valid_loss": "nan", "valid_num_updates": "20"}',
        'x | INFO | valid | {"epoch": 2, "valid_loss": "4.0", "valid_num',
    )

    def test_every_validation_of_the_subset(self):
        found = parse_validations(self.LINES, "valid", "loss")
        assert list(found) == [10, 12, 20]
        assert (found[10], found[12]) == (5.1, 4.9)
        assert math.isnan(found[20])
        assert parse_validations(self.LINES, "other", "loss") == {12: 1.0}
        assert parse_validations(self.LINES, "valid", "bleu") == {}

    def test_best_of_finite_values(self):
        values = {1: 3.0, 2: math.nan, 3: 1.0, 4: math.inf}
        assert best_value(values, maximise=False) == 1.0
        assert best_value(values, maximise=True) == 3.0
        assert best_value({1: math.nan}, maximise=True) is None

    def test_no_log(self, tmp_path):
        assert read_validations(tmp_path / "train.log", "valid", "loss") == {}


class TestResult:
    def test_written_and_read(self, tmp_path):
        assert read_result(tmp_path) is None
        result = Result(FINISHED, 4.25, 30)
        write_result(result, tmp_path)
        assert read_result(tmp_path) == result
        assert [path.name for path in tmp_path.iterdir()] == ["result.json"]

    def test_every_trial_has_a_name_of_its_own(self):
        trials = [Trial(float(f"{d}e{m}"), s) for d in (1, 8) for m in (-6, 1) for s in (None, 1)]
        names = {trial.name for trial in [*trials, Trial(0.0), Trial(0.0, 1)]}
        assert len(names) == len(trials) + 2
        assert all("/" not in name and " " not in name for name in names)
