"""``fairseq-sam spectrum``: its figures for trained models, and what it says when it cannot."""

import json
import math
from pathlib import Path
from typing import Any, Callable, Dict

import numpy as np
import pytest

from fairseq_sam.commands import main, spectrum_measurement
from tests.commands.help_examples import examples
from tests.fairseq_runs import Run

NUM_VALID = 8
PNG = b"\x89PNG"


@pytest.fixture(scope="module")
def trained(shared_fairseq_train: Callable[..., Run]) -> Run:
    """A translation model, two epochs of it, that recomputes its activations."""
    flags = (
        "--optimizer sam --criterion label_smoothed_cross_entropy --label-smoothing 0.1 "
        "--checkpoint-activations --share-decoder-input-output-embed --batch-size 48"
    )
    return shared_fairseq_train(flags, "--max-epoch 2 --save-interval 1", validate=True)


@pytest.fixture(scope="module")
def checkpoint(trained: Run) -> str:
    return str(trained.save_dir / "checkpoint2.pt")


def spectrum(*arguments: Any) -> int:
    return main(["spectrum", *map(str, arguments), "--cpu"])


@pytest.fixture
def figures(tmp_path: Path) -> Callable[..., Dict[str, Any]]:
    def run(*arguments: Any) -> Dict[str, Any]:
        path = tmp_path / "figures.json"
        assert spectrum(*arguments, "--json", path) == 0
        content: Dict[str, Any] = json.loads(path.read_text())
        return content

    return run


FEW = ("--top", 3, "--trace-samples", 2, "--max-sentences", 3)


