"""The recipes against what the papers print (docs/papers.md)."""

import re

import pytest

from fairseq_sam.experiments.recipes import NAMES, published, recipe_of
from fairseq_sam.experiments.recipes.adversarial_risk import RECIPE as RISK
from tests.conftest import ROOT
from tests.experiments.runs import commands, flags, trainings

PAPERS = ROOT / "docs" / "papers.md"
METHODS = ("sam", "asam", "layer_sam", "multi_step_defense", "ga_sam")


@pytest.fixture(scope="module")
def papers():
    return PAPERS.read_text(encoding="utf-8")


@pytest.fixture
def training(capsys, tmp_path, monkeypatch):
    """``training(recipe, method, options…)``: the flags of one training."""
    monkeypatch.chdir(tmp_path)

    def flags_of(recipe, method, *options):
        found = commands(capsys, recipe, "--out", "O", "--methods", method, "--seeds", 1, *options)
        return trainings(found)[f"runs/{method}/seed1"]

    return flags_of


def table(papers, first_column):
    """Returns the cells of the first row of a table that begins so."""
    row = re.search(rf"^\| {re.escape(first_column)} \|(.*)\|$", papers, re.MULTILINE)
    return [cell.strip() for cell in row.group(1).split("|")]


class TestSettings:
    @pytest.mark.parametrize(
        ("recipe", "row", "epochs"),
        [("iwslt14_de_en", "De-En", "70"), ("iwslt15_en_vi", "En-Vi", "52")],
    )
    def test_translation(self, papers, training, recipe, row, epochs):
        printed = [float(cell) for cell in table(papers, row)]
        for method, radius in zip(METHODS, printed):
            found = training(recipe, method)
            assert float(found["--sam-rho"]) == radius
            assert (found["--optimizer"], found["--sam-norm"]) == (method, "linf")
            assert (found["--sam-start-epoch"], found["--max-epoch"]) == ("30", epochs)
            steps = "2" if method in ("multi_step_defense", "ga_sam") else None
            assert found.get("--sam-steps") == steps
            assert found["--arch"] == "transformer_wmt_en_de"
        assert f"{epochs} epochs" in papers
        line = papers.split("FreeLB there (App. C.4):")[1].split("\n\n")[0].replace("\n", " ")
        steps, radius = re.search(rf"{row} K=(\d), ε=([0-9.]+\d)", line).groups()
        found = training(recipe, "free_lb")
        assert (found["--free-lb-steps"], found["--free-lb-radius"]) == (steps, radius)

    @pytest.mark.parametrize(
        ("recipe", "paragraph"), [("textcnn_imdb", "IMDB TextCNN"), ("lstm_ptb", "PTB LSTM")]
    )
    def test_one_step_methods(self, papers, training, recipe, paragraph):
        text = re.search(rf"^{paragraph}.*?\n(SAM .*)$", papers, re.MULTILINE).group(1)
        for method, part in zip(METHODS, text.rstrip(".").split(" · ")):
            norm, radius = part.split()[-2:]
            found = training(recipe, method)
            assert float(found["--sam-rho"]) == float(radius)
            assert found["--sam-norm"] == {"L∞": "linf", "L2": "l2"}[norm]
            assert "--sam-steps" not in found  # the methods' default is 1

    def test_sizes(self, papers, training):
        textcnn, lstm = training("textcnn_imdb", "baseline"), training("lstm_ptb", "baseline")
        assert "windows 3,4,5, 500 maps each, embedding 500, vocabulary 30000" in papers
        assert "length 200, Adam 1e-3, batch 64, 10 epochs" in papers
        wanted = {
            "--windows": "3,4,5", "--feature-maps": "500", "--embed-dim": "500", "--lr": "1e-3",
            "--max-positions": "200", "--batch-size": "64", "--max-epoch": "10",
            "--optimizer": "adam",
        }  # fmt: skip
        assert {key: textcnn[key] for key in wanted} == wanted
        assert "SGD lr 50, clip 0.25, lr halved after epoch 10, 20 epochs" in papers
        wanted = {
            "--decoder-layers": "2", "--decoder-embed-dim": "500", "--decoder-hidden-size": "500",
            "--share-decoder-input-output-embed": True, "--optimizer": "sgd", "--lr": "50",
            "--clip-norm": "0.25", "--force-anneal": "11", "--lr-shrink": "0.5",
            "--max-epoch": "20",
        }  # fmt: skip
        assert {key: lstm[key] for key in wanted} == wanted

    def test_bart(self, papers, training):
        rho, eta = re.search(r"BART CNN/DM ρ=([0-9.]+), η=([0-9.e-]+\d)", papers).groups()
        found = training("bart_cnn_dm", "delta_sam", "--bart", "B", "--gpus", 8)
        assert (found["--sam-rho"], found["--delta-sam-eta"]) == (rho, eta)
        assert (found["--arch"], found["--update-freq"]) == ("bart_large", "4")

    @pytest.mark.parametrize("family", ["bert", "roberta"])
    def test_glue(self, papers, capsys, tmp_path, family):
        (tmp_path / "flags.txt").write_text(f"--arch {family} --max-positions 512\n")
        title = {"bert": "BERT-base", "roberta": "RoBERTa-large"}[family]
        best = re.search(rf"{title} ρ=(\S+) \(STS-B (\S+)\), η=(\S+) \(RTE (\S+)\)", papers)
        rho, rho_of_sts, eta, eta_of_rte = best.groups()
        order = re.search(r"β for BERT-base\n(.*?); for", papers).group(1)
        tasks = [part.split()[0] for part in order.split(", ")]
        betas = [part.split()[1] for part in order.split(", ")]
        if family == "roberta":
            betas = re.search(r"for RoBERTa-large ([0-9, ]+)\.", papers).group(1).split(", ")
        for task, beta in zip(tasks, betas):
            found = trainings(
                commands(
                    capsys, "glue", task, "--model", tmp_path, "--data", tmp_path, "--seeds", 1,
                    "--methods", "delta_sam,delta_sam_draft",
                )
            )  # fmt: skip
            delta_sam, draft = found["runs/delta_sam/seed1"], found["runs/delta_sam_draft/seed1"]
            assert delta_sam["--sam-rho"] == (rho_of_sts if task == "STS-B" else rho)
            assert delta_sam["--delta-sam-eta"] == (eta_of_rte if task == "RTE" else eta)
            assert draft["--delta-sam-beta"] == beta
            one = task in ("CoLA", "SST-2")  # sentence
            separator = "2" if family == "roberta" and not one else None
            assert delta_sam.get("--separator-token") == separator

    @pytest.mark.parametrize(
        ("family", "flags"),
        [
            ("bert", "--arch bert --num-segments 2"),
            ("roberta", "--arch roberta"),
            ("roberta", "--arch bert --layer-norm-eps 1e-12 --num-segments 1"),
        ],
    )
    def test_mirror_bert(self, papers, training, tmp_path, family, flags):
        (tmp_path / "flags.txt").write_text(f"{flags}\n")
        name = {"bert": "BERT", "roberta": "RoBERTa"}[family]
        found = re.search(rf"ρ=([0-9.]+), η=([0-9.]+),[a-z ]* noise ([0-9.]+) \({name}\)", papers)
        options = ["--model", tmp_path, "--sts", tmp_path]
        flags = training("mirror_bert", "delta_sam_noise", *options)
        names = ("--sam-rho", "--delta-sam-eta", "--mirror-noise")
        assert tuple(flags[name] for name in names) == found.groups()
        assert flags["--mirror-perturb"] == "one"

    def test_per_instance_perturbation_has_twice_the_epochs(self, papers, training, tmp_path):
        assert "Per-instance perturbation: twice the epochs." in papers
        for name in ("pos", "neg", "flags.txt"):
            (tmp_path / name).touch()
        glue = ["RTE", "--model", tmp_path, "--data", tmp_path]
        for recipe, options in (
            ("adversarial_risk", ["--data", tmp_path]),
            ("glue", glue),
            ("glue", [*glue, "--epochs", 3]),
        ):
            sam, other = (training(recipe, m, *options) for m in ("sam", "per_instance_sam"))
            names = ["--max-update", "--total-num-update"]
            names += ["--max-epoch"] if "--epochs" in options else []
            assert all(int(other[name]) == 2 * int(sam[name]) for name in names)


