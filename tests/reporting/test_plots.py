"""What plots are made of: styles, logarithmic axes, contours; and what each of them shows."""

import doctest
import json
import math
import runpy
import sys

import numpy as np
import pytest

from fairseq_sam.reporting import (
    landscape_plot,
    numbers,
    print_style,
    risk_plot,
    robustness_plot,
    runs_plot,
    spectrum_plot,
    sts_plot,
)
from fairseq_sam.reporting.runs import Run
from fairseq_sam.reporting.train_log import EpochLog
from tests.fairseq_runs import ROOT

pytest.importorskip("matplotlib")


@pytest.mark.parametrize("module", [landscape_plot, numbers, print_style, runs_plot])
def test_examples(module):
    result = doctest.testmod(module)
    assert result.attempted > 0
    assert result.failed == 0


def test_lines_look_different():
    looks = {tuple(print_style.line_style(index).values()) for index in range(49)}
    assert len(looks) == 49


class TestLogScale:
    @pytest.mark.parametrize(
        ("values", "wanted"),
        [([1.05, 15.8], ["2", "3", "10"]), ([0.55, 10], ["0.6", "1", "2"]),
         ([23.0, 180.0], ["30", "100"]),
         ([5e3, 5e5], ["$\\mathdefault{10^{4}}$", "$\\mathdefault{10^{5}}$"]),
         ([2e-4, 1e-3], ["$\\mathdefault{10^{-3}}$"])],
    )  # fmt: skip
    def test_numbers_are_there_and_short(self, tmp_path, values, wanted):
        with print_style.figure_file(tmp_path / "plot.png", 1) as (figure, (axis,)):
            axis.plot([0, 1], values)
            print_style.use_log_scale(axis)
            figure.canvas.draw()
            shown = {label.get_text() for label in axis.get_yticklabels(which="both")}
        assert shown.issuperset(wanted)


class TestContourLevels:
    def test_rings_of_a_bowl_are_even(self):
        levels = landscape_plot.contour_levels([[1 + r**2 for r in (0.0, 1.0, 4.0)]], count=4)
        assert [math.sqrt(level - 1) for level in levels] == pytest.approx([0, 1, 2, 3, 4])

    @pytest.mark.parametrize("losses", [[[2.0, 2.0]], [[0.0, 0.0]], [[math.nan, math.nan]]])
    def test_levels_increase_where_losses_do_not(self, losses):
        levels = landscape_plot.contour_levels(losses)
        assert levels == sorted(set(levels))

    def test_what_is_not_finite_is_left_out(self):
        assert landscape_plot.contour_levels([[1.0, math.nan], [5.0, 1.0]], 2) == [1.0, 2.0, 5.0]


@pytest.fixture
def drawn(monkeypatch, tmp_path):
    """``drawn(write, …)``: calls what writes a picture; the figure, which was laid out."""

    def draw(write, *arguments):
        kept = []

        def keep(figure, path):
            figure.canvas.draw()
            kept.append(figure)

        monkeypatch.setattr(print_style, "_save", keep)
        write(*arguments)
        return kept[0]

    return draw


def looks(axis):
    """Colour and marker of each line with a name."""
    return {
        line.get_label(): (line.get_color(), line.get_marker())
        for line in axis.get_lines()
        if not line.get_label().startswith("_")
    }


def x_numbers(axis):
    """The numbers that stand at an x axis, of the ticks within its limits."""
    low, high = axis.get_xlim()
    ticks = zip(axis.get_xticks(), axis.get_xticklabels())
    return [label.get_text() for place, label in ticks if low <= place <= high]


def test_runs_with_a_share_are_not_without_perturbation():
    runs = [
        made_run("adam", shift=1.0),
        *(made_run(f"sam@{x}", x, 1, method="sam share") for x in (0.05, 0.1)),
        made_run("sam@0.01", 0.01, 1, method="sam"),
    ]
    assert runs_plot.radius_curves(runs) == {"sam": {0.05: [4.7], 0.1: [4.7]}}


def made_run(name, radius=None, start=None, num_epochs=3, shift=0.0, method="ga_sam"):
    epochs = []
    for epoch in range(1, num_epochs + 1):
        on = start is not None and epoch >= start
        train = {"perturbation_on": 1.0, "sharpness": 0.1 + shift} if on else {}
        epochs.append(EpochLog(epoch, train, {"loss": 5 - epoch / 10 + shift}))
    return Run(name, epochs, {}, radius, method if radius else "")


