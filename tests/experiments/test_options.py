"""The command lines of the recipes: what is refused, how, and before anything starts."""

import os

import pytest

from fairseq_sam.experiments import conduct
from fairseq_sam.experiments.experiment import Experiment
from fairseq_sam.experiments.options import parse
from fairseq_sam.experiments.recipes import NAMES, recipe_of
from tests.experiments.runs import commands, flags, refused, trainings

MATRIX = [name for name in NAMES if name != "quickstart"]


@pytest.fixture
def needed(tmp_path, monkeypatch):
    """``needed(recipe)``: the options without which a recipe does not start."""
    monkeypatch.chdir(tmp_path)
    for name in ("pos", "neg", "model.pt", "flags.txt"):
        (tmp_path / name).write_text("--arch bert\n" if name == "flags.txt" else "")
    given = {
        "bart_cnn_dm": ["--bart", "model.pt"],
        "glue": ["RTE", "--model", "model.pt"],
        "mirror_bert": ["--model", ".", "--sts", "."],
        "adversarial_risk": ["--data", "."],
        "evidence": ["--data", "."],
    }
    return lambda recipe: given.get(recipe, [])


@pytest.mark.parametrize("recipe", MATRIX)
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--methods", "adamw"], "--methods: adamw is not allowed: choose from"),
        (["--methods", "sam@x"], "--methods: sam@x: x is not allowed: it must be a finite number"),
        (["--methods", "sam@0%"], "--methods: sam@0%: 0 is not allowed"),
        (["--methods", ","], "--methods: at least one is wanted"),
        (["--seeds", "1,b"], "--seeds: b is not allowed: it must be a whole number"),
        (["--seeds", ","], "--seeds: at least one is wanted"),
        (["--stage", "7"], "--stage: 7 is not allowed: it must be a whole number"),
        (["--stage", "4", "--stop-stage", "3"], "--stop-stage: 3 is not allowed"),
        (["--parallel", "0"], "--parallel: 0 is not allowed"),
        (["--nodes", "2", "--node-rank", "2"], "--node-rank: 2 is not allowed"),
        (["--nodes", "2", "--gpus", "0"], "--nodes: 2 need --gpus of at least 1"),
        (["--nodes", "2", "--parallel", "2"], "--parallel 2: with --nodes"),
        (["--master", "host"], "--master: host is not allowed: it must be HOST:PORT"),
        (["--extra", "'"], "--extra: ' is not allowed: No closing quotation"),
        (["--data", "/no/such"], "--data: /no/such is not allowed: no such"),
        (["--frobnicate", "1"], "--frobnicate"),
        (["--seeds"], "--seeds: expected one argument"),
    ],
)
def test_misuse(needed, capsys, recipe, arguments, message):
    assert message in refused(capsys, recipe, *needed(recipe), "--out", "out", *arguments)
    assert not os.path.exists("out")