class TestFigures:
    def test_ga_sam(self, papers):
        rows = {
            "baseline": "baseline", "SAM": "sam", "ASAM": "asam", "Layer-SAM": "layer_sam",
            "Multi-step Defense": "multi_step_defense", "GA-SAM": "ga_sam", "FreeLB": "free_lb",
        }  # fmt: skip
        recipes = ("textcnn_imdb", "lstm_ptb", "iwslt15_en_vi", "iwslt14_de_en")
        figures = published()
        for title, method in rows.items():
            results = papers.split("\n## Results")[1]
            for recipe, cell in zip(recipes, table(results, title)):
                (metric,) = figures[recipe].metrics.values()
                assert metric.get(method, "").split(" ± ")[0] == cell

    def test_ablations(self, papers):
        text = papers.split("GA-SAM, Table 2, ablations")[1].split("\n\n")[0]
        pairs = re.findall(r"([^·:]+?) (\d\d\.\d\d)/(\d\d\.\d\d)", text.split("):")[1])
        names = (
            *("ga_sam_single", "ga_sam_element", "ga_sam_model", "ga_sam_weight_over_gradient"),
            *("ga_sam_inverse_gradient", "ga_sam_weight_strength", "ga_sam_weight"),
        )
        assert len(pairs) == len(names)
        figures = published()
        for name, (_, accuracy, perplexity) in zip(names, pairs):
            found = figures["textcnn_imdb_ablation"].metrics["Accuracy"][name]
            assert found.split(" ± ")[0] == accuracy
            found = figures["lstm_ptb_ablation"].metrics["Perplexity"][name]
            assert found.split(" ± ")[0] == perplexity

    def test_bart(self, papers):
        text = papers.split("CNN/DM (R-1/R-2/R-L): ")[1].split("\n")[0].rstrip(".")
        metrics = published()["bart_cnn_dm"].metrics
        for part, method in zip(text.split(" · "), ("baseline", "r3f", "r_drop", "delta_sam")):
            values = part.split()[-1].split("/")
            assert [metric[method] for metric in metrics.values()] == values

    @pytest.mark.parametrize("family", ["bert", "roberta"])
    def test_averages_of_glue(self, papers, family):
        begin = {"bert": "BERT-base average: ", "roberta": "RoBERTa-large: "}[family]
        text = papers.split(begin)[1].split(". ")[0].split("\n")[0].rstrip(".")
        names = {"R-Drop": "r_drop", "SAM": "sam", "δ-SAM": "delta_sam", "FreeLB": "free_lb"}
        baseline, *others = text.split(", ")
        wanted = {"baseline": baseline, **{names[o.split()[0]]: o.split()[1] for o in others}}
        tables = [p for name, p in published().items() if re.fullmatch(rf"glue_\w+_{family}", name)]
        assert len(tables) == 8
        for method, average in wanted.items():
            values = [float(v[method]) for paper in tables for v in paper.metrics.values()]
            assert sum(values) / 8 == pytest.approx(float(average), abs=0.11)

    def test_sts(self, papers):
        text = papers.split("STS average: ")[1].split("\n")[0]
        bert = re.findall(r"\d\d\.\d\d", text.split(";")[0])
        roberta = re.findall(r"\d\d\.\d\d", text.split(";")[1])
        for family, values in (("bert", bert), ("roberta", roberta)):
            average = published()[f"mirror_{family}_sts"].metrics["STS average"]
            names = ("baseline", "sam", "delta_sam", "delta_sam_noise")
            assert [average[name] for name in names] == values

    def test_adversarial_risk(self, papers):
        text = papers.split("Table 4, adversarial risk (ρ=0.05), MRPC/RTE: ")[1].split("\n")[0]
        values = [part.split()[-1].split("/") for part in text.rstrip(".").split(" · ")]
        names = ("adam", "sam", "delta_sam", "per_instance_sam")
        found = [[metric[name] for metric in RISK.paper.metrics.values()] for name in names]
        assert found == values


