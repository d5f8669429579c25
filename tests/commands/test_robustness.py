"""``fairseq-sam robustness``: its figures for trained models, and what it says when it cannot."""

import argparse
import json
import math
import re
from pathlib import Path
from typing import Any, Callable

import pytest
import sacrebleu
import torch

from fairseq_sam.commands import checkpoint_data, main, robustness
from fairseq_sam.evaluation.sentences import mini_batches
from fairseq_sam.evaluation.task_scores import BLEU, bleu_overrides, task_scores
from fairseq_sam.evaluation.trained_model import build_criterion, load_trained_model
from fairseq_sam.flags import number_types
from fairseq_sam.reporting.robustness_plot import write_robustness_plot
from tests.fairseq_runs import Run

NUM_VALID = 8


def run(*arguments: Any) -> int:
    return main(["robustness", *map(str, arguments), "--cpu"])


class TestFigures:
    def test_several_checkpoints_printed_and_written(
        self, checkpoint: str, earlier: str, corpus: Path, tmp_path: Path, capsys: Any
    ) -> None:
        written = tmp_path / "figures.json"
        before = Path(checkpoint).read_bytes()
        arguments = (corpus, earlier, checkpoint, "--radii", "0.1,0.5", "--steps", 3)
        assert run(*arguments, "--json", written) == 0
        captured = capsys.readouterr()
        assert captured.err == ""
        figures = json.loads(written.read_text())
        assert (figures["norm"], figures["corruption"], figures["steps"]) == (
            "l2",
            "adversarial",
            3,
        )
        assert figures["unit"] == "nats per token"
        assert [each["num_sentences"] for each in figures["checkpoints"]] == [NUM_VALID] * 2
        names = [each["name"] for each in figures["checkpoints"]]
        assert names == ["checkpoint1", "checkpoint_last"]
        for each in figures["checkpoints"]:
            losses = [each["clean"]["loss"]]
            for radius, point in zip((0.1, 0.5), each["corrupted"]):
                assert point["radius"] == radius
                assert point["measured_radius"] == [pytest.approx(radius, rel=1e-5)]
                assert point["loss"]["standard_error"] is None
                losses.append(point["loss"]["mean"])
            assert 0 < losses[0] < losses[1] < losses[2]
            for loss in losses:
                assert f" {loss:.4f}" in captured.out
            assert f"({losses[2] - losses[0]:+.4f})" in captured.out
        assert "| L2 radius | checkpoint1 | checkpoint_last |" in captured.out
        assert Path(checkpoint).read_bytes() == before

    def test_clean_scores_are_those_of_validation(
        self, trained: Run, checkpoint: str, corpus: Path, tmp_path: Path
    ) -> None:
        written = tmp_path / "figures.json"
        assert run(corpus, checkpoint, "--radii", 0.1, "--steps", 1, "--json", written) == 0
        clean = json.loads(written.read_text())["checkpoints"][0]["clean"]
        logged = trained.values("loss", "valid")[-1]
        assert clean["loss"] / math.log(2) == pytest.approx(logged, abs=2e-3)
        assert clean["ppl"] == pytest.approx(trained.values("ppl", "valid")[-1], abs=2e-2)
        accuracy = trained.values("accuracy", "valid")[-1]
        assert 0 < accuracy < 100
        assert clean["accuracy"] == pytest.approx(accuracy, abs=2e-3)

    def test_perplexity_and_accuracy_are_not_rounded(
        self, checkpoint: str, corpus: Path, capsys: Any, tmp_path: Path
    ) -> None:
        """Radii that move the loss in its sixth digit move the perplexity as much."""
        written = tmp_path / "figures.json"
        radii = "1e-5,2e-5,3e-5,4e-5"
        assert run(corpus, checkpoint, "--radii", radii, "--steps", 1, "--json", written) == 0
        (figures,) = json.loads(written.read_text())["checkpoints"]
        points = figures["corrupted"]
        values = [point["ppl"]["mean"] for point in points]
        assert len({figures["clean"]["ppl"], *values}) == 5
        trained = load_trained_model(checkpoint, str(corpus))
        samples = mini_batches(trained, "valid", 4000)
        criterion = build_criterion(trained, "cross_entropy")
        scores = task_scores(trained, criterion, samples)
        assert scores["ppl"] == pytest.approx(math.exp(scores["loss"]), rel=1e-6)
        accuracy = figures["clean"]["accuracy"]
        tokens = sum(int(sample["ntokens"]) for sample in samples)
        assert accuracy * tokens / 100 == pytest.approx(round(accuracy * tokens / 100), abs=1e-9)
        from fairseq import utils
        from fairseq.criterions import label_smoothed_cross_entropy

        assert utils.get_perplexity(1.5) == 2.83
        assert "round" not in vars(label_smoothed_cross_entropy)

    def test_largest_within_the_box(self, checkpoint: str, corpus: Path, tmp_path: Path) -> None:
        """More steps find more, and a random corner of the box is better than the worst."""
        flags = {
            "one": ["--steps", 1],
            "many": ["--steps", 8],
            "random": ["--corruption", "random", "--draws", 3],
        }
        loss = {}
        for name, arguments in flags.items():
            written = tmp_path / f"{name}.json"
            common = ("--norm", "linf", "--radii", 0.05, "--json", written)
            assert run(corpus, checkpoint, *common, *arguments) == 0
            (point,) = json.loads(written.read_text())["checkpoints"][0]["corrupted"]
            assert all(r == pytest.approx(0.05, rel=1e-5) for r in point["measured_radius"])
            loss[name] = point["loss"]["mean"]
        assert loss["random"] < loss["one"] < loss["many"]

    def test_random_draws(self, checkpoint: str, corpus: Path, tmp_path: Path, capsys: Any) -> None:
        found = []
        for number, draws in enumerate((1, 3, 3)):
            written = tmp_path / f"{number}.json"
            arguments = ("--corruption", "random", "--radii", "1", "--draws", draws)
            assert run(corpus, checkpoint, *arguments, "--json", written) == 0
            (point,) = json.loads(written.read_text())["checkpoints"][0]["corrupted"]
            assert len(point["measured_radius"]) == draws
            found.append(point["loss"])
        assert found[0]["standard_error"] is None
        assert found[1]["standard_error"] > 0
        assert found[1] == found[2]
        assert f"{found[1]['mean']:.4f} ± {found[1]['standard_error']:.4f}" in (
            capsys.readouterr().out
        )

    def test_criterions_that_report_other_metrics(
        self, checkpoint: str, other_criterion: str, corpus: Path, tmp_path: Path, capsys: Any
    ) -> None:
        plot = tmp_path / "plot.svg"
        for first, second in ((checkpoint, other_criterion), (other_criterion, checkpoint)):
            arguments = (corpus, first, second, "--radii", 0.1, "--steps", 1)
            assert run(*arguments, "--plot", plot) == 0
            printed = capsys.readouterr().out
            one, other = checkpoint_data.checkpoint_names([first, second])
            named = {checkpoint: "label_smoothed_cross_entropy", other_criterion: "cross_entropy"}
            about = f"{one}: {named[first]}, {other}: {named[second]}"
            assert printed.startswith(f"valid: {NUM_VALID} sentences, {about}, adversarial")
            units = {checkpoint: "nats per token", other_criterion: "nats per sentence"}
            assert f"loss ({one}: {units[first]}, {other}: {units[second]}):" in printed
            (clean,) = re.findall(r"accuracy \(%\):\n(?:.*\n){3}\| none (.*)", printed)
            cells = clean.strip("| ").split(" | ")
            assert [cell == "–" for cell in cells] == [
                p == other_criterion for p in (first, second)
            ]
            assert "inf" not in printed
            assert "accuracy (%)" in plot.read_text(encoding="utf-8")

    def test_bleu_is_that_of_the_translations(self, checkpoint: str, corpus: Path) -> None:
        overrides = bleu_overrides('{"beam": 2, "max_len_b": 12}')
        model = load_trained_model(checkpoint, str(corpus), overrides)
        samples = mini_batches(model, "valid", max_tokens=20)
        assert len(samples) > 1
        criterion = build_criterion(model)
        scores = task_scores(model, criterion, samples)
        hypotheses, references = [], []
        for sample in samples:
            found = model.task.inference_step(model.task.sequence_generator, [model.model], sample)
            for hypothesis, target in zip(found, sample["target"]):
                hypotheses.append(model.task.tgt_dict.string(hypothesis[0]["tokens"]))
                references.append(model.task.tgt_dict.string(target[target != 1]))
        expected = sacrebleu.corpus_bleu(hypotheses, [references], tokenize="none").score
        assert scores[BLEU] == pytest.approx(expected, abs=0.01)

    def test_bleu_and_plot(
        self, checkpoint: str, earlier: str, corpus: Path, tmp_path: Path, capsys: Any
    ) -> None:
        out, written = tmp_path / "plot.svg", tmp_path / "figures.json"
        arguments = (corpus, earlier, checkpoint, "--radii", "0.1,1", "--steps", 1, "--bleu")
        generation = ("--eval-bleu-args", '{"beam": 1, "max_len_b": 10}')
        assert run(*arguments, *generation, "--plot", out, "--json", written) == 0
        captured = capsys.readouterr()
        assert "BLEU (tokenised):" in captured.out
        assert captured.err == ""
        (point, _) = json.loads(written.read_text())["checkpoints"][0]["corrupted"]
        assert 0 <= point[BLEU]["mean"] <= 100
        image = out.read_text(encoding="utf-8")
        for text in ("BLEU (tokenised)", "perplexity", "loss (nats per token)", "checkpoint1",
                     "L2 radius of the corruption"):  # fmt: skip
            assert text in image
        assert [path.name for path in tmp_path.iterdir() if "incomplete" in path.name] == []


