"""TextCNN, LSTM, GLUE and the ablations: settings at full size, small runs, manners."""

import json
import re
from string import ascii_lowercase

import pytest

from fairseq_sam.commands import main
from tests.conftest import REAL_DATA
from tests.scripts.made_text import write_side
from tests.scripts.script_runs import (
    BASH,
    command,
    compare_after_kills,
    dry_run,
    flags,
    needs_text_packages,
    predictions_of,
    run,
    trainings,
)

pytestmark = [pytest.mark.skipif(BASH is None, reason="there is no bash")]

# Norm and radius, from the Appendices C.2.1 and C.2.2 of GA-SAM.
RADII = {
    "textcnn_imdb": {
        "sam": ("linf", "2e-5"),
        "asam": ("linf", "5e-3"),
        "layer_sam": ("l2", "1e-5"),
        "multi_step_defense": ("linf", "2e-5"),
        "ga_sam": ("linf", "1e-4"),
    },
    "lstm_ptb": {
        "sam": ("l2", "5e-3"),
        "asam": ("linf", "5e-4"),
        "layer_sam": ("l2", "1e-6"),
        "multi_step_defense": ("linf", "1e-3"),
        "ga_sam": ("linf", "8e-6"),
    },
}
# The same for the ablations, from its Appendix C.3.
ABLATIONS = {
    "textcnn_imdb": {
        "ga_sam_single": ("linf", "5e-5"),
        "ga_sam_element": ("linf", "5e-6"),
        "ga_sam_model": ("linf", "5e-5"),
        "ga_sam_weight_over_gradient": ("linf", "2e-5"),
        "ga_sam_inverse_gradient": ("linf", "5e-5"),
        "ga_sam_weight_strength": ("linf", "5e-3"),
        "ga_sam_weight": ("linf", "5e-6"),
        "ga_sam_k3": ("linf", "1e-4"),
    },
    "lstm_ptb": {
        "ga_sam_single": ("l2", "5e-3"),
        "ga_sam_element": ("linf", "2e-6"),
        "ga_sam_model": ("linf", "5e-6"),
        "ga_sam_weight_over_gradient": ("l2", "2e-5"),
        "ga_sam_inverse_gradient": ("linf", "5e-6"),
        "ga_sam_weight_strength": ("linf", "1e-4"),
        "ga_sam_weight": ("linf", "1e-7"),
        "ga_sam_k3": ("linf", "8e-6"),
    },
}
PARTS = {
    "ga_sam_single": ("--sam-risk", "perturbed"),
    "ga_sam_element": ("--sam-granularity", "element"),
    "ga_sam_model": ("--sam-granularity", "model"),
    "ga_sam_weight_over_gradient": ("--sam-scale", "weight-over-gradient"),
    "ga_sam_inverse_gradient": ("--sam-scale", "inverse-gradient"),
    "ga_sam_weight_strength": ("--sam-scale", "weight-strength"),
    "ga_sam_weight": ("--sam-scale", "weight"),
    "ga_sam_k3": ("--sam-steps", "3"),
}