class TestTables:
    @pytest.mark.parametrize("recipe", ["textcnn_imdb", "lstm_ptb"])
    def test_every_ablation_of_the_paper_is_trained(self, capsys, tmp_path, monkeypatch, recipe):
        monkeypatch.chdir(tmp_path)
        found = commands(capsys, recipe, "--out", "O", "--seeds", 1, "--methods", "ablations")
        runs = {name.split("/")[1] for name in trainings(found)}
        (paper,) = published()[f"{recipe}_ablation"].metrics.values()
        assert runs == set(paper)
        assert len(runs) == 26  # as the help of ablation.sh says
        report, plot = found[-2:]
        assert flags(report)["--paper"] == f"{recipe}_ablation"
        assert flags(plot)["--radius"] == trainings(found)["runs/ga_sam/seed1"]["--sam-rho"]

    @pytest.mark.parametrize("name", NAMES)
    def test_what_is_published_names_its_source(self, name):
        for paper in recipe_of(name).published.values():
            assert re.search(r"(EMNLP|Kim).*Table", paper.source)

    def test_the_plot_of_the_ablations_is_of_the_runs_in_the_table(self, capsys, tmp_path):
        for recipe in ("textcnn_imdb", "lstm_ptb"):
            options = ("--out", tmp_path, "--seeds", "1,2", "--methods", "baseline,ga_sam@5%")
            *_, report, plot = commands(capsys, recipe, *options)
            runs = [
                f"$OUT/runs/{name}/seed{n}" for n in (1, 2) for name in ("baseline", "ga_sam@5%")
            ]
            begin, end = plot.index("--runs") + 1, plot.index("--metric")
            assert plot[begin:end] == runs
            assert report[report.index("report") + 1 :][: len(runs)] == runs

    @pytest.mark.parametrize("name", NAMES)
    def test_default_methods_are_there(self, name):
        recipe = recipe_of(name)
        assert set(recipe.default.split(",")) <= set(recipe.methods)
        assert recipe.name == name
