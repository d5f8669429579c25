"""What the settings refuse, and what the named methods are."""

import math
from typing import Any, List

import pytest

from fairseq_sam.perturbation import METHODS, PerturbationSettings, method_settings
from fairseq_sam.perturbation.ascent import step_size


@pytest.mark.parametrize(
    ("setting", "value", "allowed"),
    [
        ("rho", -0.1, ["0"]),
        ("rho", math.inf, ["finite"]),
        ("rho", -math.inf, ["finite"]),
        ("rho", math.nan, ["finite"]),
        ("num_steps", 0, ["1"]),
        ("num_steps", -2, ["1"]),
        ("norm", "l1", ["l2", "linf"]),
        ("norm", None, ["l2", "linf"]),
        (
            "scale",
            "weights",
            [
                "none",
                "weight",
                "weight-over-gradient",
                "gradient-strength",
                "inverse-gradient",
                "weight-strength",
            ],
        ),
        ("granularity", "row", ["element", "filter", "layer", "model"]),
        ("granularity", None, ["element", "filter", "layer", "model"]),
        ("risk", "both", ["perturbed", "mean"]),
        ("loss_reduction", "average", ["mean", "sum"]),
    ],
)
def test_a_bad_value_is_named_with_what_is_allowed(setting: str, value: Any, allowed: List[str]):
    parts = {"scale": "weight", "granularity": "layer", setting: value}
    with pytest.raises(ValueError, match=f"{setting} is {value}") as error:
        PerturbationSettings(**parts)
    for word in allowed:
        assert word in str(error.value)


@pytest.mark.parametrize("granularity", ["element", "filter", "layer", "model"])
def test_no_scale_has_no_groups(granularity: str):
    with pytest.raises(ValueError, match=f"granularity is {granularity}.*no groups"):
        PerturbationSettings(granularity=granularity)


def test_a_number_of_steps_is_whole():
    with pytest.raises(ValueError, match=r"num_steps is 1\.5"):
        PerturbationSettings(num_steps=1.5)  # type: ignore[arg-type]


def test_a_radius_of_zero_is_allowed():
    assert PerturbationSettings(rho=0.0).rho == 0


def test_unknown_methods_are_refused_with_the_known_ones():
    with pytest.raises(ValueError, match=r"method is sma") as error:
        method_settings("sma")
    for method in METHODS:
        assert method in str(error.value)


def test_settings_cannot_be_changed():
    with pytest.raises(AttributeError):
        METHODS["sam"].rho = 1.0  # type: ignore[misc]


@pytest.mark.parametrize(
    ("method", "scale", "granularity", "risk"),
    [
        ("sam", "none", None, "perturbed"),
        ("asam", "weight", "element", "perturbed"),
        ("layer_sam", "weight-over-gradient", "layer", "perturbed"),
        ("multi_step_defense", "none", None, "mean"),
        ("ga_sam", "gradient-strength", "layer", "mean"),
    ],
)
def test_the_methods_are_those_of_the_table(method: str, scale: str, granularity: Any, risk: str):
    settings = method_settings(method)
    assert (settings.scale, settings.granularity, settings.risk) == (scale, granularity, risk)
    assert settings.num_steps == 1
    assert settings.loss_reduction == "mean"


@pytest.mark.parametrize("method", sorted(METHODS))
def test_every_part_can_be_replaced(method: str):
    parts = {"rho": 0.25, "norm": "l2", "scale": "inverse-gradient", "granularity": "filter"}
    if METHODS[method].needs_pass:
        parts.update({"risk": "mean", "num_steps": 3, "loss_reduction": "sum"})
    replaced = vars(method_settings(method, **parts))
    assert {name: replaced[name] for name in parts} == parts
    assert method_settings(method, rho=None, norm=None, scale=None) == METHODS[method]
    assert method_settings(method, rho=0.0).rho == 0.0
    assert method_settings(method, scale="none").granularity is None
    kept = METHODS[method].granularity
    assert method_settings(method, scale="inverse-gradient").granularity == (kept or "layer")


@pytest.mark.parametrize("num_steps", [1, 2, 3, 5])
def test_the_step_size_is_that_of_the_paper(num_steps: int):
    assert step_size(0.4, num_steps) == pytest.approx(0.6 / num_steps)
