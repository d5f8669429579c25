"""``fairseq-sam gradients``: its figures for trained models, and what it says when it cannot."""

import json
import shutil
from pathlib import Path
from typing import Any, Callable, List

import pytest

from fairseq_sam.commands import main
from fairseq_sam.perturbation.ascent import MEMORYLESS
from tests.commands.help_examples import examples
from tests.fairseq_runs import Run

PNG = b"\x89PNG"
LOG = """\
2026-01-01 | INFO | train | {"epoch": 1, "train_loss": "9.1", "train_gnorm": "2.5"}
2026-01-01 | INFO | train | {"epoch": 2, "train_loss": "8.1", "train_gnorm": "1.25"}
"""


@pytest.fixture(scope="module")
def trained(shared_fairseq_train: Callable[..., Run]) -> Run:
    flags = "--optimizer sam --criterion label_smoothed_cross_entropy --label-smoothing 0.1"
    return shared_fairseq_train(flags, "--max-epoch 2 --save-interval 1", validate=True)


@pytest.fixture(scope="module")
def checkpoint(trained: Run) -> str:
    return str(trained.save_dir / "checkpoint2.pt")


@pytest.fixture
def run_directory(tmp_path: Path) -> Path:
    directory = tmp_path / "run"
    directory.mkdir()
    (directory / "train.log").write_text(LOG)
    return directory


def gradients(*arguments: Any) -> int:
    return main(["gradients", *map(str, arguments), "--cpu"])


def printed_rows(capsys: Any) -> List[str]:
    """What was printed, without the heading."""
    return list(capsys.readouterr().out.splitlines()[1:])


class TestFigures:
    def test_phases_printed_written_and_drawn(
        self, trained: Run, corpus: Path, run_directory: Path, tmp_path: Path, capsys: Any
    ) -> None:
        paths = [str(trained.save_dir / f"checkpoint{epoch}.pt") for epoch in (1, 2)]
        written, plot = tmp_path / "norms.json", tmp_path / "norms.png"
        flags = ("--json", written, "--plot", plot, "--run", run_directory)
        assert gradients(corpus, *paths, *flags) == 0
        captured = capsys.readouterr()
        figures = json.loads(written.read_text())
        assert [result["checkpoint"] for result in figures["checkpoints"]] == paths
        assert figures["logged"] == [
            {"epoch": 1, "gnorm": 2.5, "layers": {}},
            {"epoch": 2, "gnorm": 1.25, "layers": {}},
        ]
        for result in figures["checkpoints"]:
            layers = {layer["name"]: layer for layer in result["layers"]}
            assert "encoder.layers.0" in layers
            assert "decoder.layers.0" in layers
            for layer in layers.values():
                assert layer["batch_norm"] > 0
                assert f"{layer['strength']:.3g}" in captured.out
            assert {*result["tensors"][0]["scales"]} == {*MEMORYLESS}
        (whole,) = (line for line in captured.out.splitlines() if line.startswith("whole gradient"))
        assert whole.split()[2:] == ["2.5", "1.25"]
        assert captured.err == ""
        assert plot.read_bytes().startswith(PNG)

    def test_a_run_alone_by_layer(self, tmp_path: Path, capsys: Any) -> None:
        run_directory = tmp_path / "run"
        run_directory.mkdir()
        lines = [
            f'| INFO | train | {{"epoch": {epoch}, "train_loss": "9.1", "train_gnorm": "{epoch}", '
            f'"train_gnorm_encoder.layers.0": "0.{epoch:02}", "train_gnorm_top": "0.5"}}\n'
            for epoch in range(1, 31)
        ]
        (run_directory / "train.log").write_text("".join(lines))
        written, plot = tmp_path / "norms.json", tmp_path / "norms.png"
        assert gradients("--run", run_directory, "--json", written, "--plot", plot) == 0
        table = {line.rsplit(maxsplit=8)[0]: line.split()[-8:] for line in printed_rows(capsys)}
        assert table["epoch"] == ["1", "5", "9", "13", "18", "22", "26", "30"]
        assert table["whole gradient"] == table["epoch"]
        assert table["encoder.layers.0"][:2] == ["0.01", "0.05"]
        assert {*table["top"]} == {"0.5"}
        figures = json.loads(written.read_text())
        assert figures["checkpoints"] == []
        assert len(figures["logged"]) == 30
        assert figures["logged"][29] == {
            "epoch": 30,
            "gnorm": 30,
            "layers": {"encoder.layers.0": 0.3, "top": 0.5},
        }
        assert plot.read_bytes().startswith(PNG)

    def test_the_trap_is_shown(self, checkpoint: str, corpus: Path, capsys: Any) -> None:
        assert gradients(corpus, checkpoint, "--tensors") == 0
        lines = capsys.readouterr().out.splitlines()
        assert any("rounding noise in 3 of" in line for line in lines)
        listed = [line.split()[0] for line in lines if line.startswith("  ")]
        assert listed == [
            "encoder.layers.0.self_attn.k_proj.bias",
            "decoder.layers.0.self_attn.k_proj.bias",
            "decoder.layers.0.encoder_attn.k_proj.bias",
        ]
        (ours,) = (line.split() for line in lines if line.startswith("gradient-strength"))
        assert float(ours[4]) > 1e3 * float(ours[3])
        (weight,) = (line for line in lines if line.startswith("weight "))
        assert weight.endswith("the same")
        assert sum(line.endswith("rounding noise") for line in lines) == 3

    def test_mini_batches_matter(self, checkpoint: str, corpus: Path, tmp_path: Path) -> None:
        found = []
        for tokens in (4000, 8):
            written = tmp_path / f"{tokens}.json"
            assert gradients(corpus, checkpoint, "--max-tokens", tokens, "--json", written) == 0
            found.append(json.loads(written.read_text())["checkpoints"][0]["tensors"])
        for whole, small in zip(*found):
            if not whole["is_noise"]:
                assert whole["batch_norm"] == pytest.approx(whole["mean_norm"], rel=1e-4)
                assert small["mean_norm"] == pytest.approx(whole["mean_norm"], rel=1e-3)
                assert small["batch_norm"] > whole["batch_norm"]


