"""scripts/adversarial_risk.sh: its command line, its sentences, its table; all of it when slow."""

import gzip
import json
import random
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = ROOT / "scripts"

pytestmark = pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash")


def script(*arguments: Any) -> Any:
    command = ["bash", str(SCRIPTS / "adversarial_risk.sh"), *map(str, arguments)]
    return subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True)


def python(name: str, *arguments: Any) -> Any:
    command = [sys.executable, str(SCRIPTS / name), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True)


@pytest.fixture
def sentences(tmp_path: Path) -> Path:
    """Two classes, one of them compressed, with repetitions and a sentence that both have."""
    data, rng = tmp_path / "sentences", random.Random(1)
    data.mkdir()
    texts = {
        name: [f"{word} {rng.randrange(10**9)} {rng.choice('abc')}" for _ in range(200)]
        for name, word in (("pos", "good"), ("neg", "bad"))
    }
    both = "neither one nor the other"
    (data / "pos").write_text("\n".join([*texts["pos"], both, texts["pos"][0]]) + "\n")
    with gzip.open(data / "neg.gz", "wt") as stream:
        stream.write("\n".join([both, *texts["neg"]]) + "\n")
    return data


def test_help() -> None:
    result = script("--help")
    assert result.returncode == 0
    assert result.stderr == ""
    for option in ("--data", "--seeds", "--small", "--out", "--rho", "--no-install", "--venv"):
        assert option in result.stdout


def test_sets_are_balanced_and_disjoint(sentences: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = ("--data", sentences, "--out", out, "--train", 300, "--valid", 60)
    assert python("data/split_reviews.py", *command).returncode == 0
    texts = {}
    for part, size in (("train", 300), ("valid", 60)):
        texts[part] = (out / f"{part}.input0").read_text().splitlines()
        labels = (out / f"{part}.label").read_text().splitlines()
        assert len(texts[part]) == len(set(texts[part])) == len(labels) == size
        assert labels.count("pos") == labels.count("neg") == size // 2
        assert all(
            text.startswith("good" if label == "pos" else "bad")
            for text, label in zip(texts[part], labels)
        )
        assert labels != sorted(labels)
    assert not set(texts["train"]) & set(texts["valid"])
    again = tmp_path / "again"
    python("data/split_reviews.py", "--data", sentences, "--out", again, *command[4:])
    assert (again / "train.input0").read_text() == (out / "train.input0").read_text()


def test_too_few_sentences(sentences: Path, tmp_path: Path) -> None:
    result = python("data/split_reviews.py", "--data", sentences, "--out", tmp_path, "--train", 390)
    assert result.returncode == 1
    assert "1390 sentences asked for, 400 there" in result.stderr


def write_result(run: Path, accuracy: float, clean: float, adversarial: float) -> None:
    run.mkdir(parents=True)
    means = {"clean": clean, "adversarial": adversarial, "difference": adversarial - clean}
    (run / "risk.json").write_text(
        json.dumps({"checkpoints": [{k: {"mean": v} for k, v in means.items()}]})
    )
    line = '2024-01-01 | INFO | valid | {"epoch": 4, "valid_loss": "1", "valid_accuracy": "%s"}\n'
    (run / "train.log").write_text(line % 1.0 + line % accuracy + "| INFO | train | done\n")


def test_table(tmp_path: Path) -> None:
    for seed, shift in ((1, 0.0), (2, 0.2)):
        write_result(tmp_path / "adam" / f"seed{seed}", 70 + seed, 1.0, 2.0)
        write_result(tmp_path / "sam" / f"seed{seed}", 74.0, 0.5, 1.9 + shift)
    runs = [tmp_path / name / f"seed{i}" for name in ("adam", "sam") for i in (1, 2)]
    result = python("risk_table.py", *runs)
    assert result.stdout.splitlines()[2:] == [
        "| adam | 71.5 ± 0.7 | 1.000 ± 0.000 | 2.000 ± 0.000 | 1.000 ± 0.000 |",
        "| sam | 74.0 ± 0.0 | 0.500 ± 0.000 | 2.000 ± 0.141 | 1.500 ± 0.141 |",
        "",
        "- adversarial loss of adam minus sam: 0.000 ± 0.141, positive for 1 of 2 seeds",
    ]


def test_a_table_with_a_run_missing(tmp_path: Path) -> None:
    """Seeds are compared with the same seeds."""
    for seed in (1, 2, 3):
        write_result(tmp_path / "adam" / f"seed{seed}", 70.0, 1.0, 2.0 + seed)
        write_result(tmp_path / "sam" / f"seed{seed}", 74.0, 0.5, 1.0 + seed)
    write_result(tmp_path / "asam" / "seed4", 74.0, 0.5, 1.0)
    missing = tmp_path / "adam" / "seed1"
    result = python("risk_table.py", *sorted({*tmp_path.glob("*/seed*")} - {missing}))
    assert [line for line in result.stdout.splitlines() if line.startswith("- ")] == []
    runs = [tmp_path / name / f"seed{i}" for name in ("adam", "sam") for i in (1, 2, 3)]
    result = python("risk_table.py", *runs[1:])
    assert result.stdout.splitlines()[-1] == (
        "- adversarial loss of adam minus sam: 1.000 ± 0.000, positive for 2 of 2 seeds"
    )


@pytest.mark.slow
def test_all_of_it(sentences: Path, tmp_path: Path) -> None:
    out = tmp_path / "runs"
    methods = "adam,delta_sam_literal"
    command = ("--data", sentences, "--out", out, "--small", "--methods", methods, "--no-install")
    result = script(*command, "--python", sys.executable)
    assert result.returncode == 0, result.stderr
    assert len([line for line in result.stdout.splitlines() if line.startswith("| ")]) == 4
    assert (out / "report.md").read_text() == result.stdout
    again = script(*command, "--python", sys.executable)
    assert again.stdout == result.stdout
    assert "training adam with seed 1: done before" in again.stderr
    other = script(*command, "--python", sys.executable, "--rho", "0.1")
    assert other.returncode == 2
    assert "other --rho (0.05, now 0.1)" in other.stderr
