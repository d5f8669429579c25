"""The scoring programs, against the libraries called plainly and against slow loops."""

import doctest
import importlib
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "scripts" / "scoring"))

sacrebleu = pytest.importorskip("sacrebleu")
pytest.importorskip("rouge_score")
translations = importlib.import_module("translations")
summaries = importlib.import_module("summaries")
scores = importlib.import_module("scores")

REFERENCES = [f"The cat number {i} sat on the mat, and it's asleep." for i in range(30)]
GOOD = [line.replace("asleep", "awake") for line in REFERENCES]
BAD = [line.replace("cat", "dog").replace("mat", "hat") for line in GOOD]


@pytest.mark.parametrize("module", [translations, summaries, scores])
def test_examples_of_the_docs(module):
    assert doctest.testmod(module).failed == 0


class TestTranslations:
    def test_scores_are_sacrebleus(self):
        bleu, chrf = translations.score(GOOD, REFERENCES, False, None)
        assert bleu["score"] == sacrebleu.corpus_bleu(GOOD, [REFERENCES]).score
        assert chrf["score"] == sacrebleu.corpus_chrf(GOOD, [REFERENCES]).score
        assert "case:mixed" in bleu["signature"]
        assert "p_value" not in bleu

    def test_lowercase(self):
        upper = [line.upper() for line in REFERENCES]
        assert translations.score(upper, REFERENCES, False, None)[0]["score"] < 10
        bleu = translations.score(upper, REFERENCES, True, None)[0]
        assert bleu["score"] == pytest.approx(100)
        assert "case:lc" in bleu["signature"]

    def test_p_value_tells_a_difference_from_none(self):
        different = translations.score(GOOD, REFERENCES, False, BAD)
        assert all(record["p_value"] < 0.01 for record in different)
        same = translations.score(GOOD, REFERENCES, False, list(GOOD))
        assert all(record["p_value"] == 1 for record in same)

    def run(self, tmp_path, monkeypatch, *arguments):
        generated = tmp_path / "generate.txt"
        order = [2, 0, 1]
        generated.write_text(
            "".join(f"S-{i}\tx\nH-{i}\t-1.0\tit &apos;s number {i} .\n" for i in order)
        )
        reference = tmp_path / "reference"
        reference.write_text("It's number 0.\nIt's number 1.\nIt's number 2.\n")
        command = ["--generated", generated, "--reference", reference, "--lang", "en"]
        command += ["--output", tmp_path / "scores.json", *arguments]
        monkeypatch.setattr(sys, "argv", ["translations.py", *map(str, command)])
        return translations.main()

    def test_program(self, tmp_path, monkeypatch):
        assert self.run(tmp_path, monkeypatch, "--lowercase") == 0
        hypotheses = (tmp_path / "hypothesis").read_text().splitlines()
        assert hypotheses == ["it's number 0.", "it's number 1.", "it's number 2."]
        records = json.loads((tmp_path / "scores.json").read_text())
        assert records[0]["name"] == "BLEU"
        assert records[0]["score"] == pytest.approx(100)

    def test_another_number_of_lines_is_refused(self, tmp_path, monkeypatch, capsys):
        (tmp_path / "base").write_text("one line\n")
        assert self.run(tmp_path, monkeypatch, "--baseline", tmp_path / "base") == 1
        assert "base has 1 translations" in capsys.readouterr().err
        assert not (tmp_path / "scores.json").exists()

    def test_a_baseline_is_not_written_over(self, tmp_path, monkeypatch, capsys):
        """It would be compared with itself, and be lost."""
        baseline = tmp_path / "hypothesis"
        baseline.write_text("one\ntwo\nthree\n")
        assert self.run(tmp_path, monkeypatch, "--baseline", baseline) == 1
        assert "hypothesis would be written over, which is --baseline" in capsys.readouterr().err
        assert baseline.read_text() == "one\ntwo\nthree\n"

    @pytest.mark.parametrize(
        ("output", "said"),
        [("absent/scores.json", "in a folder that exists"), ("reference", "which is --reference")],
    )
    def test_an_output_that_cannot_be_is_refused_at_once(
        self, tmp_path, monkeypatch, capsys, output, said
    ):
        monkeypatch.setattr(translations, "run", pytest.fail)
        assert self.run(tmp_path, monkeypatch, "--output", tmp_path / output) == 1
        assert said in capsys.readouterr().err

    def test_what_is_no_text_is_refused(self, tmp_path, monkeypatch, capsys):
        (tmp_path / "base").write_bytes(b"\xff\xfe")
        assert self.run(tmp_path, monkeypatch, "--baseline", tmp_path / "base") == 1
        assert "base: is not UTF-8" in capsys.readouterr().err


