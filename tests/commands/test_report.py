"""``fairseq-sam report``: what it makes of run directories."""

import json
import math
import os
import re
from dataclasses import replace
from pathlib import Path

import pytest

from fairseq_sam.commands import main
from fairseq_sam.experiments.recipes import published as published_figures
from fairseq_sam.perturbation import method_settings
from fairseq_sam.reporting.runs import Run, read_run, run_names
from fairseq_sam.reporting.runs_plot import (
    radius_curves,
    sharpness_curve,
    valid_loss_curve,
)
from fairseq_sam.reporting.runs_table import markdown_table
from fairseq_sam.reporting.scores import TOKENISED_BLEU, Published
from fairseq_sam.reporting.train_log import parse_line, parse_log
from fairseq_sam.training.configuration import Gate, SharpnessAwareConfig


def json_line(tag, epoch, **values):
    record = {"epoch": epoch, **{f"{tag}_{k}": str(v) for k, v in values.items()}}
    return f"2024-01-01 00:00:00 | INFO | {tag} | {json.dumps(record)}\n"


def write_run(directory, sharpness=None, shift=0.0, bleu=30.0, described=""):
    directory.mkdir(parents=True)
    with open(directory / "train.log", "w") as log:
        log.write("2024-01-01 00:00:00 | INFO | fairseq.tasks | {'not': json}\n")
        log.write(f"2024-01-01 00:00:00 | INFO | fairseq_sam.training.optimizers | {described}\n")
        for epoch in (1, 2, 3):
            on = sharpness is not None and epoch > 1
            stats = {"loss": 9 - epoch, "train_wall": 30 if on else 10, "perturbation_on": int(on)}
            if on:
                stats["sharpness"] = sharpness * epoch
            log.write('| INFO | train_inner | {"epoch": 1, "update": 0.5, "loss": "99"}\n')
            log.write(json_line("train", epoch, **stats))
            log.write(json_line("valid", epoch, loss=8 - epoch + shift))
    scores = [{"name": "BLEU", "score": bleu, "signature": "nrefs:1|tok:13a"}]
    (directory / "scores.json").write_text(json.dumps(scores))
    return directory


def test_the_best_of_a_validation_metric_is_on_its_better_side(tmp_path):
    for seed, value in enumerate((10, 20, 90), 1):
        folder = write_run(tmp_path / f"sam/seed{seed}")
        scores = [{"name": name, "score": value} for name in ("valid Perplexity", "valid Accuracy")]
        (folder / "scores.json").write_text(json.dumps(scores))
    runs = [read_run(tmp_path / f"sam/seed{s}", f"sam/seed{s}") for s in (1, 2, 3)]
    table = markdown_table(runs, group_by="/seed[0-9]", summary="best-median")
    assert "| 90.00 / 20.00 | 10.00 / 20.00 |" in table  # accuracy, perplexity