class TestFullSize:
    """What --dry-run prints is compared with the papers' settings."""

    @pytest.mark.parametrize("name", RADII)
    def test_radii(self, name):
        wanted = {**RADII[name], **ABLATIONS[name]}
        commands = dry_run(name, "--seeds", 2, "--out", "O", "--methods", ",".join(wanted))
        for method, (norm, radius) in wanted.items():
            found = trainings(commands, f"O/runs/{method}/seed2/checkpoints")
            assert (found["--sam-norm"], found["--sam-rho"]) == (norm, radius), method
            if method in PARTS:
                flag, value = PARTS[method]
                assert (found["--optimizer"], found[flag]) == ("ga_sam", value)
            else:
                assert found["--optimizer"] == method
                assert "--sam-steps" not in found  # the methods' default is 1

    def test_textcnn(self):
        commands = dry_run("textcnn_imdb", "--seeds", 1, "--out", "O", "--methods", "baseline")
        found = trainings(commands, "O/runs/baseline/seed1/checkpoints")
        wanted = {
            "--optimizer": "adam", "--lr": "1e-3", "--batch-size": "64", "--max-epoch": "10",
            "--embed-dim": "500", "--feature-maps": "500", "--windows": "3,4,5",
            "--max-positions": "200", "--best-checkpoint-metric": "accuracy",
        }  # fmt: skip
        assert {key: found[key] for key in wanted} == wanted
        (dictionary,) = [c for c in commands if "O/prepared.incomplete/bin/input0" in c]
        assert flags(dictionary)["--nwordssrc"] == "30000"

    def test_folds_of_mr(self):
        commands = dry_run("textcnn_imdb", "--dataset", "mr", "--data", "D", "--out", "O")
        folds = [flags(c)["--fold"] for c in commands if "--fold" in c]
        assert folds == [str(i) for i in range(1, 11)]
        train = [c for c in commands if "fairseq_cli.train" in c]
        assert {c[3] for c in train} == {f"O/prepared/fold{i}/bin" for i in range(1, 11)}
        assert flags(train[0])["--optimizer"] == "adadelta"

    def test_lstm(self):
        commands = dry_run("lstm_ptb", "--seeds", 1, "--out", "O", "--methods", "baseline")
        found = trainings(commands, "O/runs/baseline/seed1/checkpoints")
        wanted = {
            "--optimizer": "sgd", "--lr": "50", "--clip-norm": "0.25", "--max-epoch": "20",
            "--decoder-embed-dim": "500", "--decoder-hidden-size": "500", "--decoder-layers": "2",
            "--share-decoder-input-output-embed": True, "--force-anneal": "11",
            "--lr-shrink": "0.5",
        }  # fmt: skip
        assert {key: found[key] for key in wanted} == wanted

    @pytest.mark.parametrize(
        ("task", "radius", "eta", "classes", "batch", "updates", "warmup"),
        [
            ("CoLA", "0.02", "1e-4", "2", "16", "5336", "320"),
            ("MNLI", "0.02", "1e-4", "3", "32", "123873", "7432"),
            ("MRPC", "0.02", "1e-4", "2", "16", "2296", "137"),
            ("QNLI", "0.02", "1e-4", "2", "32", "33112", "1986"),
            ("QQP", "0.02", "1e-4", "2", "32", "113272", "28318"),
            ("RTE", "0.02", "5e-4", "2", "8", "2036", "122"),
            ("SST-2", "0.02", "1e-4", "2", "32", "20935", "1256"),
            ("STS-B", "0.01", "1e-4", "1", "16", "3598", "214"),
        ],
    )
    def test_glue(self, task, radius, eta, classes, batch, updates, warmup):
        commands = dry_run(
            "glue", task, "--model", "M.pt", "--data", REAL_DATA.parent, "--gpus", 1, "--out", "O"
        )
        found = trainings(commands, "O/runs/delta_sam/seed5/checkpoints")
        assert (found["--sam-rho"], found["--delta-sam-eta"]) == (radius, eta)
        assert (found["--num-classes"], found["--lr"]) == (classes, "1e-5")
        assert (found["--batch-size"], found["--arch"]) == (batch, "roberta_large")
        assert (found["--max-update"], found["--total-num-update"]) == (updates, updates)
        assert (found["--warmup-updates"], found["--weight-decay"]) == (warmup, "0.01")
        assert "--max-epoch" not in found
        assert ("--regression-target" in found) == (task == "STS-B")
        assert (commands[-1][commands[-1].index("--summary") + 1]) == "best-median"

    def test_glue_with_bert(self, tmp_path):
        (tmp_path / "flags.txt").touch()
        commands = dry_run(
            "glue", "RTE", "--model", tmp_path, "--seeds", 1, "--out", "O", "--epochs", 3,
            "--gpus", 2, "--methods", "delta_sam,delta_sam_draft",
        )  # fmt: skip
        published = trainings(commands, "O/runs/delta_sam/seed1/checkpoints")
        assert (published["--sam-rho"], published["--batch-size"]) == ("0.05", "4")
        assert published["--max-update"] == str(3 * -(-2490 // 8))
        draft = trainings(commands, "O/runs/delta_sam_draft/seed1/checkpoints")
        assert draft["--delta-sam-beta"] == "70"
        assert commands[-1][commands[-1].index("--paper") + 1] == "glue_RTE_bert"

    @pytest.mark.parametrize(("name", "batch"), [("textcnn_imdb", "16"), ("lstm_ptb", "5")])
    def test_workers_share_the_batch(self, name, batch):
        commands = dry_run(name, "--out", "O", "--seeds", 1, "--gpus", 4)
        assert trainings(commands, "O/runs/sam/seed1/checkpoints")["--batch-size"] == batch

    @pytest.mark.parametrize(
        ("name", "alpha", "more"),
        [("iwslt14_de_en", "5", []), ("bart_cnn_dm", "0.7", ["--bart", "M.pt"])],
    )
    def test_alpha_of_r_drop(self, name, alpha, more):
        commands = dry_run(name, "--out", "O", "--seeds", 1, "--methods", "r_drop", *more)
        found = trainings(commands, "O/runs/r_drop/seed1/checkpoints")
        assert found["--r-drop-alpha"] == alpha

    def test_grid_of_glue(self):
        methods = "sam@0.05,delta_sam_eta2e-4@0.01,delta_sam_draft,r_drop"
        commands = dry_run(
            "glue", "CoLA", "--model", "M.pt", "--seeds", 1, "--out", "O", "--methods", methods
        )
        grid = trainings(commands, "O/runs/delta_sam_eta2e-4@0.01/seed1/checkpoints")
        assert (grid["--sam-rho"], grid["--delta-sam-eta"]) == ("0.01", "2e-4")
        draft = trainings(commands, "O/runs/delta_sam_draft/seed1/checkpoints")
        assert (draft["--delta-sam-variant"], draft["--delta-sam-beta"]) == ("draft", "20")
        rival = trainings(commands, "O/runs/r_drop/seed1/checkpoints")
        assert (rival["--optimizer"], rival["--criterion"]) == (
            "adam",
            "r_drop_sentence_prediction",
        )

    def test_ablations(self):
        commands = dry_run("ablation", "--seeds", 1, "--out", "O")
        train = [flags(c)["--save-dir"] for c in commands if "fairseq_cli.train" in c]
        for name in ("textcnn", "lstm"):
            runs = {d.split("/")[3] for d in train if d.startswith(f"O/{name}/")}
            assert set(PARTS) | {"baseline", "ga_sam", "ga_sam_k2", "ga_sam_k5"} <= runs
            assert len(runs) == 26  # as its --help says
            assert len([run for run in runs if run.startswith("ga_sam@")]) == 5
            assert len([run for run in runs if run.startswith("ga_sam_l2@")]) == 6


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("textcnn_imdb", ["--dataset", "sst"], "--dataset sst: choose from: imdb mr"),
        ("textcnn_imdb", ["--dataset", "mr"], "--data is missing"),
        ("textcnn_imdb", ["--dataset", "mr", "--data", "/", "--seeds", "11"], "from 1 to 10"),
        ("textcnn_imdb", ["--average", "3"], "--average: training is perturbed from the start"),
        ("textcnn_imdb", ["--data", "/no/such"], "--data /no/such: no such file or directory"),
        ("lstm_ptb", ["--width", "0"], "--width 0: a whole number of at least 1"),
        ("lstm_ptb", ["--lr", "fast"], "--lr fast: a number above 0"),
        ("glue", ["WNLI", "--model", "/"], "TASK WNLI: choose from: CoLA"),
        ("glue", ["--model", "/"], "TASK : choose from: CoLA"),
        ("glue", ["RTE"], "--model is missing"),
        ("glue", ["RTE", "--model", "/no/such"], "--model /no/such: no such"),
        ("glue", ["RTE", "--model", "/"], "not a folder that fairseq-sam convert wrote"),
        ("glue", ["RTE", "--model", "M", "--methods", "r_drop@2"], "r_drop has no radius"),
        ("ablation", ["--only", "glue"], "--only glue: choose from"),
        ("ablation", ["--data", "x"], "--data: say --imdb and --ptb here"),
        ("ablation", ["--out"], "--out needs a value"),
    ],
)
def test_misuse(name, arguments, message):
    result = run(name, *arguments)
    assert result.returncode == 2, result.stdout
    assert message in result.stdout


