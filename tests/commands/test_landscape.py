"""``fairseq-sam landscape``: its figures for trained models, and what it says when it cannot."""

import json
from pathlib import Path
from typing import Any, Callable, Dict

import pytest

from fairseq_sam.commands import main
from fairseq_sam.evaluation.sentences import sentence_batches
from fairseq_sam.evaluation.trained_model import LoadError, load_trained_model
from tests.fairseq_runs import Run

NUM_VALID = 8


def run(*arguments: Any) -> int:
    return main(["landscape", *map(str, arguments), "--cpu"])


@pytest.fixture
def figures(tmp_path: Path) -> Callable[..., Dict[str, Any]]:
    """``figures(arguments…)``: what the command writes."""

    def measure(*arguments: Any) -> Dict[str, Any]:
        assert run(*arguments, "--json", tmp_path / "figures.json") == 0
        content: Dict[str, Any] = json.loads((tmp_path / "figures.json").read_text())
        return content

    return measure


class TestFigures:
    def test_line_printed_and_written(
        self, figures: Any, trained: Run, checkpoint: str, corpus: Path, capsys: Any
    ) -> None:
        before = Path(checkpoint).read_bytes()
        found = figures(corpus, checkpoint, "--points", 5)
        captured = capsys.readouterr()
        assert captured.err == ""
        surface = found["surface"]
        assert surface["axes"] == [[-1.0, -0.5, 0.0, 0.5, 1.0]]
        assert (found["unit"], found["num_sentences"]) == ("nats per token", NUM_VALID)
        for x, loss in zip(surface["axes"][0], surface["losses"]):
            assert f"| {x:.3g} | {loss:.4f} |" in captured.out
        bits = surface["losses"][2] / 0.6931471805599453
        assert bits == pytest.approx(trained.values("loss", "valid")[-1], abs=2e-3)
        assert len(set(surface["losses"])) == 5
        assert Path(checkpoint).read_bytes() == before

    def test_plane_goes_through_the_lines(
        self, figures: Any, checkpoint: str, corpus: Path
    ) -> None:
        line = figures(corpus, checkpoint, "--points", 3, "--span", 0.5)["surface"]
        other = figures(corpus, checkpoint, "--points", 3, "--span", 0.5, "--seed", 2)["surface"]
        plane = figures(corpus, checkpoint, "--points", 3, "--span", 0.5, "--dimensions", 2)
        losses = plane["surface"]["losses"]
        assert plane["surface"]["axes"] == [[-0.5, 0.0, 0.5]] * 2
        assert [row[1] for row in losses] == pytest.approx(line["losses"], rel=1e-6)
        assert losses[1] == pytest.approx(other["losses"], rel=1e-6)

    def test_between_two_checkpoints(
        self, figures: Any, checkpoint: str, earlier: str, corpus: Path
    ) -> None:
        found = figures(corpus, earlier, checkpoint, "--points", 5)["surface"]
        assert found["axes"] == [[-0.5, 0.0, 0.5, 1.0, 1.5]]
        for position, path in ((1, earlier), (3, checkpoint)):
            alone = figures(corpus, path, "--points", 3)["surface"]["losses"][1]
            assert found["losses"][position] == pytest.approx(alone, rel=1e-5)

    def test_m_sharpness_of_three(
        self, figures: Any, checkpoint: str, earlier: str, corpus: Path
    ) -> None:
        arguments = ("--dimensions", 0, "--m-sharpness", "0.01", "--m", 8)
        found = figures(corpus, checkpoint, *arguments, earlier, checkpoint)["m_sharpness"]
        assert [each["checkpoint"] for each in found] == [checkpoint, earlier, checkpoint]
        assert found[0]["radii"] == found[2]["radii"] != found[1]["radii"]

    def test_criterions_of_several(
        self, figures: Any, checkpoint: str, other_criterion: str, corpus: Path
    ) -> None:
        arguments = (corpus, checkpoint, other_criterion, "--points", 2)
        line = figures(*arguments)
        assert (line["criterion"], line["unit"]) == (
            "label_smoothed_cross_entropy",
            "nats per token",
        )
        both = figures(*arguments, "--dimensions", 0, "--m-sharpness", 0.1, "--m", 8)
        one, other = both["names"]
        assert both["criterion"] == f"{one}: label_smoothed_cross_entropy, {other}: cross_entropy"
        assert both["unit"] == f"{one}: nats per token, {other}: nats per sentence"

    def test_m_sharpness(self, figures: Any, checkpoint: str, corpus: Path, capsys: Any) -> None:
        arguments = (corpus, checkpoint, "--dimensions", 0, "--m-sharpness", "0.01,0.05")
        found = {m: figures(*arguments, "--m", m)["m_sharpness"][0] for m in (1, 3, 8)}
        assert [found[m]["num_batches"] for m in (1, 3, 8)] == [8, 2, 1]
        for each in found.values():
            assert 0 < each["radii"][0]["mean"] < each["radii"][1]["mean"]
        # Every sentence for itself has it worse than all together.
        assert found[1]["radii"][1]["mean"] > found[8]["radii"][1]["mean"]
        assert found[8]["radii"][0]["standard_error"] is None
        first = found[1]["radii"][0]
        assert f"{first['mean']:.5f} ± {first['standard_error']:.5f}" in capsys.readouterr().out

    def test_sharpness_of_all_sentences_is_that_of_one_corruption(
        self, figures: Any, checkpoint: str, corpus: Path, tmp_path: Path
    ) -> None:
        """With m = all, the same step as an adversarial corruption's single one."""
        arguments = ("--dimensions", 0, "--m-sharpness", 0.2, "--m", NUM_VALID)
        sharpness = figures(corpus, checkpoint, *arguments)["m_sharpness"][0]["radii"][0]["mean"]
        written = tmp_path / "robustness.json"
        command = ["robustness", corpus, checkpoint, "--radii", 0.2, "--steps", 1, "--cpu"]
        assert main([*map(str, command), "--json", str(written)]) == 0
        (measured,) = json.loads(written.read_text())["checkpoints"]
        growth = measured["corrupted"][0]["loss"]["mean"] - measured["clean"]["loss"]
        assert sharpness == pytest.approx(growth, rel=1e-3)

    @pytest.mark.parametrize("suffix", [".png", ".pdf", ".svg"])
    def test_plot(
        self, checkpoint: str, earlier: str, corpus: Path, tmp_path: Path, suffix: str
    ) -> None:
        out = tmp_path / f"plot{suffix}"
        arguments = (corpus, earlier, checkpoint, "--dimensions", 2, "--points", 3)
        assert run(*arguments, "--m-sharpness", "0.01,0.1", "--m", 4, "--plot", out) == 0
        start = {".png": b"\x89PNG", ".pdf": b"%PDF", ".svg": b"<?xml"}[suffix]
        assert out.read_bytes().startswith(start)
        assert [path.name for path in tmp_path.iterdir()] == [out.name]
        if suffix == ".svg":
            image = out.read_text(encoding="utf-8")
            for text in ("loss (nats per token)", "4-sharpness", "filter-normalised direction",
                         "L2 radius"):  # fmt: skip
                assert text in image