class TestTrainLog:
    def test_an_epoch_may_validate_several_times(self):
        lines = [
            json_line("valid", 1, loss=4.0, num_updates=5),
            json_line("valid", 1, loss=5.0, num_updates=10),
        ]
        again = [json_line("valid", 1, loss=4.5, num_updates=5), lines[1]]
        later = json_line("valid", 1, loss=5.5, num_updates=10)
        for found, lowest in ((lines, 4.0), ([*lines, *again], 4.5), ([*lines, later], 4.0)):
            (epoch,) = parse_log(found)
            assert epoch.valid["loss"] >= 5.0
            assert Run("a", [epoch], {}).best_valid_loss() == lowest

    @pytest.mark.parametrize("first", ["NaN", "null", "inf"])
    def test_a_validation_without_a_loss_hides_no_other(self, first):
        lines = [
            f'| INFO | valid | {{"epoch": 1, "valid_loss": {first}, "valid_num_updates": "5"}}',
            json_line("valid", 1, loss=2.0, num_updates=10),
        ]
        (epoch,) = parse_log(lines)
        assert Run("a", [epoch], {}).best_valid_loss() == 2.0

    @pytest.mark.parametrize(
        ("described", "radius", "is_share"),
        [
            ("sam: rho 0.05 (l2), scale none", 0.05, False),
            ("sam: rho for 5% of the loss (l2), scale none", 0.05, True),
            ("sam: rho for 2.5% of the loss, at most 0.1 (linf), scale none", 0.025, True),
            ("sam: rho 0 (l2), scale none", None, False),
        ],
    )
    def test_the_radius_is_a_number_or_a_share(self, tmp_path, described, radius, is_share):
        run = read_run(write_run(tmp_path / "run", described=described), "run")
        assert (run.radius, run.is_share) == (radius, is_share)
        assert run.method.startswith("sam") == (radius is not None)

    def test_json_and_plain_formats_agree(self):
        plain = [
            "2024-01-01 | INFO | train | epoch 002 | loss 5.1 | sharpness 0.02 | train_wall 7",
            "2024-01-01 | INFO | valid | epoch 002 | valid on 'valid' subset | loss 4.5 | ppl 9",
        ]
        as_json = [
            json_line("train", 2, loss=5.1, sharpness=0.02, train_wall=7),
            json_line("valid", 2, loss=4.5, ppl=9),
        ]
        assert parse_log(plain) == parse_log(as_json)
        assert parse_log(plain)[0].train["train_wall"] == 7

    @pytest.mark.parametrize(
        "line",
        [
            "",
            "epoch 002:   3%|█ | 3/100",
            "INFO | train_inner | epoch 002:     10 / 66 loss=7.9, nll_loss=7.8",
            '{"epoch": 1}',
            '{"epoch": "x", "train_loss": "1"}',
            '{"truncated": ',
            "| INFO | test | epoch 002 | valid on 'other' subset | loss 4.5",
        ],
    )
    def test_other_lines_are_passed_over(self, line):
        assert parse_line(line) is None

    def test_an_epoch_trained_again_counts_once(self):
        lines = [json_line("valid", 1, loss=5), json_line("valid", 2, loss=4)]
        epochs = parse_log([*lines, json_line("valid", 2, loss=3)])
        assert [epoch.valid["loss"] for epoch in epochs] == [5, 3]

    def test_fairseqs_own_formats(self):
        """What fairseq writes today, so that a change of its formats is noticed."""
        progress_bar = pytest.importorskip("fairseq.logging.progress_bar")
        for name in ("json", "simple"):
            bar = progress_bar.progress_bar([1, 2], log_format=name, epoch=4)
            lines = []
            progress_bar.logger.info, original = lines.append, progress_bar.logger.info
            try:
                bar.print({"loss": 1.5, "train_wall": 3}, tag="train", step=2)
            finally:
                progress_bar.logger.info = original
            assert parse_line(lines[0]) == (4, "train", {"loss": 1.5, "train_wall": 3.0})


