"""What plots are made of: styles, logarithmic axes, contours."""

import doctest
import math

import pytest

from fairseq_sam.reporting import deviation, landscape_plot, print_style

pytest.importorskip("matplotlib")


@pytest.mark.parametrize("module", [deviation, landscape_plot, print_style])
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
        [([1.05, 15.8], ["2", "3", "10"]), ([23.0, 180.0], ["30", "100"]),
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