class TestReport:
    RUNS = tuple(
        made_run(f"{name}/seed{seed}", radius, start, shift=shift + seed / 50)
        for seed in (1, 2)
        for name, radius, start, shift in (
            ("adam", None, None, 0.0),
            ("ga_sam@0.0002", 2e-4, 2, -0.1),
            ("ga_sam@0.001", 1e-3, 2, 0.1),
            ("ga_sam@0.005", 5e-3, 3, 0.3),
        )
    )

    @pytest.fixture
    def axes(self, drawn, tmp_path):
        path = tmp_path / "plot.png"
        return drawn(runs_plot.write_plot, self.RUNS, path, "title", "/seed[0-9]").axes

    def test_a_run_looks_the_same_in_all_panels(self, axes):
        loss, difference, sharpness, by_radius = axes
        assert len(set(looks(loss).values())) == 4
        assert looks(loss) == looks(difference) == looks(sharpness)
        points = {
            (line.get_xdata()[0], line.get_color(), line.get_marker())
            for line in by_radius.get_lines()
            if len(line.get_xdata()) == 1
        }
        radii = {"ga_sam@0.0002": 2e-4, "ga_sam@0.001": 1e-3, "ga_sam@0.005": 5e-3}
        assert points == {(radius, *looks(loss)[name]) for name, radius in radii.items()}
        without = looks(by_radius)["adam, without perturbation"]
        assert without[0] == looks(loss)["adam"][0]

    def test_groups_without_perturbation_are_not_averaged(self, drawn, tmp_path):
        r_drop = [made_run(f"r_drop/seed{seed}", None, None, shift=-0.5) for seed in (1, 2)]
        runs = [*self.RUNS, *r_drop]
        path = tmp_path / "plot.png"
        axis = drawn(runs_plot.write_plot, runs, path, "title", "/seed[0-9]").axes[-1]
        lines = {line.get_label(): line.get_ydata()[0] for line in axis.get_lines()}
        for name in ("adam", "r_drop"):
            losses = [run.best_valid_loss() for run in runs if run.name.startswith(name)]
            assert lines[f"{name}, without perturbation"] == pytest.approx(sum(losses) / 2)

    def test_starts_are_labelled(self, axes):
        texts = {text.get_text(): text.xy[0] for text in axes[0].texts}
        assert texts == {"perturbed from epoch 2": 1.5, "perturbed from epoch 3": 2.5}

    def test_bands_are_explained(self, axes):
        names = [text.get_text() for text in axes[0].get_legend().get_texts()]
        assert names[-1] == "± standard deviation over runs"

    def test_no_bands_of_single_runs(self, drawn, tmp_path):
        figure = drawn(runs_plot.write_plot, self.RUNS[:4], tmp_path / "plot.png")
        names = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
        assert names == [run.name for run in self.RUNS[:4]]

    def test_radii_have_numbers_of_their_own(self, axes):
        assert x_numbers(axes[-1]) == ["2e-4", "0.001", "0.005"]
        assert "ga_sam, mean by radius" in looks(axes[-1])

    def test_one_epoch(self, drawn, tmp_path):
        runs = [
            made_run(name, 1e-3, 1, num_epochs=1, shift=shift)
            for name, shift in (("a/seed1", 0.1), ("a/seed2", 0.2), ("b/seed1", 0.2))
        ]
        figure = drawn(runs_plot.write_plot, runs, tmp_path / "plot.png", None, "/seed[0-9]")
        for axis in figure.axes:
            assert x_numbers(axis) == ["1"]
            low, high = axis.get_xlim()
            assert low < 0.5 < 1 < high  # the start's line as well
            assert all(marker not in ("", "None") for _, marker in looks(axis).values())
        # A band of one epoch has no width: it is a bar.
        assert figure.axes[0].containers

    def test_methods_whose_names_begin_alike(self):
        runs = [
            made_run(f"sam{number}", radius, method=method)
            for number, (method, radius) in enumerate(
                [("sam", 1e-3), ("sam", 1e-2), ("asam", 0.1), ("asam", 0.5)]
            )
        ]
        assert sorted(map(sorted, runs_plot.radius_curves(runs).values())) == [
            [1e-3, 1e-2],
            [0.1, 0.5],
        ]