@pytest.mark.parametrize("name", ["textcnn_imdb", "lstm_ptb", "glue", "ablation"])
def test_help(name):
    result = run(name, "--help")
    assert result.returncode == 0
    assert re.search(r"Examples:\n  bash scripts/", result.stdout)


def reviews(root):
    """A made aclImdb whose classes can be told apart."""
    words = {"pos": "good fine great", "neg": "bad awful poor"}
    for split in ("train", "test"):
        for label, text in words.items():
            folder = root / split / label
            folder.mkdir(parents=True)
            for i in range(30):
                review = f"A {text.split()[i % 3]} film.<br />{text.split()[i % 2]}, {i} of 30!"
                (folder / f"{i}_{9 if label == 'pos' else 2}.txt").write_text(review)
    return root


@needs_text_packages
def test_textcnn_small(tmp_path):
    real = REAL_DATA / "imdb"
    data = real if real.is_dir() else reviews(tmp_path / "aclImdb")
    out = tmp_path / "out"
    result = run(
        "textcnn_imdb", "--small", "--data", data, "--out", out, "--seeds", 1, "--epochs", 1,
        "--methods", "baseline,ga_sam,ga_sam_k2", "--extra", "--max-update 3", "--parallel", 2,
    )  # fmt: skip
    assert result.returncode == 0, result.stdout
    table = (out / "report.md").read_text()
    assert re.search(r"\| baseline \| 1 \| \d+\.\d\d \| 84\.42 ± 0\.12 \|", table)
    assert re.search(r"\| ga_sam \| 1 \| \d+\.\d\d \| 86\.11 ± 0\.22 \| [01]\.\d+", table)


