"""Calibration and length penalties, by hand and against slow loops."""

import doctest
import importlib
import json
import math
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from fairseq_sam.files.writing import write_json
from fairseq_sam.reporting.scores import read_scores

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "scripts" / "scoring"))

pytest.importorskip("sacrebleu")
calibration = importlib.import_module("calibration")
length_penalty = importlib.import_module("length_penalty")


@pytest.mark.parametrize("module", [calibration, length_penalty])
def test_examples_of_the_docs(module):
    assert doctest.testmod(module).failed == 0


class TestCalibrationError:
    def test_by_hand(self):
        # Three bins: (0, 1/3] has nothing; (1/3, 2/3] 0.4, 0.6, half right; (2/3, 1] 0.9, 1, wrong.
        right, confidence = np.array([1, 0, 0, 0]), np.array([0.4, 0.6, 0.9, 1.0])
        expected = (2 * abs(0.5 - 0.5) + 2 * abs(0.0 - 0.95)) / 4
        assert calibration.calibration_error(right, confidence, 3) == pytest.approx(expected)

    @pytest.mark.parametrize("bins", [1, 15])
    def test_against_a_loop(self, bins):
        rng = np.random.default_rng(1)
        confidence, right = rng.uniform(0, 1, 500), rng.integers(0, 2, 500)
        total = 0.0
        for i in range(bins):
            chosen = (confidence > i / bins) & (confidence <= (i + 1) / bins)
            if chosen.any():
                gap = right[chosen].mean() - confidence[chosen].mean()
                total += chosen.mean() * abs(gap)
        assert calibration.calibration_error(right, confidence, bins) == pytest.approx(total)

    def test_an_honest_model_has_none_and_a_boaster_has_all(self):
        rng = np.random.default_rng(2)
        confidence = rng.uniform(0.5, 1, 200_000)
        right = rng.uniform(size=len(confidence)) < confidence
        assert calibration.calibration_error(right, confidence) < 0.01
        assert calibration.calibration_error(np.zeros(9), np.ones(9)) == 1


class TestAnswers:
    logits = torch.tensor([[2.0, 0.0, -2.0], [1.0, 1.5, 0.5]])
    target = torch.tensor([0, 2])

    def test_against_a_loop(self):
        found = calibration.answers_of(self.logits, self.target)
        for i, (row, right) in enumerate(zip(self.logits.tolist(), self.target.tolist())):
            total = sum(map(math.exp, row))
            shares = [math.exp(value) / total for value in row]
            assert found.right[i] == (max(shares) == shares[right])
            assert found.confidence[i] == pytest.approx(max(shares))
            assert found.nll[i] == pytest.approx(-math.log(shares[right]))
            assert found.entropy[i] == pytest.approx(-sum(p * math.log(p) for p in shares))
            middle = sum(row) / 3
            assert found.norm[i] == pytest.approx(math.sqrt(sum((v - middle) ** 2 for v in row)))

    def test_a_constant_changes_nothing(self):
        one = calibration.answers_of(self.logits, self.target)
        other = calibration.answers_of(self.logits + 100, self.target)
        for first, second in zip(one, other):
            np.testing.assert_allclose(first, second)

    def test_padding_is_no_answer(self):
        model = SimpleNamespace(get_targets=lambda sample, output: sample["target"])
        trained = SimpleNamespace(
            cfg=SimpleNamespace(criterion=SimpleNamespace()),
            task=SimpleNamespace(target_dictionary=SimpleNamespace(pad=lambda: 1)),
            model=type("Model", (), {"__call__": lambda self, x: (x,), **vars(model)})(),
        )
        trained.model.get_targets = model.get_targets
        sample = {
            "net_input": {"x": self.logits.repeat(2, 1).view(2, 2, 3)},
            "target": torch.tensor([[0, 2], [0, 1]]),
        }
        found = calibration.all_answers(trained, [sample, sample])
        assert len(found.right) == 6
        assert (
            found.nll[:2].tolist() == calibration.answers_of(self.logits, self.target).nll.tolist()
        )

    def test_splits_whose_scores_would_have_one_name_are_refused(self):
        pytest.importorskip("fairseq")
        args = SimpleNamespace(subsets="valid,test,test1")
        with pytest.raises(calibration.ScoringError, match="--subsets valid,test,test1: "):
            calibration.score(args)

    def test_models_without_probabilities_are_refused(self):
        modules = pytest.importorskip("fairseq.modules")
        args = SimpleNamespace(checkpoint="model.pt")
        head = {"classification_head_name": "head"}
        for criterion, layer, said in (
            ({**head, "regression_target": True}, torch.nn.Linear(1, 1), "predicts numbers"),
            ({}, modules.AdaptiveSoftmax(9, 4, [3], 0.0), "has an adaptive softmax"),
        ):
            cfg = SimpleNamespace(criterion=SimpleNamespace(**criterion))
            with pytest.raises(calibration.ScoringError, match=f"model.pt: {said}"):
                calibration.check_has_probabilities(args, SimpleNamespace(model=layer, cfg=cfg))

    def test_records(self):
        answers = calibration.answers_of(self.logits, self.target)
        names = [r["name"] for r in calibration.records_of(answers, False, "valid ")]
        assert names == [
            *("valid Accuracy", "valid NLL", "valid ECE", "valid Entropy", "valid Logit norm")
        ]
        found = {r["name"]: r["score"] for r in calibration.records_of(answers, True)}
        assert found["Token accuracy"] == 50
        assert found["Perplexity"] == pytest.approx(math.exp(found["NLL"]))

    def test_a_destroyed_model(self, tmp_path):
        """Its perplexity is beyond what a float holds, and JSON has no infinity."""
        answers = calibration.answers_of(torch.tensor([[2000.0, 0.0]]), torch.tensor([1]))
        records = calibration.records_of(answers, True)
        assert {r["name"]: r["score"] for r in records}["Perplexity"] == math.inf
        write_json(records, tmp_path / "scores.json")
        found = read_scores(tmp_path, pytest.fail)
        assert math.isnan(found["Perplexity"].value)
        assert found["NLL"].value == 2000


