"""What a search says it has found."""

import json
import math

import pytest

from fairseq_sam.experiments.search.radius_plot import worst_shown, write_plot
from fairseq_sam.experiments.search.summary import Summary, as_json, markdown, rows_of
from fairseq_sam.experiments.search.training_command import TrainingCommand
from fairseq_sam.experiments.search.trials import DIVERGED, FINISHED, STOPPED, Result, Trial


def summary_of(values, maximise=False):
    """Takes the value of each seed by radius; None for a run that was given up."""
    results = {}
    for rho, seeds in values.items():
        for seed, value in enumerate(seeds):
            status = STOPPED if value is None else FINISHED
            reason = "" if value is not None else "too | bad"
            results[Trial(rho, seed)] = Result(status, value, 30, reason)
    command = TrainingCommand(("data",), "bleu" if maximise else "loss", maximise, "valid", True)
    return Summary(command, rows_of(results), "")


class TestBest:
    def test_least_mean(self):
        summary = summary_of({0.0: [4, 4], 0.1: [3.5, 3.7], 0.2: [3.4, 3.9]})
        assert summary.best.rho == 0.1
        assert summary.verdict == "best: --sam-rho 0.1 (loss 3.6, without perturbation 4)"

    def test_greatest_mean_where_more_is_better(self):
        summary = summary_of({0.0: [20], 0.1: [25], 0.2: [24]}, maximise=True)
        assert summary.best.rho == 0.1
        assert "no better" not in summary.verdict

    def test_a_radius_with_a_run_given_up_has_no_mean(self):
        summary = summary_of({0.0: [4, 4], 0.1: [3.9, 3.9], 0.2: [1.0, None]})
        assert summary.best.rho == 0.1

    @pytest.mark.parametrize(("value", "maximise"), [(4.0, False), (4.1, False), (3.9, True)])
    def test_no_better_than_the_baseline(self, value, maximise):
        summary = summary_of({0.0: [4.0], 0.1: [value]}, maximise)
        assert summary.verdict.endswith("that is no better than --sam-rho 0")

    def test_nothing_finished(self):
        summary = summary_of({0.0: [4.0], 0.1: [None]})
        assert summary.best is None
        assert "nothing is better" in summary.verdict
        assert as_json(summary)["rho"] is None


class TestShown:
    def test_table(self):
        lines = markdown(summary_of({0.0: [4.0], 0.1: [3.5], 0.2: [None]})).splitlines()
        assert lines[2] == "| 0 (baseline) | 4 | – | 30 | finished |"
        assert lines[3] == "| 0.1 | **3.5** | -0.5 | 30 | finished |"
        assert lines[4] == "| 0.2 | – | – | 30 | stopped: too / bad |"

    def test_json_is_strict(self):
        text = json.dumps(as_json(summary_of({0.0: [4.0], 0.1: [None]})), allow_nan=False)
        assert json.loads(text)["radii"][1]["mean"] is None

    def test_scale_shows_the_dip(self):
        summary = summary_of({0.0: [4.0], 0.1: [3.5], 0.2: [40.0]})
        assert worst_shown(summary) == pytest.approx(5.0)
        assert worst_shown(summary_of({0.1: [3.5]})) == math.inf
        maximised = summary_of({0.0: [20.0], 0.1: [25.0], 0.2: [1.0]}, maximise=True)
        assert -20 < worst_shown(maximised) < -1

    @pytest.mark.parametrize("maximise", [False, True])
    @pytest.mark.parametrize(
        "values",
        [
            {0.0: [4.0]},
            {0.0: [4.0], 0.1: [None]},
            {0.0: [4.0, 4.2], 0.1: [3.5, 3.6], 0.2: [40.0, 1.0], 0.5: [None, 2.0]},
        ],
    )
    def test_plot_of_whatever_there_is(self, tmp_path, values, maximise):
        write_plot(summary_of(values, maximise), tmp_path / "search.png")
        assert [path.name for path in tmp_path.iterdir()] == ["search.png"]

    def test_diverged_seeds_are_told(self):
        summary = summary_of({0.0: [4.0]})
        rows = rows_of({Trial(0.1): Result(DIVERGED, 5.0, 3, "FloatingPointError")})
        text = markdown(Summary(summary.command, [*summary.rows, *rows], "mind the range"))
        assert "diverged: FloatingPointError" in text
        assert text.endswith("- mind the range\n")