class TestRuns:
    def test_numbers(self, tmp_path):
        run = read_run(write_run(tmp_path / "ga_sam", sharpness=0.1), "ga_sam")
        assert run.best_valid_loss() == 5
        assert run.seconds_per_epoch(perturbed=False) == 10
        assert run.seconds_per_epoch(perturbed=True) == 30
        assert run.first_perturbed_epoch() == 2
        assert valid_loss_curve([run]) == ([1, 2, 3], [7, 6, 5], [0, 0, 0])
        other = read_run(write_run(tmp_path / "adam", shift=0.5), "adam")
        difference = valid_loss_curve([run]).minus(valid_loss_curve([other]))
        assert difference == ([1, 2, 3], [-0.5, -0.5, -0.5], [0, 0, 0])
        assert sharpness_curve([run]) == ([2, 3], pytest.approx([0.2, 0.3]), [0, 0])

    def test_mean_of_several_runs(self, tmp_path):
        runs = [read_run(write_run(tmp_path / f"{s}", shift=s), f"{s}") for s in (0, 1)]
        deviations = pytest.approx([math.sqrt(0.5)] * 3)
        assert valid_loss_curve(runs) == ([1, 2, 3], [7.5, 6.5, 5.5], deviations)
        diverged = read_run(write_run(tmp_path / "diverged", shift=math.nan), "diverged")
        assert all(map(math.isnan, valid_loss_curve([runs[0], diverged]).means))
        interrupted = replace(runs[1], epochs=runs[1].epochs[:2])
        assert valid_loss_curve([runs[0], interrupted]).means == [7.5, 6.5, 5]

    def test_tokenised_bleu_of_generate(self, tmp_path):
        directory = write_run(tmp_path / "run")
        (directory / "generate.txt").write_text(
            "H-0\t-0.1\tGenerate me\nGenerate test with beam=5: BLEU4 = 35.41, 66.1/41.2\n"
        )
        (directory / "generate-valid.txt").write_text(
            "Generate valid with beam=5: BLEU4 = 40.00, 66.1/41.2\n"
        )
        scores = read_run(directory, "run", pytest.fail).scores
        assert scores[TOKENISED_BLEU].value == 35.41
        assert scores[f"valid {TOKENISED_BLEU}"].value == 40

    def test_a_score_that_two_files_have(self, tmp_path):
        directory, told = write_run(tmp_path / "run"), []
        (directory / "again.json").write_text('[{"name": "BLEU", "score": 30.0}]')
        assert read_run(directory, "run", pytest.fail).scores["BLEU"].value == 30
        (directory / "valid.json").write_text('[{"name": "BLEU", "score": 33.0}]')
        assert read_run(directory, "run", told.append).scores["BLEU"].value == 33
        assert told == [f"{directory / 'scores.json'}: its BLEU, since valid.json has another"]

    def test_names_tell_directories_apart(self):
        assert run_names([Path("/a/x"), Path("/a/y")]) == ["x", "y"]
        assert run_names([Path("/a/s1/x"), Path("/a/s2/x")]) == ["s1/x", "s2/x"]


