"""Settings that make no sense stop the run before it trains, with one clear message."""

import re
from typing import Any, List

import pytest

NUMBER = "must be a finite number, 0 or more"

# Flags, and what the message must say: flag, value, allowed.
BAD = [
    ("--sam-rho -0.1", ["--sam-rho", "-0.1", NUMBER]),
    ("--sam-rho=-0.1", ["--sam-rho", "-0.1", NUMBER]),
    ("--sam-rho nan", ["--sam-rho", "nan", NUMBER]),
    ("--sam-rho inf", ["--sam-rho", "inf", NUMBER]),
    ("--sam-rho large", ["--sam-rho", "large", NUMBER]),
    ("--sam-rho 1e300", ["--sam-rho", "1e300", NUMBER]),
    ("--sam-rho 1_0", ["--sam-rho", "1_0", NUMBER]),
    ("--sam-rho ٣", ["--sam-rho", "٣", NUMBER]),
    ("--sam-rho 101%", ["--sam-rho", "101%", "a share of the loss from 0% to 100%"]),
    ("--sam-rho=-1%", ["--sam-rho", "-1%", "a share of the loss from 0% to 100%"]),
    ("--sam-rho five%", ["--sam-rho", "five%", "a share of the loss from 0% to 100%"]),
    ("--sam-rho 0.05 --sam-rho-max 1", ["--sam-rho-max", "1", "it needs a share as --sam-rho"]),
    (
        "--optimizer sam --sam-rho-max 1",
        ["--sam-rho-max", "1", "it needs a share as --sam-rho"],
    ),
    ("--sam-rho 5% --sam-rho-max 0", ["--sam-rho-max", "0", "must be a finite number above 0"]),
    ("--sam-direction up", ["--sam-direction", "up", "gradient", "momentum"]),
    ("--sam-direction momentum", ["--sam-risk", "mean", "direction momentum"]),
    ("--sam-smoothing 0", ["--sam-smoothing", "0", "above 0, and 1 at most"]),
    ("--sam-smoothing 0.2", ["--sam-smoothing", "0.2", "--sam-direction smoothed or friendly"]),
    ("--sam-friendly 0.5", ["--sam-friendly", "0.5", "it needs --sam-direction friendly"]),
    ("--delta-sam-eta 0.5", ["--delta-sam-eta", "0.5", "--delta-sam-variant published"]),
    ("--delta-sam-beta 0.5", ["--delta-sam-beta", "0.5", "--delta-sam-variant draft"]),
    ("--delta-sam-probe-radius 1", ["--delta-sam-probe-radius", "1", "--delta-sam-variant"]),
    ("--sam-friendly -1", ["--sam-friendly", "-1", NUMBER]),
    ("--sam-ascent-fraction 0", ["--sam-ascent-fraction", "0", "above 0, and 1 at most"]),
    ("--sam-ascent-fraction 0.5", ["--sam-ascent-fraction", "0.5", "the mean risk"]),
    (
        "--optimizer per_instance_sam --delta-sam-variant draft",
        ["--delta-sam-variant", "draft", "must be left out with a perturbation a sentence"],
    ),
    ("--sam-start-fraction 1.5", ["--sam-start-fraction", "1.5", "from 0 to 1"]),
    (
        "--sam-start-fraction 0.5 --sam-start-epoch 2",
        ["--sam-start-fraction", "0.5", "takes the place of --sam-start-epoch"],
    ),
    (
        "--sam-start-epoch 2 --sam-ramp-updates 3",
        ["--sam-ramp-updates", "3", "the first perturbed update is not known"],
    ),
    ("--delta-sam-eta 0", ["--delta-sam-eta", "0", "must be a finite number above 0"]),
    ("--delta-sam-beta inf", ["--delta-sam-beta", "inf", NUMBER]),
    ("--sam-steps 0", ["--sam-steps", "0", "must be a whole number, 1 or more"]),
    ("--sam-steps 1.5", ["--sam-steps", "1.5", "must be a whole number, 1 or more"]),
    ("--sam-steps 1001", ["--sam-steps", "1001", "must be a whole number, 1 or more"]),
    ("--sam-steps 1_0", ["--sam-steps", "1_0", "must be a whole number, 1 or more"]),
    ("--sam-scale heavy", ["--sam-scale", "heavy", "weight-over-gradient"]),
    ("--sam-norm l3", ["--sam-norm", "l3", "l2", "linf"]),
    ("--sam-granularity word", ["--sam-granularity", "word", "filter", "layer"]),
    ("--sam-risk worst", ["--sam-risk", "worst", "perturbed", "mean"]),
    ("--sam-loss-reduction max", ["--sam-loss-reduction", "max", "mean", "sum"]),
    ("--sam-scale none --sam-granularity layer", ["--sam-granularity", "layer", "scale none"]),
    ("--sam-exclude '('", ["--sam-exclude", "(", "not a regular expression"]),
    ("--sam-exclude .", ["--sam-exclude", ".", "must leave at least one"]),
    ("--sam-exclude '.*'", ["--sam-exclude", ".*", "must leave at least one"]),
    ("--sam-exclude '\\.'", ["--sam-exclude", "must leave at least one"]),
    ("--sam-start-epoch 0", ["--sam-start-epoch", "0", "must be a whole number, 1 or more"]),
    ("--sam-start-update -1", ["--sam-start-update", "-1", "must be a whole number, 0 or more"]),
    ("--sam-interval 0", ["--sam-interval", "0", "must be a whole number, 1 or more"]),
    ("--base-optimizer bogus", ["--base-optimizer", "bogus", "must be one of", "adam, "]),
    ("--base-optimizer sam", ["--base-optimizer", "sam", "itself", "must be one of", "adam, "]),
    ("--base-optimizer ga_sam", ["--base-optimizer", "ga_sam", "itself", "adam, "]),
    ("--base-optimizer sgd --adam-betas '(0.9, 0.98)'", ["--adam-betas"]),
    ("--momentum 0.5", ["--momentum"]),
    ("--base-optimizer composite", ["--base-optimizer", "composite", "fairseq-hydra-train"]),
    ("--criterion r_drop_cross_entropy --r-drop-alpha -1", ["--r-drop-alpha", "-1"]),
    ("--criterion r_drop_cross_entropy --r-drop-alpha 1_0", ["--r-drop-alpha", "1_0", NUMBER]),
    ("--criterion smart_cross_entropy --smart-steps ٣", ["--smart-steps", "٣", "whole number"]),
    (
        "--criterion smart_cross_entropy --smart-mu 1",
        ["--smart-mu", "1", "--store-ema"],
    ),
    ("--use-bmuf", ["ga_sam", "--use-bmuf"]),
    ("--ddp-backend fully_sharded", ["ga_sam", "--ddp-backend fully_sharded"]),
    ("--pipeline-model-parallel", ["ga_sam", "--pipeline-model-parallel"]),
    ("--model-parallel-size 2", ["ga_sam", "--model-parallel-size"]),
    (
        "--optimizer momentum_sam --zero-sharding os",
        ["--zero-sharding", "os", "--sam-direction momentum"],
    ),
    (
        "--optimizer sam --sam-scale adam --zero-sharding os",
        ["--zero-sharding", "os", "--sam-scale adam"],
    ),
    ("--optimizer sam --sam-scale adam --amp", ["--amp", "--sam-scale adam", "--fp16"]),
    (
        "--optimizer momentum_sam --sam-scale gradient-strength --sam-granularity layer --amp",
        ["--amp", "--sam-direction momentum", "--fp16"],
    ),
]