@pytest.mark.parametrize(
    ("recipe", "arguments", "message"),
    [
        ("iwslt14_de_en", ["--methods", "baseline@1"], "baseline has no radius"),
        ("iwslt14_de_en", ["--bpe", "x"], "--bpe: invalid choice"),
        ("iwslt15_en_vi", ["--start-epoch", "99"], "--start-epoch: 99 is not allowed: there are"),
        ("iwslt15_en_vi", ["--average", "99"], "--average: 99 is not allowed: there are 52"),
        ("bart_cnn_dm", [], "--bart: is missing"),
        ("bart_cnn_dm", ["--bart", "/no/such"], "--bart: /no/such is not allowed: no such file"),
        ("bart_cnn_dm", ["--bart", "model.pt", "--epochs", "3"], "--epochs"),
        ("textcnn_imdb", ["--dataset", "sst"], "--dataset: invalid choice: 'sst'"),
        ("textcnn_imdb", ["--dataset", "mr"], "--data: is missing"),
        ("textcnn_imdb", ["--dataset", "mr", "--data", "/", "--seeds", "11"], "11 is not allowed"),
        ("textcnn_imdb", ["--average", "3"], "--average"),
        ("lstm_ptb", ["--width", "0"], "--width: 0 is not allowed: it must be a whole number"),
        ("lstm_ptb", ["--lr", "fast"], "--lr: fast is not allowed: it must be a finite number"),
        ("glue", ["WNLI", "--model", "/"], "TASK: WNLI is not allowed: choose from CoLA"),
        ("glue", ["--model", "/"], "TASK"),
        ("glue", ["RTE"], "--model: is missing"),
        ("glue", ["RTE", "--model", "/no/such"], "--model: /no/such is not allowed: no such"),
        ("glue", ["RTE", "--model", "/"], "not a folder that fairseq-sam convert wrote"),
        ("glue", ["RTE", "--model", "model.pt", "--methods", "r_drop@2"], "r_drop has no radius"),
        ("mirror_bert", [], "--model: is missing"),
        ("mirror_bert", ["--model", "/"], "not a folder that fairseq-sam convert wrote"),
        ("mirror_bert", ["--model", "."], "--sts: is missing"),
        ("mirror_bert", ["--model", ".", "--sts", "/no/such"], "--sts: /no/such is not allowed"),
        ("mirror_bert", ["--model", ".", "--sts", ".", "--batch", "1"], "--batch: 1 is not"),
        ("mirror_bert", ["--launcher", "x", "--gpus", "2"], "one GPU a training"),
        ("adversarial_risk", [], "--data: is missing"),
        ("adversarial_risk", ["--data", "/"], "--data: / is not allowed: neither pos nor pos.gz"),
        ("adversarial_risk", ["--data", ".", "--updates", "9"], "--updates: 9 is not allowed"),
        ("adversarial_risk", ["--data", ".", "--rho", "0"], "--rho: 0 is not allowed"),
        ("quickstart", ["--pair", "german"], "--pair: german is not allowed"),
        ("quickstart", ["--pair", "de-de"], "--pair: de-de is not allowed"),
        ("quickstart", ["--optimizer", "adam"], "--optimizer: adam is not allowed"),
        ("quickstart", ["--rho", "-1"], "--rho: -1 is not allowed"),
        ("quickstart", ["--rho", "nan"], "--rho: nan is not allowed"),
        ("quickstart", ["--epochs", "0"], "--epochs: 0 is not allowed"),
        ("quickstart", ["--epochs", "4", "--start-epoch", "5"], "--start-epoch: 5 is not allowed"),
        ("quickstart", ["--steps", "0"], "--steps: 0 is not allowed"),
        ("quickstart", ["--bpe", "many"], "--bpe: many is not allowed"),
        ("quickstart", ["--model", "huge"], "--model: invalid choice"),
        ("quickstart", ["--label", "a/b"], "--label: a/b is not allowed"),
        ("quickstart", ["--label", "adam"], "--label: adam is not allowed"),
        ("quickstart", ["--label", "shared"], "--label: shared is not allowed"),
        ("quickstart", ["--text", "cooked"], "--text: invalid choice"),
        ("quickstart", ["--data", "."], "neither train.de nor train.de.gz is in it"),
        ("quickstart", ["--methods", "sam"], "--methods"),
    ],
)
def test_misuse_of_one(needed, capsys, recipe, arguments, message):
    assert message in refused(capsys, recipe, "--out", "out", *arguments)
    assert not os.path.exists("out")


@pytest.mark.parametrize("name", NAMES)
def test_help_has_all_options_and_examples(capsys, name):
    with pytest.raises(SystemExit) as end:
        conduct.main(recipe_of(name), f"bash scripts/{name}.sh", ["--help"])
    assert end.value.code == 0
    text = capsys.readouterr().out
    assert f"Examples:\n  bash scripts/{name}.sh" in text
    for option in (
        "--out",
        "--dry-run",
        "--gpus",
        "--parallel",
        "--launcher",
        "--nodes",
        "--stage",
    ):
        assert option in text
    assert "METHOD is one of" in text or name == "quickstart"


def test_a_radius_and_more_flags(needed, capsys):
    found = commands(
        capsys, "iwslt15_en_vi", "--methods", "ga_sam@0.25,sam@5%", "--seeds", 2, "--out", "O",
        "--gpus", 0, "--extra", "--lr 1e-3 --adam-betas '(0.9, 0.99)'",
    )  # fmt: skip
    ga_sam = trainings(found)["runs/ga_sam@0.25/seed2"]
    assert (ga_sam["--sam-rho"], ga_sam["--lr"]) == ("0.25", "1e-3")
    assert ga_sam["--adam-betas"] == "(0.9, 0.99)"
    assert "--cpu" in ga_sam
    assert trainings(found)["runs/sam@5%/seed2"]["--sam-rho"] == "5%"


def test_nothing_is_run_in_a_dry_run(needed, capsys, tmp_path):
    before = sorted(os.listdir(tmp_path))
    commands(capsys, "iwslt14_de_en", "--out", "O")
    assert sorted(os.listdir(tmp_path)) == before


def test_workers_share_the_batch(needed, capsys):
    for recipe, gpus, flag, value in (
        ("textcnn_imdb", 4, "--batch-size", "16"),
        ("lstm_ptb", 4, "--batch-size", "5"),
        ("iwslt14_de_en", 4, "--max-tokens", "1024"),
        ("bart_cnn_dm", 2, "--update-freq", "16"),
        ("glue", 2, "--batch-size", "4"),
    ):
        options = [*needed(recipe), "--gpus", gpus, "--seeds", 1, "--out", "O"]
        found = trainings(commands(capsys, recipe, *options))["runs/sam/seed1"]
        assert (found[flag], found["--distributed-world-size"]) == (value, str(gpus)), recipe


@pytest.mark.parametrize("recipe", ["bart_cnn_dm", "glue", "mirror_bert"])
def test_a_pretrained_model_is_named_from_the_root(needed, tmp_path, recipe):
    # A run is refused to go on with other settings: the same file from elsewhere is none.
    options = parse(recipe_of(recipe), recipe, needed(recipe))
    model = options.bart if recipe == "bart_cnn_dm" else options.model
    assert model == str(tmp_path / ("" if recipe == "mirror_bert" else "model.pt"))