class TestErrors:
    @pytest.fixture
    def one_line(self, failing: Any) -> Callable[..., str]:
        return lambda *arguments: failing("gradients", *arguments, "--cpu")

    def test_runs_without_norms(
        self, one_line: Any, checkpoint: str, corpus: Path, run_directory: Path
    ) -> None:
        absent = run_directory / "absent"
        assert "no such directory" in one_line(corpus, checkpoint, "--run", absent)
        log = run_directory / "train.log"
        log.write_text(LOG.replace("gnorm", "other"))
        assert "tells gnorm" in one_line(corpus, checkpoint, "--run", run_directory)
        log.unlink()
        assert "neither a log" in one_line(corpus, checkpoint, "--run", run_directory)

    @pytest.mark.parametrize(
        "flags", ["--max-sentences 0", "--max-tokens x", "--seed x", "--plot x.doc"]
    )
    def test_misuse(self, flags: str, misused: Any) -> None:
        assert flags.split()[0] in misused("gradients", "data", "checkpoint.pt", *flags.split())


def test_examples_of_help_run(
    trained: Run,
    corpus: Path,
    run_directory: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: Any,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("data-bin").symlink_to(corpus)
    Path("checkpoints").mkdir()
    shutil.copytree(run_directory, "runs/adam")
    for name in ("checkpoints/checkpoint_best.pt", "checkpoint1.pt", "checkpoint5.pt",
                 "checkpoint20.pt", "runs/adam/checkpoint_last.pt"):  # fmt: skip
        Path(name).symlink_to(trained.save_dir / "checkpoint2.pt")
    lines = examples("gradients", capsys)
    assert len(lines) == 4
    for arguments in lines:
        assert main([*arguments, "--cpu"]) == 0
    assert Path("norms.pdf").exists()
    assert Path("norms.json").exists()