class TestLandscape:
    AXIS = (-0.5, 0.0, 0.5, 1.0, 1.5)

    def figures(self):
        height = (-1.0, -0.5, 0.0, 0.5, 1.0)
        losses = [[2 + (x - 0.5) ** 2 + 50 * y**4 for y in height] for x in self.AXIS]
        radii = [(0.05, 0.3), (0.1, 0.5), (0.2, 0.9)]
        sharpness = [
            {
                "name": name,
                "radii": [{"radius": r, "mean": m, "standard_error": 0.1} for r, m in radii],
            }
            for name in ("adam", "sam")
        ]
        labels = ["position between the checkpoints", "filter-normalised direction 1"]
        return {
            "names": ["adam", "sam"],
            "subset": "valid",
            "unit": "nats per token",
            "m": 16,
            "surface": {"labels": labels, "axes": [self.AXIS, height], "losses": losses},
            "m_sharpness": sharpness,
        }

    def test_checkpoints_look_the_same_and_bars_are_apart(self, drawn, tmp_path):
        figure = drawn(landscape_plot.write_landscape_plot, self.figures(), tmp_path / "plot.png")
        plane, sharpness = figure.axes[:2]
        models = [line for line in plane.get_lines() if len(line.get_xdata()) == 1]
        lines = [container.lines[0] for container in sharpness.containers]
        assert [(m.get_color(), m.get_marker()) for m in models] == [
            (line.get_color(), line.get_marker()) for line in lines
        ]
        for first, second in zip(*(line.get_xdata() for line in lines)):
            assert 0.001 < second - first < 0.003
        assert x_numbers(sharpness) == ["0.05", "0.1", "0.2"]
        assert "standard errors over mini-batches" in sharpness.get_xlabel()

    def test_most_levels_are_where_the_models_are(self, drawn, tmp_path):
        pytest.importorskip("matplotlib", minversion="3.8")  # an older one does not tell its levels
        figure = drawn(landscape_plot.write_landscape_plot, self.figures(), tmp_path / "plot.png")
        levels = figure.axes[0].collections[0].levels
        near = 2 + 0.25 + 50 * 0.5**4 + 1.0  # a corner of the neighbourhood, and a little more
        assert sum(level <= near for level in levels) >= 8
        assert levels[-1] == pytest.approx(53)  # nothing is left blank

    def test_one_radius(self, drawn, tmp_path):
        figures = self.figures()
        del figures["surface"]
        for each in figures["m_sharpness"]:
            each["radii"] = each["radii"][:1]
        (axis,) = drawn(landscape_plot.write_landscape_plot, figures, tmp_path / "plot.png").axes
        assert axis.get_xlim() == pytest.approx((0.025, 0.075))


class TestSpectrum:
    @pytest.mark.parametrize("number", [1, 3, 12])
    def test_ranks_are_whole_numbers(self, drawn, tmp_path, number):
        spectra = {"adam": [1.0 / (k + 1) for k in range(number)]}
        figure = drawn(
            spectrum_plot.write_spectrum_plot, spectra, {}, "Hessian", tmp_path / "plot.png"
        )
        numbers = x_numbers(figure.axes[0])
        assert numbers
        assert all(text.isdigit() for text in numbers)

    def test_a_checkpoint_looks_the_same_in_both_panels(self, drawn, tmp_path):
        grid = np.linspace(-1, 1, 50)
        spectra = {"adam": [3.0, 2.0], "sam": [2.0, 1.0]}
        densities = {name: (grid, np.exp(-(grid**2))) for name in spectra}
        arguments = (spectra, densities, "Hessian", tmp_path / "plot.png")
        first, second = drawn(spectrum_plot.write_spectrum_plot, *arguments).axes
        assert looks(first) == looks(second)


def test_robustness_bars_are_apart_and_explained(drawn, tmp_path):
    def checkpoint(name):
        points = [{"radius": r, "loss": {"mean": 2 + r, "standard_error": 0.1}} for r in (0.1, 0.2)]
        return {"name": name, "clean": {"loss": 2.0}, "corrupted": points}

    figures = {
        "checkpoints": [checkpoint("adam"), checkpoint("sam")],
        "unit": "nats per token",
        "norm": "l2",
        "corruption": "random",
        "draws": 5,
        "subset": "test",
    }
    write = robustness_plot.write_robustness_plot
    (axis,) = drawn(write, figures, tmp_path / "plot.png").axes
    first, second = (container.lines[0].get_xdata() for container in axis.containers)
    assert all(0 < b - a < 0.005 for a, b in zip(first, second))
    assert "standard errors over 5 draws" in axis.get_xlabel()
    assert x_numbers(axis) == ["0", "0.1", "0.2"]
    figures["corruption"] = "adversarial"
    for each in figures["checkpoints"]:
        for point in each["corrupted"]:
            point["loss"]["standard_error"] = None
    (axis,) = drawn(write, figures, tmp_path / "plot.png").axes
    first, second = (container.lines[0].get_xdata() for container in axis.containers)
    assert list(first) == list(second)
    assert "bars" not in axis.get_xlabel()