class TestSummaries:
    def test_scores_are_rouge_scores(self):
        from rouge_score.rouge_scorer import RougeScorer

        found = summaries.rouge_scores(BAD, REFERENCES)
        scorer = RougeScorer(["rouge1", "rouge2", "rougeL"], use_stemmer=True)
        expected = [scorer.score(r, h) for r, h in zip(REFERENCES, BAD)]
        for name, key in (("ROUGE-1", "rouge1"), ("ROUGE-2", "rouge2"), ("ROUGE-L", "rougeL")):
            assert found[name] == [100 * s[key].fmeasure for s in expected]

    def test_sentences_count_for_rouge_lsum_only(self):
        # The same two sentences in another order: as one sentence they share the longer only.
        found = summaries.rouge_scores(["One two three. Four five."], ["Four five. One two three."])
        assert found["ROUGE-Lsum"][0] == pytest.approx(100)
        assert found["ROUGE-L"][0] == pytest.approx(60)

    def test_paired_bootstrap(self):
        rng = np.random.default_rng(1)
        baseline = rng.normal(40, 10, 200)
        noise = rng.normal(0, 1, 200)
        assert summaries.paired_bootstrap(baseline + noise + 1, baseline) < 0.01
        assert summaries.paired_bootstrap(baseline + noise - noise.mean(), baseline) > 0.9
        assert summaries.paired_bootstrap(baseline, baseline) == 1

    def test_p_values_are_uniform_where_nothing_differs(self):
        rng = np.random.default_rng(2)
        values = [
            summaries.paired_bootstrap(*rng.normal(0, 1, (2, 60)), resamples=200)
            for _ in range(100)
        ]
        assert 0.35 < np.mean(values) < 0.65
        assert 0.01 <= np.mean(np.array(values) < 0.1) <= 0.22

    def test_decoding_leaves_symbols_out(self):
        class Decoder:
            def decode(self, numbers):
                return " ".join(f"<{n}>" for n in numbers)

        assert summaries.decode("12 <unk> 7", Decoder()) == "<12> <7>"


def test_scores_of_chance():
    """An accuracy of the commonest class is chance, and so is no correlation at all."""
    chance = importlib.import_module("predictions").CHANCE
    found = {name: function(np.array([0, 1, 1, 2, 1])) for name, function in chance.items()}
    assert found == {"accuracy": 0.6, "matthews": 0, "pearson": 0, "spearman": 0}


def test_perplexity_is_per_token_whatever_a_model_was_trained_with(monkeypatch, tmp_path):
    predictions = importlib.import_module("predictions")
    from fairseq_sam.analysis import dataset_loss
    from fairseq_sam.evaluation import sentences, trained_model

    criterion = SimpleNamespace(sentence_avg=True)
    cfg = SimpleNamespace(criterion=SimpleNamespace(_name="cross_entropy"))
    trained = SimpleNamespace(model=None, cfg=cfg)
    monkeypatch.setattr(trained_model, "load_trained_model", lambda *_: trained)
    monkeypatch.setattr(trained_model, "build_criterion", lambda *_: criterion)
    monkeypatch.setattr(sentences, "mini_batches", lambda *_: [])
    loss = {False: 2.0, True: 60.0}
    monkeypatch.setattr(
        dataset_loss,
        "DatasetLoss",
        lambda model, criterion, samples: lambda: loss[criterion.sentence_avg],
    )
    args = SimpleNamespace(
        checkpoint="x", data="y", metrics="perplexity", subset="test", max_tokens=9,
        output=tmp_path / "scores.json",
    )  # fmt: skip
    assert predictions.score(args)[0]["score"] == pytest.approx(np.exp(2.0))
    loss[False] = 1000.0  # a destroyed model
    assert predictions.score(args)[0]["score"] == np.inf


CRITERIONS = {
    "classes": SimpleNamespace(_name="sentence_prediction", classification_head_name="head"),
    "numbers": SimpleNamespace(
        _name="sentence_prediction", classification_head_name="head", regression_target=True
    ),
    "tokens": SimpleNamespace(_name="cross_entropy"),
}


@pytest.mark.parametrize("kind", CRITERIONS)
def test_metrics_that_do_not_fit_the_model_are_refused(kind):
    predictions = importlib.import_module("predictions")
    trained = SimpleNamespace(cfg=SimpleNamespace(criterion=CRITERIONS[kind]))
    for metrics in (
        "accuracy",
        "f1,matthews",
        "pearson,spearman",
        "accuracy,pearson",
        "perplexity",
    ):
        args = SimpleNamespace(metrics=metrics, checkpoint="model.pt")
        if set(metrics.split(",")) <= set(predictions.FITTING[kind]):
            predictions.check_metrics(args, trained)
        else:
            with pytest.raises(scores.ScoringError) as caught:
                predictions.check_metrics(args, trained)
            told = f"--metrics {metrics}: model.pt, which was trained with "
            assert str(caught.value).startswith(told)
            assert str(caught.value).endswith(f"of {', '.join(predictions.FITTING[kind])}")


@pytest.mark.parametrize(
    ("symbols", "numbers"),
    [
        (["2", "1"], [2, 1]),
        (["2", "1", "madeupword0000", "madeupword0001", "<mask>"], [2, 1, 3, 4]),
        (["not", "is", "madeupword0000"], [1, 0, 2]),
    ],
)
def test_classes_are_numbered_without_those_that_fill_a_dictionary_up(symbols, numbers):
    class Labels(list):
        nspecial = 4

    labels = Labels(["<s>", "<pad>", "</s>", "<unk>", *symbols])
    assert importlib.import_module("predictions").class_numbers(labels).tolist() == numbers


def test_a_baseline_of_another_program_is_refused(tmp_path):
    (tmp_path / "hypothesis").write_text("A sentence.\nAnother, longer one.\n")
    with pytest.raises(scores.ScoringError, match="hypothesis: is not a hypothesis file"):
        importlib.import_module("predictions").read_predictions(tmp_path / "hypothesis", [0, 1])