class TestErrors:
    @pytest.fixture
    def one_line(self, failing: Any) -> Callable[..., str]:
        return lambda *arguments: failing("landscape", *arguments, "--cpu")

    def test_another_model(
        self, one_line: Any, checkpoint: str, corpus: Path, fairseq_train: Callable[..., Run]
    ) -> None:
        flags = "--optimizer adam --max-epoch 1 --save-interval 1 --encoder-ffn-embed-dim 6"
        other = fairseq_train(flags).save_dir / "checkpoint_last.pt"
        error = one_line(corpus, checkpoint, other)
        assert f"{other}: another model than" in error
        assert "encoder.layers.0.fc1" in error

    def test_a_multilingual_model(
        self, one_line: Any, corpus: Path, fairseq_train: Callable[..., Run]
    ) -> None:
        sizes = "".join(
            f" --{part}-layers 1 --{part}-embed-dim 8 --{part}-ffn-embed-dim 8"
            f" --{part}-attention-heads 2"
            for part in ("encoder", "decoder")
        )
        task = "--task multilingual_translation --lang-pairs de-en --arch multilingual_transformer"
        flags = f"{task}{sizes} --max-tokens 200 --lr 0.1"
        trained = fairseq_train(
            "--optimizer adam --max-epoch 1 --save-interval 1", task=(str(corpus), flags)
        )
        error = one_line(corpus, trained.save_dir / "checkpoint_last.pt")
        assert "the task multilingual_translation is not supported" in error
        assert "de-en" in error

    def test_no_split_is_loaded_twice(
        self, monkeypatch: Any, checkpoint: str, corpus: Path, capsys: Any
    ) -> None:
        """Some tasks, translation_multi_simple_epoch among them, cannot."""
        from fairseq.tasks.translation import TranslationTask

        load = TranslationTask.load_dataset

        def load_once(task: Any, split: str, **others: Any) -> None:
            assert split not in task.datasets
            load(task, split, **others)

        monkeypatch.setattr(TranslationTask, "load_dataset", load_once)
        flags = ["--points=2", "--m-sharpness=0.1", "--m=4", "--cpu"]
        assert main(["landscape", str(corpus), checkpoint, *flags]) == 0

    def test_mini_batches_that_cannot_be_filled(
        self, one_line: Any, checkpoint: str, corpus: Path
    ) -> None:
        arguments = (corpus, checkpoint, "--dimensions", 0, "--m-sharpness", 0.1)
        error = one_line(*arguments, "--m", 9)
        assert "--m 9: subset valid has 8 sentences" in error

    def test_nothing_to_do(self, one_line: Any, checkpoint: str, corpus: Path) -> None:
        error = one_line(corpus, checkpoint, "--dimensions", 0)
        assert "--dimensions 0" in error
        assert "--m-sharpness" in error

    @pytest.mark.parametrize(
        "flags",
        ["--points 1", "--points 1001", "--points 1_0", "--points ٣",
         "--m-sharpness 0", "--m-sharpness 0.1,-1", "--m 0", "--span 0", "--span -1",
         "--points 0", "--dimensions 3"],
    )  # fmt: skip
    def test_misuse(self, flags: str, misused: Any) -> None:
        assert flags.split()[0] in misused("landscape", "data", "checkpoint.pt", *flags.split())

    def test_a_plane_through_three(self, misused: Any) -> None:
        assert "2 CHECKPOINTs at most" in misused("landscape", "data", "1.pt", "2.pt", "3.pt")


def test_batches_of_sentences(checkpoint: str, corpus: Path) -> None:
    model = load_trained_model(checkpoint, str(corpus))
    drawn = []
    for seed in (1, 1, 2):
        batches = sentence_batches(model, "valid", 3, seed=seed)
        ids = [sample["id"].tolist() for sample in batches]
        assert [len(batch) for batch in ids] == [3, 3]
        assert len({each for batch in ids for each in batch}) == 6
        drawn.append([sorted(batch) for batch in ids])
    assert drawn[0] == drawn[1] != drawn[2]
    with pytest.raises(LoadError, match="has 2 sentences"):
        sentence_batches(model, "valid", 3, max_sentences=2)