class TestLengthPenalty:
    REFERENCES = ("A man walks his dog in the old park.", "Two women sit on a bench by the sea.")

    def write(self, path, short_first):
        """Each sentence's whole translation, and its beginning, which is more probable."""
        lines = []
        for key, text in enumerate(self.REFERENCES):
            words = text.lower().replace(".", " .").split()
            candidates = [(words[:5], -0.9), (words, -0.5)]
            for part, mean in candidates if short_first else candidates[::-1]:
                numbers = " ".join([str(mean)] * (len(part) + 1))
                lines += [f"H-{key}\t{mean}\t{' '.join(part)}", f"D-{key}\t{mean}\tx"]
                lines.append(f"P-{key}\t{numbers}")
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")

    def test_short_ones_win_without_a_penalty(self):
        nbest = [[(-4.0, "short", 4), (-6.0, "much longer", 8)]]
        assert length_penalty.best_at(nbest, 0.0) == ["short"]
        assert length_penalty.best_at(nbest, 1.0) == ["much longer"]

    def test_the_penalty_is_the_validation_sets_and_nearest_to_1_of_equals(self):
        nbest = [[(-4.0, "short", 4), (-6.0, "much longer", 8)]]
        wanted = {"short": 1.0, "much longer": 2.0}
        assert length_penalty.choose_penalty(nbest, lambda lines: wanted[lines[0]]) == 1.0
        wanted["short"] = 3.0
        assert length_penalty.choose_penalty(nbest, lambda lines: wanted[lines[0]]) == 0.5

    def test_program(self, tmp_path, monkeypatch):
        pytest.importorskip("sacremoses")
        for name in ("valid", "test"):
            self.write(tmp_path / name, short_first=name == "valid")
        tokenised = [line.lower().replace(".", " .") for line in self.REFERENCES]
        (tmp_path / "valid.en").write_text("\n".join(tokenised) + "\n", encoding="utf-8")
        (tmp_path / "test.en").write_text("\n".join(self.REFERENCES) + "\n", encoding="utf-8")
        command = [
            *("--valid", tmp_path / "valid", "--valid-reference", tmp_path / "valid.en"),
            *("--test", tmp_path / "test", "--test-reference", tmp_path / "test.en"),
            *("--lang", "en", "--lowercase", "--output", tmp_path / "scores.json"),
        ]
        monkeypatch.setattr(sys, "argv", ["length_penalty.py", *map(str, command)])
        assert length_penalty.main() == 0
        records = json.loads((tmp_path / "scores.json").read_text(encoding="utf-8"))
        found = {record["name"]: record["score"] for record in records}
        assert found["BLEU"] == pytest.approx(100)
        assert found["length penalty"] == 1
        assert found["length ratio"] == 1
        (tmp_path / "test.en").write_text("one\n", encoding="utf-8")
        assert length_penalty.main() == 1
