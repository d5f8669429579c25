"""``fairseq-sam shift``: its figures, both claims of the paper, and what it says when it cannot."""

import json
import re
import sys
from pathlib import Path
from typing import Any, Callable, Dict

import numpy as np
import pytest

from fairseq_sam.commands import main
from fairseq_sam.flags import number_types
from tests.conftest import REAL_DATA
from tests.idx_files import write_idx, write_mnist

QUICK = ("--trials", 4, "--max-steps", 500, "--weight-decay", 0.01)


@pytest.fixture
def mnist(tmp_path: Path) -> Path:
    directory = tmp_path / "mnist"
    directory.mkdir()
    return write_mnist(directory)


def shift(*arguments: Any) -> int:
    return main(["shift", *map(str, arguments)])


class TestFigures:
    def test_printed_written_and_drawn(self, mnist: Path, tmp_path: Path, capsys: Any) -> None:
        pytest.importorskip("matplotlib")
        written, drawn = tmp_path / "shift.json", tmp_path / "shift.png"
        assert shift("--data", mnist, *QUICK, "--json", written, "--plot", drawn) == 0
        captured = capsys.readouterr()
        figures = json.loads(written.read_text())
        assert figures["shares"] == [0.25, 0.5, 0.75, 1.0]
        assert (figures["num_train"], figures["num_test"]) == (30, 20)
        lengths, fit = figures["lengths"], figures["fit"]
        slope, intercept = np.polyfit(figures["shares"], lengths, 1)
        assert (fit["slope"], fit["intercept"]) == pytest.approx((slope, intercept))
        curves = figures["curves"]
        assert np.corrcoef(curves["shifted"], curves["test"])[0, 1] == pytest.approx(
            figures["correlation"]
        )
        assert min(curves["train"]) == curves["train"][curves["alphas"].index(1.0)]
        assert min(curves["test"]) == curves["test"][curves["alphas"].index(0.0)]
        printed = [float(text) for text in re.findall(r"-?\d+\.\d{4}", captured.out)]
        expected = [
            figures["correlation"], figures["unshifted_correlation"],
            intercept, slope, fit["r_squared"],
        ]  # fmt: skip
        assert printed == pytest.approx(expected, abs=6e-5)
        assert captured.err == ""
        assert drawn.read_bytes().startswith(b"\x89PNG")
        assert {path.name for path in tmp_path.iterdir()} == {"mnist", "shift.json", "shift.png"}

    def test_repeats_and_depends_on_the_seed(self, mnist: Path, tmp_path: Path) -> None:
        def lengths(*flags: Any) -> Any:
            assert shift("--data", mnist, *QUICK, *flags, "--json", tmp_path / "s.json") == 0
            return json.loads((tmp_path / "s.json").read_text())["lengths"]

        assert lengths("--mixture", "drawn") == lengths("--mixture", "drawn")
        assert lengths("--seed", 2) != lengths()

    def test_max_examples(self, mnist: Path, capsys: Any) -> None:
        assert shift("--data", mnist, *QUICK, "--max-examples", 25) == 0
        assert "25 training and 20 test images" in capsys.readouterr().out

    def test_steps_that_ran_out_are_told(self, mnist: Path, capsys: Any) -> None:
        assert shift("--data", mnist, *QUICK[:2], "--max-steps", 3) == 0
        assert "--max-steps" in capsys.readouterr().err


def figures_of(tmp_path: Path, *arguments: Any) -> Dict[str, Any]:
    written = tmp_path / "shift.json"
    assert shift(*arguments, "--json", written) == 0
    content: Dict[str, Any] = json.loads(written.read_text())
    return content


@pytest.mark.slow
class TestClaims:
    """GA-SAM §2.4: the shifted training loss follows the test loss; ‖δ‖₂ is about linear in η."""

    def test_scikit_learn(self, tmp_path: Path) -> None:
        pytest.importorskip("sklearn")
        self.check(figures_of(tmp_path, "--trials", 10))

    @pytest.mark.skipif(not (REAL_DATA / "mnist").is_dir(), reason="MNIST is not there")
    def test_mnist(self, tmp_path: Path) -> None:
        self.check(figures_of(tmp_path, "--data", REAL_DATA / "mnist", "--trials", 20))

    @staticmethod
    def check(figures: Dict[str, Any]) -> None:
        assert figures["correlation"] > 0.9 > figures["unshifted_correlation"]
        assert figures["fit"]["r_squared"] > 0.9
        assert abs(figures["fit"]["intercept"]) < 0.2 * figures["fit"]["slope"]


class TestErrors:
    def test_decay_that_leaves_no_weights(self, mnist: Path, capsys: Any, monkeypatch: Any) -> None:
        monkeypatch.setattr(number_types, "LARGEST_RADIUS", 1e30)
        assert shift("--data", mnist, "--trials", 3, "--weight-decay", 1e30) == 1
        captured = capsys.readouterr()
        assert captured.err.startswith("fairseq-sam shift: error: --weight-decay 1e+30: ")
        assert captured.err.count("\n") == 1

    @pytest.fixture
    def one_line(self, failing: Any) -> Callable[..., str]:
        return lambda *arguments: failing("shift", *arguments)

    def test_data(self, one_line: Any, mnist: Path, tmp_path: Path) -> None:
        assert "nowhere: no such directory" in one_line("--data", tmp_path / "nowhere")
        (mnist / "train-labels-idx1-ubyte").unlink()
        assert "no file is called *train*labels*" in one_line("--data", mnist)
        write_idx(mnist / "train-labels-idx1-ubyte", np.zeros((30, 1), np.uint8))
        assert "train-labels-idx1-ubyte: starts with 00000802" in one_line("--data", mnist)

    def test_without_scikit_learn(self, one_line: Any, monkeypatch: Any) -> None:
        monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
        assert "pip install scikit-learn" in one_line()

    def test_without_matplotlib(self, one_line: Any, monkeypatch: Any, tmp_path: Path) -> None:
        monkeypatch.setitem(sys.modules, "matplotlib", None)
        assert "pip install matplotlib" in one_line("--plot", tmp_path / "shift.png")

    def test_nowhere_to_write(self, one_line: Any, tmp_path: Path) -> None:
        for flag, name in (("--json", "shift.json"), ("--plot", "shift.png")):
            path = tmp_path / "absent" / name
            assert "its directory does not exist" in one_line(flag, path)

    @pytest.mark.parametrize(
        "flags",
        ["--trials 2", "--trials x", "--weight-decay 0", "--weight-decay inf", "--max-steps 0",
         "--max-examples 0", "--seed x", "--seed -1", "--mixture none", "--plot shift.gif"],
    )  # fmt: skip
    def test_misuse(self, flags: str, misused: Any) -> None:
        assert flags.split()[0] in misused("shift", *flags.split())