def plain_text(corpus: Path) -> Path:
    """A translation corpus has no plain text; fairseq names the language in its files."""
    data = corpus.parent / f"{corpus.name}_lm"
    data.mkdir(exist_ok=True)
    for suffix in ("bin", "idx"):
        for part in ("train", "valid"):
            (data / f"{part}.{suffix}").write_bytes(
                (corpus / f"{part}.de-en.en.{suffix}").read_bytes()
            )
    (data / "dict.txt").write_bytes((corpus / "dict.en.txt").read_bytes())
    return data


class TestNoiseOfTheData:
    """Denoising draws it with torch, and has a ``nsentences`` that is none."""

    @pytest.fixture(scope="class")
    def measured(
        self, corpus: Path, shared_fairseq_train: Callable[..., Run], tmp_path_factory: Any
    ) -> Any:
        data, folder = plain_text(corpus), tmp_path_factory.mktemp("noise")
        flags = (
            "--task denoising --arch bart_base --encoder-layers 1 --decoder-layers 1 "
            "--encoder-embed-dim 8 --decoder-embed-dim 8 --encoder-ffn-embed-dim 8 "
            "--decoder-ffn-embed-dim 8 --encoder-attention-heads 2 --decoder-attention-heads 2 "
            "--tokens-per-sample 32 --sample-break-mode eos --mask 0.3 --replace-length 1 "
            "--mask-length span-poisson --permute-sentences 0 --rotate 0 --max-tokens 200 --lr 0.1"
        )
        trained = shared_fairseq_train(
            "--save-interval 1 --max-epoch 2 --optimizer adam", task=(str(data), flags)
        )
        copies = [str(folder / name) for name in ("one.pt", "other.pt")]
        for copy in copies:
            Path(copy).write_bytes((trained.save_dir / "checkpoint_last.pt").read_bytes())

        def measure(command: str, *flags: Any) -> Any:
            written = folder / "figures.json"
            arguments = [command, data, *copies, *flags, "--cpu", "--json", written]
            assert main(list(map(str, arguments))) == 0
            return json.loads(written.read_text())

        return measure

    def test_robustness(self, measured: Any) -> None:
        figures = measured("robustness", "--radii", 0.1, "--steps", 1)
        one, other = figures["checkpoints"]
        assert one["clean"] == other["clean"]
        assert one["corrupted"] == other["corrupted"]
        assert one["num_sentences"] == NUM_VALID

    def test_risk(self, measured: Any) -> None:
        one, other = measured("risk")["checkpoints"]
        assert one["clean"] == other["clean"]
        assert one["num_sentences"] == NUM_VALID

    def test_m_sharpness(self, measured: Any) -> None:
        figures = measured("landscape", "--dimensions", 0, "--m-sharpness", 0.1, "--m", 2)
        one, other = figures["m_sharpness"]
        assert one["radii"] == other["radii"]
        assert figures["num_sentences"] == NUM_VALID

    def test_mini_batches_have_the_same(self, measured: Any) -> None:
        losses = [
            measured("robustness", "--radii", 0.1, "--max-tokens", tokens)["checkpoints"][0]
            for tokens in (10, 4000)
        ]
        assert losses[0]["clean"]["loss"] == pytest.approx(losses[1]["clean"]["loss"], rel=1e-6)