class TestFigures:
    def test_two_checkpoints_printed_written_and_drawn(
        self, trained: Run, corpus: Path, figures: Any, tmp_path: Path, capsys: Any
    ) -> None:
        paths = [str(trained.save_dir / f"checkpoint{epoch}.pt") for epoch in (1, 2)]
        before = [Path(path).read_bytes() for path in paths]
        plot = tmp_path / "plot.png"
        found = figures(corpus, *paths, *FEW, "--plot", plot)
        captured = capsys.readouterr()
        assert found["matrix"] == "hessian"
        assert found["unit"] == "nats per unit"
        assert found["tolerance"] == 1e-3
        assert [result["checkpoint"] for result in found["checkpoints"]] == paths
        for result in found["checkpoints"]:
            assert result["num_sentences"] == 3
            assert result["eigenvalues"] == sorted(result["eigenvalues"], reverse=True)
            assert result["trace"]["standard_error"] > 0
            assert f"{result['eigenvalues'][2]:.5g}" in captured.out
            assert f"{result['trace']['mean']:.5g}" in captured.out
            assert f"{result['num_weights']} weights" in captured.out
        assert captured.err == ""
        assert plot.read_bytes().startswith(PNG)
        assert [Path(path).read_bytes() for path in paths] == before

    def test_loss_is_the_one_of_validation(
        self, trained: Run, checkpoint: str, corpus: Path, figures: Any
    ) -> None:
        (result,) = figures(corpus, checkpoint, "--top", 1, "--trace-samples", 1)["checkpoints"]
        assert result["num_sentences"] == NUM_VALID
        bits = trained.values("loss", "valid")[-1]
        assert result["loss"] / math.log(2) == pytest.approx(bits, abs=2e-3)

    @pytest.mark.parametrize("matrix", ["empirical-fisher", "fisher"])
    def test_fishers(
        self, matrix: str, checkpoint: str, corpus: Path, figures: Any, tmp_path: Path
    ) -> None:
        plot = tmp_path / "plot.pdf"
        flags = ("--matrix", matrix, "--top", 20, "--density", "--plot", plot)
        (result,) = figures(corpus, checkpoint, *flags)["checkpoints"]
        values = result["eigenvalues"]
        draws = 2 if matrix == "fisher" else 1
        positive = sum(value > 1e-6 * values[0] for value in values)
        assert positive == NUM_VALID * draws
        assert sum(values) == pytest.approx(result["trace"]["mean"], rel=1e-5)
        assert (result["trace"]["standard_error"] == 0) == (matrix == "empirical-fisher")
        assert sum(result["density"]["weights"]) == pytest.approx(1)
        assert plot.read_bytes().startswith(b"%PDF")

    def test_gradients_that_do_not_fit_into_memory(
        self, checkpoint: str, corpus: Path, figures: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        flags = (corpus, checkpoint, "--matrix", "fisher", "--top", 5)
        whole = figures(*flags)["checkpoints"][0]
        monkeypatch.setattr(spectrum_measurement, "free_memory", lambda: 1000)
        parts = figures(*flags)["checkpoints"][0]
        assert parts["eigenvalues"] == pytest.approx(whole["eigenvalues"], rel=1e-5)

    def test_density_of_the_hessian(self, checkpoint: str, corpus: Path, figures: Any) -> None:
        (result,) = figures(corpus, checkpoint, *FEW, "--density")["checkpoints"]
        nodes, weights = (np.array(result["density"][key]) for key in ("nodes", "weights"))
        trace = weights @ nodes * result["num_weights"]
        assert trace == pytest.approx(result["trace"]["mean"], rel=0.5)
        assert nodes[-1] == pytest.approx(result["eigenvalues"][0], rel=1e-2)

    def test_seed_repeats(self, checkpoint: str, corpus: Path, figures: Any) -> None:
        flags = (corpus, checkpoint, "--matrix", "fisher", "--top", 2, "--max-sentences", 3)
        one, two, three = (figures(*flags, "--seed", seed)["checkpoints"] for seed in (1, 1, 2))
        assert one == two
        assert one != three

    def test_criterion_of_another_kind(self, checkpoint: str, corpus: Path, figures: Any) -> None:
        own, other = (
            figures(corpus, checkpoint, *FEW, *flags)["checkpoints"][0]
            for flags in ((), ("--criterion", "cross_entropy"))
        )
        assert own["loss"] != other["loss"]
        assert own["eigenvalues"] != other["eigenvalues"]


class TestErrors:
    @pytest.fixture
    def one_line(self, failing: Any) -> Callable[..., str]:
        return lambda *arguments: failing("spectrum", *arguments, "--cpu")

    @pytest.mark.parametrize("matrix", ["hessian", "fisher"])
    def test_more_eigenvalues_than_weights(
        self, matrix: str, one_line: Any, checkpoint: str, corpus: Path
    ) -> None:
        error = one_line(corpus, checkpoint, "--top", 100000, "--matrix", matrix)
        assert "--top 100000" in error
        assert "weights" in error

    def test_criterion_without_sentences(
        self, one_line: Any, checkpoint: str, corpus: Path
    ) -> None:
        flags = ("--matrix", "fisher", "--criterion", "adaptive_loss")
        assert "has no per-sentence losses" in one_line(corpus, checkpoint, *flags)

    def test_tolerance_that_is_not_reached(
        self, one_line: Any, checkpoint: str, corpus: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("fairseq_sam.analysis.eigenvalues._MOST_PRODUCTS", 1)
        error = one_line(corpus, checkpoint, *FEW, "--tolerance", 1e-9)
        assert "eigenvalues were found to a tolerance of 1e-09" in error

    def test_warns_of_memory(
        self, checkpoint: str, corpus: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
    ) -> None:
        monkeypatch.setattr(spectrum_measurement, "free_memory", lambda: 1000)
        assert spectrum(corpus, checkpoint, *FEW) == 0
        error = capsys.readouterr().err
        assert "warning: the Lanczos vectors take" in error
        assert "--top" in error

    @pytest.mark.parametrize(
        "flags",
        ["--top 0", "--top x", "--tolerance 0", "--tolerance nan", "--trace-samples 0",
         "--samples 0", "--matrix gauss", "--max-tokens 0", "--plot x.doc"],
    )  # fmt: skip
    def test_misuse(self, flags: str, misused: Any) -> None:
        assert flags.split()[0] in misused("spectrum", "data", "checkpoint.pt", *flags.split())


def test_examples_of_help_run(
    trained: Run, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("data-bin").symlink_to(corpus)
    Path("checkpoints").mkdir()
    for name in ("checkpoints/checkpoint_best.pt", "adam.pt", "ga_sam.pt"):
        Path(name).symlink_to(trained.save_dir / "checkpoint2.pt")
    lines = examples("spectrum", capsys)
    assert len(lines) == 3
    for arguments in lines:
        shorter = ["--top", "2", "--trace-samples", "2", "--max-sentences", "2", "--cpu"]
        assert main([*arguments, *shorter]) == 0
    assert Path("spectrum.pdf").exists()
    assert Path("fisher.json").exists()
