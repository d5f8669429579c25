"""``fairseq-sam risk``: its figures for a trained model, and what it says when it cannot."""

import json
import math
import re
import subprocess
import sys
from pathlib import Path
from typing import Any, Callable

import pytest

from fairseq_sam.commands import main
from fairseq_sam.commands.checkpoint_data import checkpoint_names
from fairseq_sam.evaluation.sentences import single_sentences
from fairseq_sam.evaluation.trained_model import (
    LoadError,
    load_trained_model,
    per_sentence_criterion,
)
from fairseq_sam.reporting.risk_table import risk_table
from tests.fairseq_runs import ROOT, Run

NUM_VALID = 8


@pytest.fixture(scope="module")
def trained(shared_fairseq_train: Callable[..., Run]) -> Run:
    """A translation model, trained for an epoch with SAM and the stock criterion."""
    flags = "--optimizer sam --criterion label_smoothed_cross_entropy --label-smoothing 0.1"
    return shared_fairseq_train(flags, "--max-epoch 1 --save-interval 1", validate=True)


@pytest.fixture(scope="module")
def checkpoint(trained: Run) -> str:
    return str(trained.save_dir / "checkpoint_last.pt")


def risk(*arguments: Any) -> int:
    return main(["risk", *map(str, arguments), "--cpu"])


class TestFigures:
    def test_printed_and_written(
        self, checkpoint: str, corpus: Path, tmp_path: Path, capsys: Any
    ) -> None:
        written = tmp_path / "risk.json"
        before = Path(checkpoint).read_bytes()
        assert risk(corpus, checkpoint, "--json", written) == 0
        captured = capsys.readouterr()
        content = json.loads(written.read_text())
        (figures,) = content["checkpoints"]
        assert figures["num_sentences"] == NUM_VALID
        assert figures["criterion"] == "per_sentence_label_smoothed_cross_entropy"
        assert (content["rho"], content["steps"], content["norm"]) == (0.05, 1, "l2")
        assert content["unit"] == "nats per sentence"
        clean, adversarial = figures["clean"]["mean"], figures["adversarial"]["mean"]
        assert adversarial > clean > 0
        assert figures["difference"]["mean"] == pytest.approx(adversarial - clean)
        printed = [float(text) for text in re.findall(r"\d+\.\d{4}", captured.out)]
        expected = [
            figures[name][part]
            for name in ("clean", "adversarial", "difference")
            for part in ("mean", "standard_error")
        ]
        assert printed == pytest.approx(expected, abs=6e-5)
        assert f"{NUM_VALID} sentences" in captured.out
        assert captured.err == ""
        assert Path(checkpoint).read_bytes() == before

    def test_criterions_of_several(
        self, checkpoint: str, other_criterion: str, corpus: Path, capsys: Any
    ) -> None:
        assert risk(corpus, checkpoint, other_criterion) == 0
        one, other = checkpoint_names([checkpoint, other_criterion])
        about = (
            f"{one}: per_sentence_label_smoothed_cross_entropy, {other}: per_sentence_cross_entropy"
        )
        assert capsys.readouterr().out.startswith(f"valid: {NUM_VALID} sentences, {about}\n")

    def test_clean_loss_is_the_one_of_validation(
        self, trained: Run, checkpoint: str, corpus: Path, tmp_path: Path
    ) -> None:
        written = tmp_path / "risk.json"
        assert risk(corpus, checkpoint, "--json", written) == 0
        tokens = sum(len(line.split()) + 1 for line in self.target_lines(checkpoint, corpus))
        (figures,) = json.loads(written.read_text())["checkpoints"]
        bits = figures["clean"]["mean"] * NUM_VALID / tokens / math.log(2)
        assert bits == pytest.approx(trained.values("loss", "valid")[-1], abs=2e-3)

    @staticmethod
    def target_lines(checkpoint: str, corpus: Path) -> Any:
        model = load_trained_model(checkpoint, str(corpus))
        _, samples = single_sentences(model, "valid")
        return [model.task.target_dictionary.string(sample["target"]) for sample in samples]

    def test_more_radius_and_more_steps_find_more(
        self, checkpoint: str, corpus: Path, tmp_path: Path
    ) -> None:
        found = []
        for number, flags in enumerate((["--rho", 0.01], ["--rho", 0.5], ["--steps", 4])):
            written = tmp_path / f"{number}.json"
            assert risk(corpus, checkpoint, *flags, "--json", written) == 0
            (figures,) = json.loads(written.read_text())["checkpoints"]
            found.append(figures["difference"]["mean"])
        assert 0 < found[0] < found[1]
        assert found[0] < found[2]

    def test_max_sentences_draws(self, checkpoint: str, corpus: Path) -> None:
        model = load_trained_model(checkpoint, str(corpus))

        def drawn(seed: int) -> list:
            count, samples = single_sentences(model, "valid", max_sentences=5, seed=seed)
            ids = [int(sample["id"]) for sample in samples]
            assert count == len(set(ids)) == 5
            return ids

        assert drawn(1) == drawn(1)
        assert len({tuple(drawn(seed)) for seed in range(5)}) > 1

    def test_a_model_that_is_too_short_for_some_sees_the_same_others(
        self, checkpoint: str, corpus: Path
    ) -> None:
        for seed in range(5):
            found = []
            for longest in (100, 7):
                model = load_trained_model(checkpoint, str(corpus))
                model.model.max_positions = lambda longest=longest: (longest, longest)
                _, samples = single_sentences(model, "valid", 5, seed, skip_too_long=True)
                found.append([int(sample["id"]) for sample in samples])
            assert len(found[0]) == 5 > len(found[1])
            assert found[1] == [number for number in found[0] if number in found[1]]

    def test_sentences_of_several_are_told_apart(self) -> None:
        estimate = {"mean": 1.0, "standard_error": 0.1}
        measured = {"criterion": "x", "clean": estimate, "adversarial": estimate}
        names = {"adam": 8, "sam": 6}
        checkpoints = [
            {"name": name, "num_sentences": count, "difference": estimate, **measured}
            for name, count in names.items()
        ]
        settings = {"subset": "valid", "steps": 1, "rho": 1, "norm": "l2", "unit": "nats"}
        table = risk_table({**settings, "checkpoints": checkpoints})
        assert table.startswith("valid: adam: 8 sentences, sam: 6 sentences, x\n")

    def test_criterion_of_another_kind(self, checkpoint: str, corpus: Path, tmp_path: Path) -> None:
        written = tmp_path / "risk.json"
        assert risk(corpus, checkpoint, "--criterion", "cross_entropy", "--json", written) == 0
        (figures,) = json.loads(written.read_text())["checkpoints"]
        assert figures["criterion"] == "per_sentence_cross_entropy"

    def test_several_checkpoints_and_a_picture(
        self, trained: Run, checkpoint: str, corpus: Path, tmp_path: Path, capsys: Any
    ) -> None:
        pytest.importorskip("matplotlib")
        other = tmp_path / "run" / "other.pt"
        other.parent.mkdir()
        other.write_bytes(Path(checkpoint).read_bytes())
        written, picture = tmp_path / "risk.json", tmp_path / "risk.svg"
        # Flags may stand between the checkpoints.
        assert risk(corpus, checkpoint, "--json", written, other, "--plot", picture) == 0
        first, second = json.loads(written.read_text())["checkpoints"]
        assert (first.pop("checkpoint"), second.pop("checkpoint")) == (checkpoint, str(other))
        names = [each.pop("name") for each in (first, second)]
        assert names[0] != names[1]
        assert names[1].endswith("run/other")
        assert first == second
        assert "run/other |" in capsys.readouterr().out
        image = picture.read_text(encoding="utf-8")
        assert all(text in image for text in ("run/other", "nats per sentence", "difference"))

    def test_criterion_keeps_the_flags_of_training(self, checkpoint: str, corpus: Path) -> None:
        model = load_trained_model(checkpoint, str(corpus))
        name, criterion = per_sentence_criterion(model)
        assert name == "per_sentence_label_smoothed_cross_entropy"
        assert criterion.eps == 0.1
        assert not criterion.training
        assert not model.model.training

    @pytest.mark.slow
    def test_without_user_dir_from_anywhere(
        self, checkpoint: str, corpus: Path, tmp_path: Path
    ) -> None:
        command = [sys.executable, "-m", "fairseq_sam.commands", "risk", str(corpus), checkpoint]
        result = subprocess.run(
            [*command, "--cpu"],
            cwd=tmp_path,
            env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"},
            capture_output=True,
            text=True,
        )
        assert result.returncode == 0, result.stderr
        assert "adversarial loss" in result.stdout
        assert "INFO" not in result.stderr


