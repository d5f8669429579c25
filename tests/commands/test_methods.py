"""``fairseq-sam methods``: what it says of each optimizer is what the optimizer is."""

import json
from typing import Any

import pytest

from fairseq_sam.commands import main
from fairseq_sam.perturbation.settings import METHODS


@pytest.fixture(scope="module")
def figures(tmp_path_factory: pytest.TempPathFactory) -> Any:
    written = tmp_path_factory.mktemp("methods") / "methods.json"
    assert main(["methods", "--json", str(written)]) == 0
    return json.loads(written.read_text())["methods"]


def test_all_methods_with_their_defaults(figures: Any) -> None:
    assert list(figures) == list(METHODS)
    for name, settings in METHODS.items():
        for part in ("norm", "scale", "granularity", "risk", "num_steps"):
            assert figures[name][part] == getattr(settings, part)
    assert figures["sam"]["rho"] == 0.05
    assert figures["ga_sam"]["rho"] == "2%"


def test_cost(figures: Any) -> None:
    costs = {name: each["passes"] for name, each in figures.items()}
    assert costs["sam"] == costs["ga_sam"] == "2"
    assert costs["delta_sam"] == "2 + 2 forward"
    assert costs["per_instance_sam"] == "2 a sentence"


def test_flags_are_those_of_the_optimizer(figures: Any) -> None:
    flags = {each["flag"]: each for each in figures["ga_sam"]["flags"]}
    assert {"--base-optimizer", "--sam-rho", "--sam-steps", "--delta-sam-eta"} <= set(flags)
    assert "(default: 2%%)" in flags["--sam-rho"]["help"]
    assert flags["--sam-norm"]["value"] == "l2|linf"


def test_table(capsys: Any) -> None:
    assert main(["methods"]) == 0
    out = capsys.readouterr().out
    for name in METHODS:
        assert f"\n{name} " in out
    assert "alone (default: the method's)" in out
    assert main(["methods", "ga_sam"]) == 0
    out = capsys.readouterr().out
    assert "alone (default: 2%)" in out
    assert "layer_sam" not in out


def test_unknown_method(misused: Any) -> None:
    assert "METHOD adam is unknown: it must be one of sam, asam" in misused("methods", "adam")