def message_of(text: str) -> str:
    """The one line that says what is wrong, without the usage text before it."""
    lines = [line for line in text.splitlines() if "error: " in line]
    assert len(lines) == 1, text
    return lines[0]


def assert_readable(message: str, parts: List[Any]) -> None:
    for part in parts:
        assert part in message
    assert not re.search(r"\b(\w+)[:,]? \1\b", message), f"doubled word: {message}"
    assert "Traceback" not in message
    assert "None" not in message
    assert "DictConfig" not in message


@pytest.mark.parametrize(("flags", "parts"), BAD, ids=[flags for flags, _ in BAD])
def test_refused(fairseq_train, tmp_path, capsys, flags, parts):
    with pytest.raises(SystemExit) as stopped:
        fairseq_train("--optimizer ga_sam --max-update 2", flags, save_dir=tmp_path / "run")
    if isinstance(stopped.value.code, str):  # what the interpreter prints, with status 1
        message = stopped.value.code
    else:
        assert stopped.value.code == 2
        message = message_of(capsys.readouterr().err)
    assert_readable(message, parts)
    assert not list(tmp_path.glob("run/*.pt"))


@pytest.mark.parametrize("method", ["sam", "multi_step_defense"])
def test_granularity_without_scale_is_refused(fairseq_train, tmp_path, capsys, method):
    with pytest.raises(SystemExit):
        fairseq_train(f"--optimizer {method} --sam-granularity filter", save_dir=tmp_path / "run")
    message = message_of(capsys.readouterr().err)
    assert_readable(message, ["--sam-granularity", "filter", "none"])


@pytest.mark.parametrize("flags", ["--sam-rho -1", "--sam-exclude ."])
def test_exit_status_and_a_message_without_traceback(fairseq_train_alone, flags):
    run = fairseq_train_alone("--optimizer ga_sam --max-update 2", flags)
    assert run.status != 0
    assert "Traceback" not in run.output
    message_of(run.output)
    assert not list(run.save_dir.glob("*.pt"))


def test_a_cap_may_stay_where_the_radius_is_set_to_0(fairseq_train):
    run = fairseq_train("--optimizer sam --sam-rho 5% --sam-rho-max 1 --sam-rho 0 --max-update 1")
    assert run.updates() == 1


def test_start_epoch_beyond_max_epoch_warns(fairseq_train):
    run = fairseq_train("--optimizer ga_sam --sam-start-epoch 3 --max-epoch 2 --max-update 2")
    warnings = [line for line in run.output.splitlines() if "| WARNING | fairseq_sam" in line]
    assert len(warnings) == 1
    assert "--sam-start-epoch 3 is beyond --max-epoch 2" in warnings[0]
    assert run.updates() == 2


def test_sharing_ascents_without_accumulation_warns(fairseq_train):
    run = fairseq_train("--optimizer sam --sam-ascent-share 0.5 --max-update 1")
    assert run.output.count("--sam-ascent-share 0.5 shares nothing with --update-freq 1") == 1


def test_start_epoch_within_max_epoch_does_not_warn(fairseq_train):
    run = fairseq_train("--optimizer ga_sam --sam-start-epoch 2 --max-epoch 2 --max-update 2")
    assert "WARNING | fairseq_sam" not in run.output