class TestErrors:
    @pytest.fixture
    def one_line(self, failing: Any) -> Callable[..., str]:
        return lambda *arguments: failing("risk", *arguments, "--cpu")

    @pytest.mark.parametrize("name", ["adaptive_loss", "nonsense"])
    def test_criterion_without_sentences(
        self, one_line: Any, checkpoint: str, corpus: Path, name: str
    ) -> None:
        error = one_line(corpus, checkpoint, "--criterion", name)
        assert f"criterion {name} has no per-sentence losses" in error
        assert "--criterion" in error

    def test_sentences_that_are_too_long(self, checkpoint: str, corpus: Path) -> None:
        model = load_trained_model(checkpoint, str(corpus))
        model.model.encoder.max_source_positions = 6
        model.model.encoder.embed_positions = None
        with pytest.raises(LoadError, match="--skip-invalid-size-inputs-valid-test"):
            single_sentences(model, "valid")
        count, _ = single_sentences(model, "valid", skip_too_long=True)
        assert 0 < count < NUM_VALID

    @pytest.mark.parametrize(
        "flags",
        ["--rho 0", "--rho -0.1", "--rho inf", "--rho x", "--steps 0", "--steps 1001", "--norm l1",
         "--rho 1_0", "--rho 1e300", "--steps ٣", "--seed -1", "--plot x.doc",
         "--max-sentences 0", "--seed x"],
    )  # fmt: skip
    def test_misuse(self, flags: str, misused: Any) -> None:
        assert flags.split()[0] in misused("risk", "data", "checkpoint.pt", *flags.split())