@pytest.mark.parametrize(("nodes", "gpus"), [(2, 1), (2, 4)])
def test_all_machines_train_one_model(needed, capsys, nodes, gpus):
    found = commands(
        *(capsys, "iwslt14_de_en", "--gpus", gpus, "--nodes", nodes, "--node-rank", 1),
        *("--master", "h:99", "--seeds", 1, "--out", "O"),
    )
    launch = next(words for words in found if "fairseq_cli.train" in words)
    assert launch[0] == "torchrun"
    names = ("--nnodes", "--nproc-per-node", "--node-rank", "--master-addr", "--master-port")
    values = [flags(launch)[name] for name in names]
    assert values == [str(nodes), str(gpus), "1", "h", "99"]
    assert flags(launch)["--distributed-world-size"] == str(nodes * gpus)
    assert flags(launch)["--max-tokens"] == str(4096 // (nodes * gpus))


def test_a_launcher_goes_before_trainings_and_scorings(needed, capsys):
    found = commands(
        *(capsys, "iwslt14_de_en", "--seeds", 1, "--methods", "baseline,sam", "--out", "O"),
        *("--launcher", "srun --gpus 1"),
    )
    launched = [words[3:] for words in found if words[0] == "srun"]
    assert all(words[:3] == ["srun", "--gpus", "1"] for words in found if words[0] == "srun")
    heavy = ("fairseq_cli.train", "fairseq_cli.generate")
    assert [w for w in found if set(heavy) & set(w)] == [
        ["srun", "--gpus", "1", *w] for w in launched if set(heavy) & set(w)
    ]
    assert not any("mkdir" in words or "fairseq_cli.preprocess" in words for words in launched)


def test_seeds_that_are_asked_for_are_those(needed, capsys):
    text = ["textcnn_imdb", "--dataset", "mr", "--data", ".", "--methods", "baseline"]
    folds = [name[-1] for name in trainings(commands(capsys, *text, "--out", "O"))]
    assert len(folds) == 10
    for recipe, more in (
        (text, ["--seeds", "1,2,3,4"]),
        (["adversarial_risk", "--data", ".", "--small", "--methods", "adam"], ["--seeds", "1,2,3"]),
    ):
        found = trainings(commands(capsys, *recipe, *more, "--out", "O"))
        assert [name[-1] for name in found] == more[1].split(",")


def test_all_folds_are_prepared_for_those_that_are_added_later(needed, capsys):
    found = commands(
        capsys, "textcnn_imdb", "--dataset", "mr", "--data", ".", "--seeds", 2, "--out", "O"
    )
    folds = {flags(words)["--fold"] for words in found if "--fold" in words}
    assert folds == {str(fold) for fold in range(1, 11)}


@pytest.mark.parametrize("recipe", ["glue", "bart_cnn_dm"])
def test_delta_sam_to_the_letter_probes_at_its_radius(needed, capsys, recipe):
    options = ["--methods", "delta_sam_literal,delta_sam_literal@0.3", "--seeds", 1, "--out", "O"]
    for name, found in trainings(commands(capsys, recipe, *needed(recipe), *options)).items():
        assert found["--delta-sam-probe-radius"] == found["--sam-rho"], name


def test_paths_may_have_blanks_and_braces(needed, capsys, tmp_path):
    folder = tmp_path / "my {1} runs"
    found = commands(capsys, "bart_cnn_dm", *needed("bart_cnn_dm"), "--out", folder)
    dictionaries = [flags(words)["--srcdict"] for words in found if "--srcdict" in words]
    assert dictionaries[0] == "$OUT/download/dict.txt"


def test_flags_of_the_quickstart_may_have_braces(needed, capsys):
    more = "--sam-exclude 'layers.{1}'"
    found = commands(capsys, "quickstart", "--out", "O", "--sam-extra", more)
    assert trainings(found)["runs/ga_sam"]["--sam-exclude"] == "layers.{1}"


def test_the_script_says_how_many_threads(needed, capsys, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    found = commands(capsys, "evidence", "--data", ".", "--out", "O", "--seeds", 1)
    assert ["export", "OMP_NUM_THREADS=1"] in found


def test_runs_of_one_folder_have_one_precision(needed, tmp_path):
    """Those that train; a report may be made where there is no GPU."""
    found = []
    for more in (["--gpus", "0"], ["--gpus", "1"], ["--gpus", "0", "--stage", "6"]):
        recipe = recipe_of("glue")
        options = parse(recipe, "glue", [*needed("glue"), *more, "--dry-run"])
        found.append(recipe.recorded(Experiment(recipe, options, print)).get("--fp16"))
    assert found == [False, True, None]


def test_a_probe_radius_is_no_share(needed, capsys):
    arguments = [*needed("glue"), "--methods", "delta_sam_literal@5%"]
    assert "delta_sam_literal@5% is not allowed" in refused(capsys, "glue", *arguments)
