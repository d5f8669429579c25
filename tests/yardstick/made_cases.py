"""Configurations with models, criterions and tasks of the tests' own."""

from typing import List

from tests.yardstick import (
    made_components,  # noqa: F401  registers them
    made_data,
)
from tests.yardstick.cases import SMALL, TRANSLATION, transformer
from tests.yardstick.runs import Case

CROSS_ENTROPY = "--criterion cross_entropy"


def _component(name: str) -> str:
    return name.replace("_accumulated", "")


def model(name: str, flags: str = "", **others) -> Case:
    flags = f"{TRANSLATION} --arch yardstick_{_component(name)} {SMALL} {flags}"
    return Case(f"model_{name}", flags, made_data.text_pairs, **others)


def criterion(name: str, flags: str = "", **others) -> Case:
    return transformer(
        f"criterion_{name}", f"--criterion yardstick_{_component(name)} {flags}", **others
    )


def task(name: str, flags: str = CROSS_ENTROPY, **others) -> Case:
    flags = f"--task yardstick_{_component(name)} -s de -t en --arch transformer {SMALL} {flags}"
    return Case(f"task_{name}", flags, made_data.text_pairs, **others)


MADE_CASES: List[Case] = [
    model("spectral_norm"),
    model("weight_norm"),
    model("batch_norm"),
    model("running_mean"),
    model("running_mean_accumulated", "--update-freq 2"),
    model("replaced_buffer"),
    model("late_buffer"),
    model("max_norm"),
    model("writes_weights"),
    model("attribute_counter", may_refuse=True),
    model("memory", may_refuse=True),
    model("other_randomness"),
    model("thaws"),
    model("freezes"),
    model("teacher"),
    model("own_losses", "--criterion model"),
    Case(
        "composite_loss",
        "--task yardstick_two_targets -s de -t en --criterion composite_loss "
        f"--underlying-criterion cross_entropy --arch yardstick_two_answers {SMALL}",
        made_data.text_pairs,
    ),
    Case(
        "roberta_enc_dec",
        f"{TRANSLATION} --arch yardstick_roberta_enc_dec",
        made_data.text_pairs,
    ),
    criterion("repeats_batch"),
    criterion("repeats_batch_accumulated", "--update-freq 2"),
    criterion("pops_key"),
    criterion("writes_target"),
    criterion("buffers"),
    criterion("own_parameter"),
    task("shares_parameter", "--criterion yardstick_shares_parameter"),
    task("copies_criterion", "--criterion yardstick_buffers"),
    task("passes_by"),
    task("weighs"),
    task("weighs_in_place"),
    task("several_calls"),
    task("several_calls_accumulated", f"{CROSS_ENTROPY} --update-freq 2"),
    task("sums_calls"),
    task("adds_penalty"),
    task("changes_sample"),
    task("counts_steps", may_refuse=True),
]

REFUSED: List[Case] = [task("own_backward")]
