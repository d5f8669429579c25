"""One matrix, and one version of each tool, wherever they are named."""

import ast
import os
import re
from pathlib import Path
from typing import Dict, List

import pytest

yaml = pytest.importorskip("yaml")

ROOT = Path(__file__).resolve().parents[1]


def read(*names: str) -> str:
    return ROOT.joinpath(*names).read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def matrix() -> Dict[str, str]:
    """fairseq by Python, as continuous integration has them."""
    jobs = yaml.safe_load(read(".github", "workflows", "checks.yml"))["jobs"]
    rows = jobs["checks"]["strategy"]["matrix"]["include"]
    return {row["python"]: row["fairseq"] for row in rows}


def test_nox_has_the_matrix(matrix: Dict[str, str]) -> None:
    (found,) = re.findall(r"^MATRIX = (\{.*?^\})", read("noxfile.py"), re.MULTILINE | re.DOTALL)
    assert ast.literal_eval(found) == matrix


def rows_after(heading: str) -> List[List[str]]:
    section = read("docs", "compatibility.md").split(f"## {heading}\n")[1].split("\n## ")[0]
    lines = [line for line in section.splitlines() if re.match(r"\| 3\.", line)]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


FAIRSEQ = {"0.12.2": "0.12.2", "main": "GitHub's main", "fixed": "`fairseq-fixed` 0.12.3.1"}


def test_the_documentation_has_the_matrix(matrix: Dict[str, str]) -> None:
    named = [(python, FAIRSEQ[fairseq]) for python, fairseq in matrix.items()]
    assert [(row[0], row[1]) for row in rows_after("The matrix")] == named
    assert [(row[0], row[2]) for row in rows_after("Last results")] == named


def test_the_documentation_has_the_torch_of_fresh_environments() -> None:
    constraints = read("scripts", "constraints.txt")
    for python, _, torch in rows_after("The matrix"):
        assert f'torch=={torch}; python_version == "{python}"' in constraints


def test_every_supported_fairseq_is_in_the_matrix(matrix: Dict[str, str]) -> None:
    assert set(matrix.values()) == set(FAIRSEQ)


def test_continuous_integration_runs_the_one_command(matrix: Dict[str, str]) -> None:
    jobs = yaml.safe_load(read(".github", "workflows", "checks.yml"))["jobs"]
    commands = [step["run"].split()[0] for step in jobs["checks"]["steps"] if "run" in step]
    assert commands == [".ci/fairseq_main", ".ci/run"]
    for command in commands:
        assert os.access(str(ROOT / command), os.X_OK)


def test_hooks_have_the_versions_of_the_checks() -> None:
    hooks = yaml.safe_load(read(".pre-commit-config.yaml"))["repos"][0]["hooks"]
    constraints = read("scripts", "constraints.txt").splitlines()
    pins = [pin for hook in hooks for pin in hook["additional_dependencies"]]
    assert len(pins) == len(hooks)
    for pin in pins:
        (line,) = [line for line in constraints if line.partition(";")[0] == pin]
        assert not line.partition(";")[2] or ">=" in line  # of the newest Python