class TestAblation:
    @pytest.fixture
    def axes_of(self, drawn, tmp_path, monkeypatch):
        """``axes_of(scores)`` draws these methods with two seeds each."""

        def draw(scores, *more):
            runs = [tmp_path / "runs" / name / f"seed{seed}" for name in scores for seed in (1, 2)]
            for run in runs:
                run.mkdir(parents=True)
                score = scores[run.parent.name] + int(run.name[-1]) / 10
                (run / "scores.json").write_text(json.dumps({"name": "Accuracy", "score": score}))
            flags = ["--runs", *map(str, runs), "--metric", "Accuracy", "--radius", "1e-4"]
            flags += [*more, "--out", str(tmp_path / "plot.png")]
            monkeypatch.setattr(sys, "argv", ["ablation_plot.py", *flags])
            program = runpy.run_path(str(ROOT / "scripts" / "ablation_plot.py"))
            return drawn(program["main"]).axes

        return draw

    @pytest.fixture
    def axes(self, axes_of):
        scores = {"baseline": 84.0, "ga_sam": 86.0, "ga_sam_k2": 85.0, "ga_sam@2e-4": 70.0}
        return axes_of(scores, "--paper", "textcnn_imdb_ablation")

    def test_shares_are_left_out(self, axes_of):
        scores = {"baseline": 84.0, "ga_sam@5%": 86.0, "ga_sam_l2@5%": 86.0, "ga_sam@2e-4": 85.0}
        (line,), radii, l2 = (
            [c.lines[0].get_xdata().tolist() for c in axis.containers]
            for axis in axes_of({**scores, "ga_sam": 86.5})
        )
        assert (line, radii, l2) == ([1.0], [[1e-4, 2e-4]], [])

    def test_shares_alone(self, axes_of):
        axes = axes_of({"baseline": 84.0, "sam": 84.5, "ga_sam@5%": 86.0})
        assert not any(axis.containers for axis in axes)

    def test_the_papers_spread_is_drawn(self, axes):
        for axis in axes:
            paper = next(c for c in axis.containers if c.get_label() == "paper")
            lengths = [high - low for (_, low), (_, high) in paper.lines[2][0].get_segments()]
            assert all(length > 0 for length in lengths)

    def test_axes_have_ticks(self, axes):
        for axis in axes:
            low, high = axis.get_ylim()
            ticks = [place for place in axis.get_yticks() if low <= place <= high]
            assert {-10, -5, -2, -1, 0, 1, 2} <= set(ticks)
            assert len(x_numbers(axis)) >= 4


def test_risk(drawn, tmp_path):
    def checkpoint(name, clean, growth):
        figures = {"clean": clean, "adversarial": clean + growth, "difference": growth}
        estimates = {k: {"mean": v, "standard_error": 0.1} for k, v in figures.items()}
        return {"name": name, **estimates}

    figures = {
        "checkpoints": [checkpoint("adam", 60.0, 9.0), checkpoint("sam", 61.0, 7.0)],
        "unit": "nats per sentence",
        "rho": 0.1,
        "norm": "l2",
        "subset": "valid",
    }
    figure = drawn(risk_plot.write_risk_plot, figures, tmp_path / "plot.png")
    losses, differences = figure.axes
    colours = [container.lines[0].get_color() for container in losses.containers]
    assert colours[0] == colours[1] != colours[2] == colours[3]
    assert [c.lines[0].get_color() for c in differences.containers] == colours[::2]
    assert [label.get_text() for label in losses.get_yticklabels()] == ["adam", "sam"]
    assert differences.get_xlim()[0] == 0


def test_textual_similarity_has_a_marker_a_checkpoint_in_each_column(tmp_path, drawn):
    checkpoints = [
        {"name": name, "sets": {"STS12": {"all": 60.0}, "SICK-R": {"all": value}}, "average": 61.0}
        for name, value in (("adam", 62.0), ("sam", None))
    ]
    figure = drawn(sts_plot.write_sts_plot, {"checkpoints": checkpoints}, tmp_path / "plot.png")
    (axis,) = figure.axes
    adam, sam = axis.lines
    assert list(adam.get_ydata()) == [60.0, 62.0, 61.0]
    assert math.isnan(sam.get_ydata()[1])
    assert all(one < other for one, other in zip(adam.get_xdata(), sam.get_xdata()))
    labels = [label.get_text() for label in axis.get_xticklabels()]
    assert labels == ["STS12", "SICK-R", "average"]