def test_masks_are_the_same_for_models_of_all_seeds(
    corpus: Path, fairseq_train: Callable[..., Run], tmp_path: Path
) -> None:
    data = plain_text(corpus)
    flags = (
        "--task masked_lm --criterion masked_lm --arch roberta --encoder-layers 1 "
        "--encoder-embed-dim 8 --encoder-ffn-embed-dim 8 --encoder-attention-heads 2 "
        "--tokens-per-sample 32 --sample-break-mode eos --max-tokens 200"
    )
    run = fairseq_train("--save-interval 1 --max-epoch 1 --optimizer adam", task=(str(data), flags))
    found = []
    for seed in (1, 2):
        state, path = run.checkpoint(), tmp_path / f"{seed}.pt"
        for part in ("common", "task"):
            state["cfg"][part]["seed"] = seed
        torch.save(state, path)
        found.append(mini_batches(load_trained_model(str(path), str(data)), "valid", 4000))
    for one, other in zip(*found):
        assert torch.equal(one["target"], other["target"])


def test_infinite_scores_are_shown(tmp_path: Path) -> None:
    """A perplexity may be too large for a float; JSON has no infinity."""
    points = [(0.0, 0.0, {"loss": 1.0, "ppl": 2.0}), (9.0, 9.0, {"loss": 800.0, "ppl": math.inf})]
    summary = {"name": "model", "num_sentences": 3, **robustness._summary(points)}
    figures = {"norm": "linf", "corruption": "adversarial", "steps": 1, "subset": "valid",
               "criterion": "cross_entropy", "unit": "nats per token",
               "checkpoints": [summary]}  # fmt: skip
    json.dumps(figures, allow_nan=False)
    assert "| 9 | inf |" in robustness.robustness_tables(figures)
    write_robustness_plot(figures, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")


class TestErrors:
    @pytest.fixture
    def one_line(self, failing: Any) -> Callable[..., str]:
        return lambda *arguments: failing("robustness", *arguments, "--radii", "0.1", "--cpu")

    def test_nothing_finite(
        self, one_line: Any, checkpoint: str, corpus: Path, tmp_path: Path
    ) -> None:
        state = torch.load(checkpoint, weights_only=False)
        for weight in state["model"].values():
            weight.fill_(math.nan)
        torch.save(state, tmp_path / "nan.pt")
        assert "nan.pt: the loss is not finite" in one_line(corpus, tmp_path / "nan.pt")

    @pytest.mark.parametrize(
        ("criterion", "said"),
        [
            ("model", "Could not retrieve losses"),
            ("wav2vec", "no attribute 'get_logits'"),
            ("sentence_ranking", "sentence_ranking cannot take another's place"),
        ],
    )
    def test_a_criterion_of_other_models(
        self, one_line: Any, checkpoint: str, corpus: Path, criterion: str, said: str
    ) -> None:
        assert said in one_line(corpus, checkpoint, "--criterion", criterion)

    def test_a_criterion_in_place_of_one_without_a_configuration(
        self, checkpoint: str, corpus: Path
    ) -> None:
        """fairseq keeps the command line of such a one, sentence_ranking's for instance."""
        from fairseq.dataclass.utils import omegaconf_no_object_check

        trained = load_trained_model(checkpoint, str(corpus))
        with omegaconf_no_object_check():
            trained.cfg.criterion = argparse.Namespace(_name="sentence_ranking", sentence_avg=True)
        assert build_criterion(trained, "cross_entropy").sentence_avg

    def test_a_radius_too_large(
        self, checkpoint: str, corpus: Path, capsys: Any, monkeypatch: Any
    ) -> None:
        monkeypatch.setattr(number_types, "LARGEST_RADIUS", 1e30)
        assert run(corpus, checkpoint, "--radii", "0.1,1e30", "--corruption", "random") == 1
        assert "the loss is not finite at the radius 1e+30" in capsys.readouterr().err

    def test_bleu_of_a_language_model(
        self, one_line: Any, corpus: Path, fairseq_train: Callable[..., Run]
    ) -> None:
        flags = (
            "--task language_modeling --arch transformer_lm --decoder-embed-dim 8 "
            "--decoder-ffn-embed-dim 8 --decoder-layers 1 --decoder-attention-heads 2 "
            "--tokens-per-sample 16 --batch-size 8 --optimizer adam --max-epoch 1"
        )
        data = plain_text(corpus)
        trained = fairseq_train("--save-interval 1", task=(str(data), flags))
        model = trained.save_dir / "checkpoint_last.pt"
        error = one_line(data, model, "--bleu")
        assert "--bleu: the task language_modeling does not measure it" in error
        assert run(data, model, "--radii", "0.1", "--steps", 1) == 0

    @pytest.mark.parametrize(
        "flags",
        ["--radii 0", "--radii 0.1,-1", "--radii nan", "--radii 0.1,0.1", "--radii ,",
         "--steps 0", "--draws 0", "--norm l1", "--corruption worst", "--eval-bleu-args beam",
         "--max-tokens 0", "--plot plot.doc"],
    )  # fmt: skip
    def test_misuse(self, flags: str, misused: Any) -> None:
        assert flags.split()[0] in misused(
            "robustness", "data", "checkpoint.pt", "--radii", "1", *flags.split()
        )

    def test_radii_are_needed(self, capsys: Any) -> None:
        with pytest.raises(SystemExit) as caught:
            run("data", "checkpoint.pt")
        assert caught.value.code == 2
        assert "--radii" in capsys.readouterr().err


def test_examples() -> None:
    import doctest

    for module in (checkpoint_data,):
        result = doctest.testmod(module)
        assert result.attempted > 0
        assert result.failed == 0