@pytest.mark.slow
@needs_text_packages
def test_ten_kills_at_random(tmp_path):
    data = reviews(tmp_path / "aclImdb")
    options = ["--small", "--data", data, "--seeds", 1, "--epochs", 2, "--parallel", 2]
    options += ["--methods", "baseline,ga_sam", "--extra", "--max-update 8"]
    compare_after_kills(
        lambda out: command("textcnn_imdb", *options, "--out", out), tmp_path, 10, predictions_of
    )


@pytest.mark.slow
@needs_text_packages
def test_mr_small(tmp_path):
    real = REAL_DATA / "mr"
    data = real
    if not real.is_dir():
        data = tmp_path / "mr"
        data.mkdir()
        for name, word in (("pos", "good"), ("neg", "bad")):
            write_side(data / name, [f"a {word} film number {i}" for i in range(60)])
    out = tmp_path / "out"
    result = run(
        "textcnn_imdb", "--dataset", "mr", "--small", "--data", data, "--out", out,
        "--seeds", "1,2", "--epochs", 1, "--methods", "baseline", "--extra", "--max-update 3",
    )  # fmt: skip
    assert result.returncode == 0, result.stdout
    assert re.search(r"\| baseline \| 2 \| .* \| 76\.1 \|", (out / "report.md").read_text())


@pytest.mark.slow
@needs_text_packages
def test_ablation_small(tmp_path):
    """The driver and its plot, by way of the LSTM."""
    real = REAL_DATA / "ptb"
    data = real
    if not real.is_dir():
        data = tmp_path / "ptb"
        data.mkdir()
        for split in ("train", "valid", "test"):
            write_side(data / f"ptb.{split}.txt", ["the cat sat on the <unk> mat"] * 30)
    out = tmp_path / "out"
    result = run(
        "ablation", "--only", "lstm", "--small", "--ptb", data, "--out", out, "--seeds", 1,
        "--epochs", 1, "--width", 8, "--methods", "baseline,ga_sam@1e-5,ga_sam_k2",
        "--extra", "--max-update 3", "--parallel", 2,
    )  # fmt: skip
    assert result.returncode == 0, result.stdout
    table = (out / "lstm" / "report.md").read_text()
    assert re.search(r"\| baseline \| 1 \| \d+\.\d\d \| 86\.70 ± 0\.54", table)
    assert (out / "lstm.png").stat().st_size > 1000


GLUE = {
    "RTE": "index\tsentence1\tsentence2\tlabel\n{i}\tThe cat sat {i}.\tA cat sat.\t{word}\n",
    "STS-B": "index\tsentence1\tsentence2\tscore\n{i}\tThe cat sat {i}.\tA cat sat.\t{number}\n",
}


def glue_folder(root, task):
    real = REAL_DATA / "glue"
    if real.is_dir():
        return real
    header, line = GLUE[task].strip().split("\n")
    (root / task).mkdir(parents=True)
    for split in ("train", "dev"):
        rows = [
            line.format(i=i, word=("entailment", "not_entailment")[i % 2], number=i % 6)
            for i in range(12)
        ]
        write_side(root / task / f"{split}.tsv", [header, *rows])
    return root


@pytest.mark.slow
@needs_text_packages
@pytest.mark.parametrize("task", ["RTE", "STS-B"])
def test_glue_small(tmp_path, task):
    pytest.importorskip("tokenizers")
    from tests.conversion.made_encoder import BERT_PIECES, write_encoder

    letters = [f"{prefix}{letter}" for letter in ascii_lowercase for prefix in ("", "##")]
    pieces = list(dict.fromkeys([*BERT_PIECES, *letters]))
    write_encoder(tmp_path / "hugging", pieces, max_position_embeddings=64)
    assert (
        main(["convert", str(tmp_path / "hugging"), f"--output={tmp_path}/encoder/model.pt"]) == 0
    )
    out = tmp_path / "out"
    result = run(
        "glue", task, "--small", "--model", tmp_path / "encoder",
        "--data", glue_folder(tmp_path / "glue", task), "--out", out, "--seeds", "1,2",
        "--epochs", 1, "--methods", "baseline,r_drop", "--extra", "--max-update 3",
        "--parallel", 2,
    )  # fmt: skip
    assert result.returncode == 0, result.stdout
    table = (out / "report.md").read_text()
    metric = {"RTE": "Accuracy", "STS-B": "Pearson"}[task]
    assert f"{metric} " in table
    assert "best / median" in table
    records = json.loads((out / "runs" / "r_drop" / "seed1" / "scores.json").read_text())
    assert records[0]["name"] == metric
    assert 0 < records[0]["p_value"] <= 1
