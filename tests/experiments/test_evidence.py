"""The evidence: what its protocol says is what is run."""

import re

import pytest

from fairseq_sam.experiments.experiment import ROOT
from fairseq_sam.experiments.recipes.evidence import RECIPE
from fairseq_sam.experiments.recipes.evidence_tasks import TASKS
from tests.experiments.runs import commands, flags, refused, trainings

PROTOCOL = (ROOT / "docs" / "results" / "protocol.md").read_text(encoding="utf-8")


@pytest.fixture
def found(capsys, tmp_path, monkeypatch):
    """``found(task, methods, options…)``: the commands; a pretrained model is in ``minilm``."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "minilm").mkdir()
    (tmp_path / "minilm" / "flags.txt").write_text("--arch bert --max-positions 512\n")

    def run(task, methods, *options):
        model = ["--model", "minilm"] if TASKS[task].glue else []
        return commands(
            capsys, "evidence", "--task", task, "--data", tmp_path, "--seeds", 1,
            "--methods", methods, "--out", "O", *model, *options,
        )  # fmt: skip

    return run


def test_methods_are_those_of_the_protocol():
    section = PROTOCOL.split("## Methods")[1].split("**Radius.**")[0]
    rows = [line.split("|")[1] for line in section.splitlines() if line.startswith("| `")]
    named = [name for row in rows for name in re.findall(r"`([a-z_]+)`", row)]
    assert sorted(named) == sorted(RECIPE.default.split(","))


@pytest.mark.parametrize("task", TASKS)
def test_lengths_are_those_of_the_protocol(found, task):
    row = next(line for line in PROTOCOL.splitlines() if line.startswith(f"| `{task}` |"))
    epochs, start = re.search(r"\| (\d+), (\d+)(?:st|nd|rd|th) \|", row).groups()
    runs = trainings(found(task, "baseline,longer,sam,late"))
    assert runs["shared/seed1"]["--max-epoch"] == str(int(start) - 1)
    assert runs["runs/baseline/seed1"]["--max-epoch"] == epochs
    assert runs["runs/longer/seed1"]["--max-epoch"] == str(2 * int(epochs) - int(start) + 1)
    sam, late = runs["runs/sam/seed1"], runs["runs/late/seed1"]
    assert (sam["--sam-start-epoch"], sam["--max-epoch"]) == (start, epochs)
    assert (late["--sam-start-fraction"], late["--max-epoch"]) == ("0.7", epochs)
    assert "--sam-start-epoch" not in late


def test_each_text_may_be_packed(found, tmp_path):
    (tmp_path / "ptb.valid.txt.gz").touch()
    (tmp_path / "ptb.train.txt").touch()
    reads = [line for line in found("ptb_lstm", "baseline") if "/ptb." in " ".join(line)]
    assert [line[0] for line in reads] == ["cat", "gunzip", "cat"]
    assert "valid.txt.gz" in " ".join(reads[1])


@pytest.mark.parametrize("task", TASKS)
def test_one_radius_for_all(found, task):
    for name, given in trainings(found(task, RECIPE.default)).items():
        if "--base-optimizer" in given:
            expected = "0.5" if "momentum" in name else "5%"
            assert given["--sam-rho"] == expected, name
    assert trainings(found(task, "sam@2%"))["runs/sam@2%/seed1"]["--sam-rho"] == "2%"


def test_the_best_of_the_shared_epochs_stays_the_best(found):
    copied = [words[1] for words in found("mr", "sam") if words[0] == "cp"]
    assert [path.rsplit("/", 1)[1] for path in copied] == [
        *("checkpoint_last.pt", "checkpoint_best.pt", "train.log")
    ]


def test_from_the_first_epoch_nothing_is_shared(found):
    lines = found("mr", "baseline,longer,sam", "--start-epoch", 1)
    runs = trainings(lines)
    assert "shared/seed1" not in runs
    assert runs["runs/longer/seed1"]["--max-epoch"] == str(2 * TASKS["mr"].epochs)


def test_all_folds_are_prepared_and_each_run_has_its_own(found):
    lines = found("mr", "baseline")
    folds = {flags(words)["--fold"] for words in lines if "--fold" in words}
    assert folds == {str(fold) for fold in range(1, 11)}
    (training, *_) = [words for words in lines if "fairseq_cli.train" in words]
    assert training[3] == "$OUT/prepared/fold1/bin"


def test_sgd_without_momentum_has_none_to_follow(found):
    runs = trainings(found("ptb_lstm_sgd", RECIPE.default))
    assert "runs/sam/seed1" in runs
    assert "runs/momentum/seed1" not in runs


def test_a_pretrained_model_is_fine_tuned_on_its_own_pieces(found):
    lines = found("mrpc", "baseline")
    assert trainings(lines)["shared/seed1"]["--finetune-from-model"].endswith("minilm/model.pt")
    (reading,) = [words for words in lines if words[1:2] and words[1].endswith("glue_task.py")]
    assert flags(reading)["--task"] == "MRPC"
    assert "--test" in reading
    assert "--limit" not in reading
    read = {words[words.index("<") + 1].rsplit("/", 1)[1] for words in lines if "<" in words}
    assert read == {f"{split}.input{i}" for split in ("train", "valid", "test") for i in (0, 1)}
    texts = [flags(words) for words in lines if "--srcdict" in words]
    assert [given["--srcdict"].rsplit("/", 1)[1] for given in texts] == ["dict.txt"] * 2
    (reading,) = [words for words in found("mrpc", "baseline", "--small") if "--limit" in words]
    assert flags(reading)["--limit"] == "500"


def test_a_score_is_a_number_to_predict(found):
    lines = found("stsb", "baseline,sam")
    given = trainings(lines)["runs/sam/seed1"]
    assert (given["--num-classes"], given["--best-checkpoint-metric"]) == ("1", "loss")
    assert "--regression-target" in given
    copied = [words[1] for words in lines if words[0] == "cp" and "number" in words[1]]
    assert [path.rsplit("/", 1)[1] for path in copied] == [
        *("train.number", "valid.number", "test.number")
    ]


def test_reviews_of_imdb_have_no_folds(found):
    lines = found("imdb", "baseline")
    (reading,) = [words for words in lines if words[1:2] and words[1].endswith("labelled_text.py")]
    assert "--fold" not in reading
    (training, *_) = [words for words in lines if "fairseq_cli.train" in words]
    assert training[3] == "$OUT/prepared/bin"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--task", "mr"], "--data: is missing"),
        (["--task", "mr", "--data", ".", "--model", "."], "is not allowed: mr has its"),
        (
            ["--task", "mrpc", "--data", "."],
            "--model: is missing: a folder that fairseq-sam convert",
        ),
        (["--task", "mr", "--data", ".", "--train", "9"], "--train: 9 is not allowed: mr is taken"),
        (
            ["--task", "ptb_lstm_sgd", "--data", ".", "--methods", "momentum"],
            "--methods: momentum is not allowed: the SGD of ptb_lstm_sgd",
        ),
        (["--task", "mrpc", "--data", ".", "--model", "."], "flags.txt is missing"),
        (["--task", "mr", "--data", ".", "--seeds", "11"], "--seeds: 11 is not allowed"),
        (["--task", "sst"], "--task: invalid choice"),
    ],
)
def test_misuse(capsys, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    assert message in refused(capsys, "evidence", *arguments)