def test_a_folder_that_may_not_be_written_to_is_told_at_once(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(os, "access", lambda path, mode: path != str(tmp_path / "out"))
    (tmp_path / "out").mkdir()
    written = tmp_path / "out" / "report.json"
    run = write_run(tmp_path / "run")
    assert main(["report", str(run), "--json", str(written)]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert f"{written}: cannot write (Permission denied)" in captured.err


class TestTwice:
    def test_a_run_under_two_names_counts_once(self, tmp_path, capsys):
        for seed, bleu in ((1, 30.0), (2, 31.0)):
            write_run(tmp_path / f"sam/seed{seed}", bleu=bleu)
        (tmp_path / "sam/latest").symlink_to("seed2")
        runs = [str(tmp_path / "sam" / name) for name in ("latest", "seed1", "seed2", "seed1/")]
        assert main(["report", *runs, "--group-by", "seed[0-9]"]) == 0
        captured = capsys.readouterr()
        assert "| 2 | 30.50 ± 0.71 |" in captured.out
        assert [line.split("passed over: ")[1] for line in captured.err.splitlines()] == [
            f"{runs[2]}: is {runs[0]}",
            f"{tmp_path / 'sam/seed1'}: is {runs[1]}",
        ]


class TestTable:
    def test_columns_and_signature(self, tmp_path):
        runs = [
            read_run(write_run(tmp_path / "adam"), "adam"),
            read_run(write_run(tmp_path / "ga_sam", sharpness=0.1, bleu=31.25), "ga_sam"),
        ]
        assert markdown_table(runs).splitlines() == [
            "| run | BLEU (of 100) ↑ | lowest valid loss (bits) ↓ | training s/epoch "
            "| training s/epoch, perturbed |",
            "| --- | ---: | ---: | ---: | ---: |",
            "| adam | 30.00 | 5.000 | 10.0 | – |",
            "| ga_sam | 31.25 | 5.000 | 10.0 | 30.0 |",
            "",
            "- BLEU: `nrefs:1|tok:13a`",
            "- ↑ higher is better, ↓ lower is better; std is the sample's, over runs",
            "- training s/epoch: seconds, without validation",
        ]

    def test_groups_have_mean_and_deviation(self, tmp_path):
        runs = [
            read_run(write_run(tmp_path / f"adam-seed{s}", bleu=30.0 + s), f"adam-seed{s}")
            for s in (1, 2, 3)
        ]
        header, _, row = markdown_table(runs, group_by="seed[0-9]+").splitlines()[:3]
        assert header.startswith("| run | runs | BLEU (of 100) ↑, mean ± std | lowest valid loss")
        assert row.startswith("| adam | 3 | 32.00 ± 1.00 | 5.000 ± 0.000 |")

    def test_seeds_of_one_method_are_a_group(self, tmp_path, capsys):
        """Their names are their last components, of which the expression leaves nothing."""
        runs = [str(write_run(tmp_path / "sam" / f"seed{s}", bleu=30.0 + s)) for s in (1, 2, 3)]
        plot = ["--plot", str(tmp_path / "curves.png")]
        assert main(["report", *runs, "--group-by", "seed[0-9]+", *plot]) == 0
        _, _, row, after = capsys.readouterr().out.splitlines()[:4]
        assert row.startswith("| all | 3 | 32.00 ± 1.00 |")
        assert after == ""

    @pytest.mark.parametrize(
        ("metric", "values", "expected"),
        [
            ("Perplexity", (None, 80.0, 90.0), "80.00 / 90.00"),
            ("Perplexity", (90.0, None, 80.0), "80.00 / 90.00"),
            ("Accuracy", (None, 80.0, 90.0), "90.00 / 80.00"),
            ("Accuracy", (80.0, None, None), "80.00 / nan"),
            ("Accuracy", (None, None), "nan / nan"),
        ],
    )
    def test_a_score_that_is_not_finite_is_the_worst(self, tmp_path, metric, values, expected):
        runs = []
        for seed, value in enumerate(values):
            directory = write_run(tmp_path / f"sam-seed{seed}")
            (directory / "scores.json").write_text(json.dumps([{"name": metric, "score": value}]))
            runs.append(read_run(directory, directory.name))
        table = markdown_table(runs, group_by="seed[0-9]+", summary="best-median")
        assert table.splitlines()[2].startswith(f"| sam | {len(values)} | {expected} |")

    def test_published_results_stand_beside_runs_and_nowhere_else(self, tmp_path):
        runs = [
            read_run(write_run(tmp_path / name, bleu=30.0), name) for name in ("baseline", "mine")
        ]
        published = Published("Somebody", {"BLEU": {"baseline": "35.41 ± 0.13", "theirs": "36.00"}})
        table = markdown_table(runs, published=published, paper_remark="not comparable: small")
        lines = table.splitlines()
        remark = "BLEU in the paper (not comparable: small)"
        assert lines[0].startswith(f"| run | BLEU (of 100) ↑ | {remark} | lowest")
        assert [line.split(" | ")[:3] for line in lines[2:5]] == [
            ["| baseline", "30.00", "35.41 ± 0.13"],
            ["| mine", "30.00", "–"],
            [""],
        ]
        assert "theirs" not in table
        assert "- paper: Somebody" in lines

    @pytest.mark.parametrize(
        ("records", "shown"),
        [
            ([("BLEU", 30.0, None), ("chrF2", 50.0, None)], True),
            ([("BLEU", 0.4, None), ("chrF2", 12.0, None)], False),
            ([("Accuracy", 80.0, 50.0)], True),
            ([("Accuracy", 50.0, 50.0)], False),
            ([("Accuracy", 50.0, None)], True),
            ([("Matthews", 0.0, 0.0)], False),
        ],
    )
    def test_p_values_of_chance_are_left_out(self, tmp_path, records, shown):
        directory = write_run(tmp_path / "sam")
        content = [
            {"name": name, "score": score, "p_value": 0.012, "chance": chance}
            for name, score, chance in records
        ]
        (directory / "scores.json").write_text(json.dumps(content))
        table = markdown_table([read_run(directory, "sam")])
        assert table.count(" 0.012 ") == (len(records) if shown else 0)
        assert ("differs from baseline's" in table) == shown

    def test_p_values_of_a_group_are_their_median(self, tmp_path):
        runs = []
        for seed, p_value in ((1, 0.2), (2, 0.01), (3, 0.04)):
            directory = write_run(tmp_path / f"sam-seed{seed}")
            record = {"name": "BLEU", "score": 30.0, "p_value": p_value}
            (directory / "scores.json").write_text(json.dumps([record]))
            runs.append(read_run(directory, directory.name))
        lines = markdown_table(runs, group_by="seed[0-9]+").splitlines()
        title = "BLEU (of 100) ↑, mean ± std | p: BLEU differs from baseline's"
        assert lines[0].startswith(f"| run | runs | {title} |")
        assert lines[2].startswith("| sam | 3 | 30.00 ± 0.00 | 0.040 |")
        assert any("paired bootstrap" in line for line in lines)

    def test_every_paper_has_a_metric_that_is_scored(self):
        known = {TOKENISED_BLEU, "ROUGE-1", "ROUGE-2", "ROUGE-Lsum"}
        known |= {"Accuracy", "Perplexity", "Matthews", "Pearson"}
        known |= {"STS average", "STS-B", "SICK-R", *(f"STS{year}" for year in range(12, 17))}
        for published in published_figures().values():
            assert set(published.metrics) <= known
            assert all("baseline" in values for values in published.metrics.values())

    def test_a_papers_metrics_keep_their_order(self, tmp_path):
        directory = write_run(tmp_path / "baseline")
        records = [{"name": name, "score": 1.0} for name in ("A", "B", "C")]
        (directory / "scores.json").write_text(json.dumps(records))
        published = Published("Somebody", {name: {"baseline": "2"} for name in ("C", "D", "A")})
        header = markdown_table([read_run(directory, "baseline")], published=published)
        assert header.startswith(
            "| run | C | C in the paper | A | A in the paper | B | lowest valid loss"
        )

    @pytest.mark.parametrize("name", ["mirror_bert_sts", "mirror_roberta_sts"])
    def test_published_averages_are_those_of_their_sets(self, name):
        sets = dict(published_figures()[name].metrics)
        for method, average in sets.pop("STS average").items():
            mean = sum(float(values[method]) for values in sets.values()) / 7
            # All but BERT with FreeLB, where the paper prints 75.71 for 75.74.
            assert float(average) == pytest.approx(mean, abs=0.04 if "free" in method else 0.01)


class TestReport:
    def test_names_within_a_directory(self, tmp_path, capsys):
        run = str(write_run(tmp_path / "runs" / "sam" / "seed1"))
        assert main(["report", run, "--relative-to", str(tmp_path / "runs")]) == 0
        assert "| sam/seed1 |" in capsys.readouterr().out
        assert main(["report", run, "--relative-to", str(tmp_path / "elsewhere")]) == 1
        assert "not within" in capsys.readouterr().err

    def test_writes_table_and_plot(self, tmp_path, capsys):
        pytest.importorskip("matplotlib")
        runs = [
            str(write_run(tmp_path / "runs" / "adam", shift=0.2)),
            str(write_run(tmp_path / "runs" / "ga_sam", sharpness=0.1)),
        ]
        table, plot = tmp_path / "report.md", tmp_path / "curves.png"
        command = ["report", *runs, "--output", str(table), "--plot", str(plot), "--title", "Demo"]
        assert main(command) == 0
        assert table.read_text(encoding="utf-8") == capsys.readouterr().out
        assert table.read_text(encoding="utf-8").startswith("# Demo\n\n| run |")
        assert plot.read_bytes().startswith(b"\x89PNG")
        assert sorted(os.listdir(tmp_path)) == ["curves.png", "report.md", "runs"]

    @pytest.mark.parametrize("name", ["/dev/full", "directory", "none/report.md"])
    def test_a_table_that_cannot_be_written(self, tmp_path, name, capsys, monkeypatch):
        monkeypatch.chdir(tmp_path)
        (tmp_path / "directory").mkdir()
        run = write_run(tmp_path / "run")
        assert main(["report", str(run), "--output", name]) == 1
        error = capsys.readouterr().err
        assert error.startswith(f"fairseq-sam report: error: {name}: ")
        assert len(error.splitlines()) == 1
        assert error.count("\n") == 1
        assert sorted(os.listdir(tmp_path)) == ["directory", "run"]
        assert not os.path.isfile("/dev/full")

    @pytest.mark.parametrize("sharpness", [None, 0.1])
    def test_axes_have_units(self, tmp_path, sharpness):
        pytest.importorskip("matplotlib")
        run = write_run(tmp_path / "run", sharpness=sharpness)
        assert main(["report", str(run), "--plot", str(tmp_path / "curves.svg")]) == 0
        # Text is drawn as outlines; the size tells whether the second panel is there.
        height = 72 * (0.4 + 2.6 * (2 if sharpness else 1))
        assert f'height="{height:g}pt"' in (tmp_path / "curves.svg").read_text()

    def test_losses_by_radius(self, tmp_path):
        pytest.importorskip("matplotlib")

        def described(method, rho):
            settings = method_settings(method, rho=rho)
            return SharpnessAwareConfig(method, settings, Gate(1, 0, 1)).describe()

        runs = [
            write_run(tmp_path / name, shift=shift, described=described(*method))
            for name, shift, method in (
                ("ga_sam/seed1", 0.3, ("ga_sam", 0.8)),
                ("ga_sam@2e-05/seed1", 0.1, ("ga_sam", 2e-5)),
                ("ga_sam@2e-05/seed2", 0.2, ("ga_sam", 2e-5)),
                ("sam/seed1", 0.4, ("sam", 0.05)),
                ("unperturbed/seed1", 0.4, ("ga_sam", 0)),
            )
        ]
        runs.append(write_run(tmp_path / "baseline/seed1"))
        names = run_names(runs, tmp_path)
        found = radius_curves([read_run(path, name) for path, name in zip(runs, names)])
        assert found == {"ga_sam": {2e-5: pytest.approx([5.1, 5.2]), 0.8: pytest.approx([5.3])}}
        plot = tmp_path / "curves.svg"
        assert main(["report", *map(str, runs), "--plot", str(plot)]) == 0
        assert f'height="{72 * (0.4 + 2.6 * 3):g}pt"' in plot.read_text()

    def test_many_runs_have_a_legend_below_in_which_a_group_is_one(self, tmp_path):
        pytest.importorskip("matplotlib")
        runs = [
            str(write_run(tmp_path / f"method{m}" / f"seed{s}", shift=m + s / 10))
            for m in range(20)
            for s in (1, 2)
        ]
        panels = 72 * (0.4 + 2.6 * 2)

        def height(*flags):
            plot = tmp_path / "curves.svg"
            assert main(["report", *runs, "--plot", str(plot), *flags]) == 0
            return float(re.search(r'height="([0-9.]+)pt"', plot.read_text()).group(1))

        grouped = height("--group-by", "/seed[0-9]+")
        assert panels < grouped < height() < 1.5 * panels

    def test_a_seed_that_diverged(self, tmp_path, capsys):
        pytest.importorskip("matplotlib")
        runs = [
            str(write_run(tmp_path / f"sam-seed{seed}", shift=shift, bleu=shift))
            for seed, shift in ((1, 0.0), (2, math.nan))
        ]
        flags = ["--group-by", "seed[0-9]+", "--plot", str(tmp_path / "curves.png")]
        assert main(["report", *runs, *flags]) == 0
        assert "| sam | 2 | nan ± nan | 5.000 |" in capsys.readouterr().out

    def test_a_score_that_is_not_finite_is_not_left_out_of_a_mean(self, tmp_path, capsys):
        """JSON has null for it."""
        runs = [str(write_run(tmp_path / f"sam-seed{seed}")) for seed in (1, 2)]
        Path(runs[1], "scores.json").write_text('[{"name": "BLEU", "score": null}]')
        assert main(["report", *runs, "--group-by", "seed[0-9]+"]) == 0
        assert "| sam | 2 | nan ± nan |" in capsys.readouterr().out

    @pytest.mark.parametrize("name", ["nowhere", "empty"])
    def test_directory_without_a_run(self, tmp_path, name, capsys):
        (tmp_path / "empty").mkdir()
        assert main(["report", str(tmp_path / name)]) == 1
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        assert name in error

    def test_unknown_image_format(self, tmp_path, capsys):
        pytest.importorskip("matplotlib")
        run = write_run(tmp_path / "run")
        with pytest.raises(SystemExit) as caught:
            main(["report", str(run), "--plot", str(tmp_path / "curves.nonsense")])
        assert caught.value.code == 2
        assert "argument --plot: " in capsys.readouterr().err

    def test_json(self, tmp_path):
        runs = [
            str(write_run(tmp_path / name, shift=shift, bleu=shift, sharpness=0.1))
            for name, shift in (("a", 0.5), ("b", math.nan))
        ]
        written = tmp_path / "report.json"
        assert main(["report", *runs, "--json", str(written)]) == 0
        figures = json.loads(written.read_text(), parse_constant=pytest.fail)
        found = read_run(Path(runs[0]), "a")
        first, second = figures["runs"]
        assert (first["run"], first["name"], second["name"]) == (runs[0], "a", "b")
        assert first["scores"]["BLEU"]["score"] == 0.5
        assert second["scores"]["BLEU"]["score"] is None
        assert first["best_valid_loss"] == found.best_valid_loss()
        assert [each["epoch"] for each in first["epochs"]] == [e.epoch for e in found.epochs]
        assert first["epochs"][-1]["sharpness"] == found.epochs[-1].train["sharpness"]

    @pytest.mark.parametrize(
        ("flags", "told"),
        [
            (["--metrics", "Bleu"], "argument --metrics: Bleu not found; there are BLEU"),
            (["--against", "basline"], "argument --against: basline not found; there are a, b"),
        ],
    )
    def test_names_that_are_not_there(self, tmp_path, capsys, flags, told):
        pytest.importorskip("scipy")
        runs = [str(write_run(tmp_path / f"{name}-seed1")) for name in ("a", "b")]
        assert main(["report", *runs, "--group-by", "seed[0-9]+", *flags]) == 0
        assert told in capsys.readouterr().err

    def test_runs_of_which_none_are_a_pair(self, tmp_path, capsys):
        pytest.importorskip("scipy")
        runs = [str(write_run(tmp_path / name)) for name in ("a-seed1", "b-seed2")]
        flags = ["--group-by", "seed[0-9]+", "--against", "a"]
        assert main(["report", *runs, *flags]) == 0
        assert "argument --group-by: seed[0-9]+ makes no pairs" in capsys.readouterr().err
        assert main(["report", runs[0], *flags]) == 0  # nothing to compare with
        assert not capsys.readouterr().err

    def test_json_of_runs_beside_one_that_failed(self, tmp_path):
        (tmp_path / "a").mkdir()
        runs = [str(tmp_path / "a")]
        runs += [str(write_run(tmp_path / name, bleu=bleu)) for name, bleu in (("b", 1), ("c", 2))]
        written = tmp_path / "report.json"
        assert main(["report", *runs, "--json", str(written)]) == 1
        found = [(each["run"], each["name"]) for each in json.loads(written.read_text())["runs"]]
        assert found == [(runs[1], "b"), (runs[2], "c")]

    @pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs a device that is full")
    def test_full_disk(self, tmp_path, monkeypatch, capsys):
        run, target = write_run(tmp_path / "run"), tmp_path / "report.md"
        write = Path.write_text

        def full(path, text, **kwargs):
            write(path, text[:9], **kwargs)
            write(Path("/dev/full"), text)

        monkeypatch.setattr(Path, "write_text", full)
        assert main(["report", str(run), "--output", str(target)]) == 1
        error = capsys.readouterr().err
        assert (
            error
            == f"fairseq-sam report: error: {target}: cannot write (No space left on device)\n"
        )
        assert [path.name for path in tmp_path.iterdir()] == ["run"]

    @pytest.mark.parametrize("flag", ["--json", "--output"])
    def test_a_directory_is_no_file(self, tmp_path, flag, failing):
        run = write_run(tmp_path / "run")
        assert f"{tmp_path}: is a directory" in failing("report", run, flag, tmp_path)

    @pytest.mark.parametrize("flag", ["--json", "--plot", "--output"])
    def test_nowhere_to_write(self, tmp_path, flag, failing):
        pytest.importorskip("matplotlib")
        path = tmp_path / "absent" / "file.png"
        run = write_run(tmp_path / "run")
        assert f"{path}: its directory does not exist" in failing("report", run, flag, path)

    def test_bad_regular_expression(self, tmp_path):
        with pytest.raises(SystemExit) as caught:
            main(["report", str(write_run(tmp_path / "run")), "--group-by", "("])
        assert caught.value.code == 2
