"""fairseq-train with δ-SAM's sentence weights: criterions, variants, combinations, refusals."""

import logging
import math
from pathlib import Path
from typing import Any, Callable, Dict, List, Tuple

import pytest
import torch

from fairseq_sam.perturbation import SharpnessAwareLoss
from tests.criterions.test_fairseq_train_per_sentence import RUNS
from tests.end_to_end.test_bad_input import assert_readable, message_of
from tests.fairseq_runs import TRANSLATION, Run

CROSS_ENTROPY = "--criterion per_sentence_cross_entropy"
SMOOTHED = "--criterion per_sentence_label_smoothed_cross_entropy --label-smoothing 0.1"
PROBE = "--delta-sam-probe-radius 0.1"
PUBLISHED = f"--optimizer delta_sam --sam-rho 0.05 {PROBE} --delta-sam-eta 1e-3"
DRAFT = f"--optimizer delta_sam --sam-rho 0.05 {PROBE} --delta-sam-variant draft"

NUMBERS = ("loss", "gnorm", "sharpness", "perturbation_norm", "perturbation_uniform")


@pytest.fixture(scope="session")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Dict[str, Tuple[Any, str]]:
    """Data, task and model for each of the four criterions."""
    made = {}
    for name, (make_data, flags) in RUNS.items():
        data = tmp_path_factory.mktemp(name)
        made[name] = (data, f"{make_data(data)} {flags} --dropout 0.1")
    return made


def assert_trained(run: Run, updates: int) -> None:
    assert run.updates() == updates
    for key in NUMBERS:
        assert all(math.isfinite(value) for value in run.values(key)), key
    assert set(run.values("perturbation_uniform")) == {0.0}
    assert set(run.values("perturbation_skipped")) == {0.0}


@pytest.mark.parametrize("variant", [PUBLISHED, DRAFT], ids=["published", "draft"])
@pytest.mark.parametrize("name", sorted(RUNS))
def test_every_criterion_and_variant(
    fairseq_train: Callable[..., Run], tasks: Any, name: str, variant: str
):
    run = fairseq_train(
        variant, f"--criterion per_sentence_{name} --max-update 4", task=tasks[name], validate=True
    )
    assert_trained(run, 4)
    assert run.values("perturbation_norm") == pytest.approx([0.05] * 4, rel=1e-3)
    assert set(run.values("perturbation_uniform", "train")) == {0.0}
    assert not any("perturbation" in key for record in run.records["valid"] for key in record)


@pytest.mark.parametrize("name", sorted(RUNS))
def test_a_radius_of_zero_is_the_base_optimizer_with_the_stock_criterion(
    fairseq_train: Callable[..., Run], tasks: Any, name: str
):
    given = {"task": tasks[name]}
    plain = fairseq_train(f"--optimizer adam --criterion {name} --max-update 3", **given)
    flags = f"--sam-rho 0 --criterion per_sentence_{name} --max-update 3"
    fairseq_train(PUBLISHED, flags, **given).assert_same_training(plain)


def test_weights_matter(fairseq_train: Callable[..., Run]):
    runs = [
        fairseq_train(flags, CROSS_ENTROPY, "--max-update 2")
        for flags in ("--optimizer sam --sam-rho 0.05", PUBLISHED, DRAFT)
    ]
    for i, one in enumerate(runs):
        assert all(one.differs_from(other) for other in runs[:i])


def test_beta_of_zero_is_sam(fairseq_train: Callable[..., Run]):
    ours = fairseq_train(DRAFT, "--delta-sam-beta 0", CROSS_ENTROPY, "--max-update 1")
    sam = fairseq_train("--optimizer sam --sam-rho 0.05", CROSS_ENTROPY, "--max-update 1")
    for key in ("loss", "sharpness", "gnorm", "perturbation_norm"):
        assert ours.values(key) == pytest.approx(sam.values(key), rel=1e-3)


@pytest.mark.parametrize(
    "flags",
    [
        "--optimizer ga_sam --delta-sam-variant draft",
        "--optimizer ga_sam --delta-sam-variant published --sam-rho 1e-3 --sam-steps 2",
        "--optimizer delta_sam --sam-scale gradient-strength --sam-risk mean --sam-steps 2 "
        "--sam-rho 2e-4",
        "--optimizer asam --delta-sam-variant published --sam-steps 2",
        "--optimizer layer_sam --delta-sam-variant draft --sam-norm linf",
        "--optimizer multi_step_defense --delta-sam-variant published --sam-steps 3",
        "--optimizer delta_sam --sam-exclude embed_tokens --update-freq 2",
        "--optimizer delta_sam --base-optimizer sgd --sam-start-update 2 --sam-interval 2",
    ],
)
def test_weights_combine_with_every_part(fairseq_train: Callable[..., Run], flags: str):
    run = fairseq_train(flags, PROBE, SMOOTHED, "--max-update 4")
    assert run.updates() in (3, 4)  # six batches an epoch
    for record in run.records["train_inner"]:
        if float(record["perturbation_on"]) > 0:
            assert all(math.isfinite(float(record[key])) for key in NUMBERS)
            assert float(record["perturbation_uniform"]) == 0
            assert float(record["perturbation_norm"]) > 0


def test_two_ways_to_say_the_same(fairseq_train: Callable[..., Run]):
    same = f"--sam-rho 1e-3 --sam-steps 2 {PROBE} {CROSS_ENTROPY} --max-update 3"
    one = fairseq_train("--optimizer ga_sam --delta-sam-variant published", same)
    other = fairseq_train(
        "--optimizer delta_sam --sam-scale gradient-strength --sam-granularity layer "
        "--sam-norm linf --sam-risk mean",
        same,
    )
    one.assert_same_training(other)


@pytest.fixture
def engines(monkeypatch: pytest.MonkeyPatch) -> List[SharpnessAwareLoss]:
    """The engines of the runs to come."""
    made: List[SharpnessAwareLoss] = []
    init = SharpnessAwareLoss.__init__

    def noting(self: SharpnessAwareLoss, *args: Any, **kwargs: Any) -> None:
        init(self, *args, **kwargs)
        made.append(self)

    monkeypatch.setattr(SharpnessAwareLoss, "__init__", noting)
    return made


def test_flags_reach_the_engine(fairseq_train: Callable[..., Run], engines: Any):
    flags = "--delta-sam-eta 0.002 --delta-sam-probe-radius 0.3 --sam-rho 0.02"
    run = fairseq_train("--optimizer delta_sam", flags, CROSS_ENTROPY, "--max-update 1")
    settings = engines[-1].settings
    assert (settings.eta, settings.probe_radius) == (0.002, 0.3)
    assert (settings.rho, settings.weighting) == (0.02, "published")
    described = [
        line for line in run.output.splitlines() if "| fairseq_sam.training.optimizers |" in line
    ]
    assert "published sentence weights" in described[0]


def test_an_epoch_counts_the_batches_that_fell_back(
    fairseq_train: Callable[..., Run], monkeypatch: pytest.MonkeyPatch
):
    """Two of six batches have losses that do not change where they are probed."""
    from fairseq_sam.criterions import PerSentenceCriterion

    stock = {
        name: getattr(PerSentenceCriterion, name) for name in ("per_sentence_losses", "losses_only")
    }
    batches: List[int] = []

    def broken() -> bool:
        return len(batches) in (1, 4) and not torch.is_grad_enabled()

    def per_sentence_losses(self: Any, *args: Any, **kwargs: Any) -> Any:
        output = stock["per_sentence_losses"](self, *args, **kwargs)
        return output._replace(losses=output.losses * math.nan) if broken() else output

    def losses_only(self: Any, *args: Any, **kwargs: Any) -> Any:
        losses = stock["losses_only"](self, *args, **kwargs)
        return losses * math.nan if broken() else losses

    monkeypatch.setattr(PerSentenceCriterion, "per_sentence_losses", per_sentence_losses)
    monkeypatch.setattr(PerSentenceCriterion, "losses_only", losses_only)
    call = SharpnessAwareLoss.run

    def counting(self: Any, *args: Any, **kwargs: Any) -> Any:
        outcome = call(self, *args, **kwargs)
        batches.append(1)
        return outcome

    monkeypatch.setattr(SharpnessAwareLoss, "run", counting)
    run = fairseq_train(PUBLISHED, CROSS_ENTROPY, "--max-epoch 1")
    assert run.values("perturbation_uniform") == [0, 1, 0, 0, 1, 0]
    assert run.values("perturbation_uniform", "train") == pytest.approx([1 / 3], abs=1e-6)
    assert run.values("perturbation_skipped", "train") == [0.0]


@pytest.mark.parametrize("variant", [PUBLISHED, DRAFT], ids=["published", "draft"])
def test_batches_of_one_sentence_are_sams(fairseq_train: Callable[..., Run], variant: str):
    flags = f"{CROSS_ENTROPY} --batch-size 1 --max-update 4"
    ours = fairseq_train(variant, flags)
    sam = fairseq_train("--optimizer sam --sam-rho 0.05", flags)
    assert_trained(ours, 4)
    for key in ("loss", "sharpness", "gnorm", "perturbation_norm"):
        assert ours.values(key) == pytest.approx(sam.values(key), rel=1e-2, abs=1e-3)


@pytest.mark.parametrize("precision", ["--bf16", "--amp"])
def test_low_precision(fairseq_train: Callable[..., Run], precision: str):
    if precision == "--amp" and not torch.cuda.is_available():
        pytest.skip("fairseq's --amp is for GPUs")
    run = fairseq_train(PUBLISHED, SMOOTHED, precision, "--delta-sam-probe-radius 1 --max-update 3")
    assert_trained(run, 3)


def test_the_same_run_twice_is_the_same(fairseq_train: Callable[..., Run]):
    flags = (PUBLISHED, CROSS_ENTROPY, "--max-update 4 --update-freq 1")
    fairseq_train(*flags).assert_same_training(fairseq_train(*flags))


# What is refused.

STOCK = ["cross_entropy", "label_smoothed_cross_entropy", "sentence_prediction", "masked_lm"]


def refused(
    fairseq_train: Callable[..., Run], folder: Path, capsys: Any, *flags: str, **given: Any
) -> str:
    """The message of a run that ends before it trains."""
    with pytest.raises(SystemExit) as stopped:
        fairseq_train(*flags, "--max-update 2", save_dir=folder / "run", **given)
    assert not list(folder.glob("run/*.pt"))
    if isinstance(stopped.value.code, str):
        return stopped.value.code
    assert stopped.value.code == 2
    return message_of(capsys.readouterr().err)


@pytest.mark.parametrize(
    "flags", ["--optimizer delta_sam", "--optimizer ga_sam --delta-sam-variant draft"]
)
@pytest.mark.parametrize("criterion", STOCK)
def test_a_criterion_without_the_losses_is_refused_with_the_one_to_use(
    fairseq_train: Callable[..., Run],
    tasks: Any,
    tmp_path: Path,
    capsys: Any,
    criterion: str,
    flags: str,
):
    message = refused(
        fairseq_train, tmp_path, capsys, flags, f"--criterion {criterion}", task=tasks[criterion]
    )
    assert_readable(message, ["--criterion", f"{criterion} ", f"use per_sentence_{criterion}"])


def test_the_default_criterion_is_refused_too(
    fairseq_train: Callable[..., Run], tmp_path: Path, capsys: Any
):
    message = refused(fairseq_train, tmp_path, capsys, "--optimizer delta_sam")
    assert_readable(message, ["--criterion", "cross_entropy", "use per_sentence_cross_entropy"])


def test_a_criterion_without_a_stand_in_is_refused_with_all_there_are(
    fairseq_train: Callable[..., Run], tmp_path: Path, capsys: Any
):
    message = refused(
        fairseq_train,
        tmp_path,
        capsys,
        "--optimizer delta_sam --criterion label_smoothed_cross_entropy_with_alignment",
    )
    assert_readable(message, ["label_smoothed_cross_entropy_with_alignment", "your own"])
    for name in STOCK:
        assert f"per_sentence_{name}" in message


def test_a_task_that_passes_the_criterion_by_is_refused(
    fairseq_train: Callable[..., Run], corpus: Path, tmp_path: Path, capsys: Any
):
    """As translation_moe does: its sentences would all count once."""
    from tests.yardstick import made_components  # noqa: F401  registers the task

    task = (corpus, TRANSLATION.replace("translation", "yardstick_passes_by", 1))
    flags = (PUBLISHED, CROSS_ENTROPY)
    message = refused(fairseq_train, tmp_path, capsys, *flags, task=task)
    assert_readable(message, ["--task", "PassesBy.train_step", "criterion(model, sample)"])


@pytest.mark.parametrize(
    ("flags", "parts"),
    [
        ("--delta-sam-eta 0", ["--delta-sam-eta", "0", "above 0"]),
        ("--delta-sam-eta=-1e-4", ["--delta-sam-eta", "-1e-4", "above 0"]),
        ("--delta-sam-eta nan", ["--delta-sam-eta", "nan", "above 0"]),
        ("--delta-sam-eta inf", ["--delta-sam-eta", "inf", "finite"]),
        ("--delta-sam-eta small", ["--delta-sam-eta", "small", "finite number"]),
        ("--delta-sam-beta -1", ["--delta-sam-beta", "-1", "0 or more"]),
        ("--delta-sam-beta nan", ["--delta-sam-beta", "nan", "0 or more"]),
        ("--delta-sam-beta inf", ["--delta-sam-beta", "inf", "finite"]),
        ("--delta-sam-probe-radius 0", ["--delta-sam-probe-radius", "0", "above 0"]),
        ("--delta-sam-probe-radius -1", ["--delta-sam-probe-radius", "-1", "above 0"]),
        ("--delta-sam-probe-radius inf", ["--delta-sam-probe-radius", "inf", "finite"]),
        ("--delta-sam-variant uniform", ["--delta-sam-variant", "uniform", "published", "draft"]),
    ],
)
@pytest.mark.parametrize("method", ["delta_sam", "ga_sam"])
def test_values_that_make_no_sense_are_refused(
    fairseq_train: Callable[..., Run],
    tmp_path: Path,
    capsys: Any,
    method: str,
    flags: str,
    parts: List[str],
):
    given = (f"--optimizer {method}", CROSS_ENTROPY, flags)
    assert_readable(refused(fairseq_train, tmp_path, capsys, *given), parts)


@pytest.mark.slow
def test_exit_status_and_a_message_without_traceback(fairseq_train_alone: Callable[..., Run]):
    for flags in ("--delta-sam-eta 0", "--criterion cross_entropy"):
        run = fairseq_train_alone("--optimizer delta_sam --max-update 2", flags)
        assert run.status == 2
        assert "Traceback" not in run.output
        assert "error: argument --" in run.output.splitlines()[-1]
        assert not list(run.save_dir.glob("*.pt"))


def test_a_lone_sentence_is_mentioned_once(fairseq_train: Callable[..., Run], caplog: Any):
    from fairseq_sam.perturbation import sentence_weights

    sentence_weights._say_that_one_sentence_weighs_one.cache_clear()
    with caplog.at_level(logging.WARNING):
        run = fairseq_train(PUBLISHED, CROSS_ENTROPY, "--batch-size 1 --max-update 3")
    assert run.output.count("a mini-batch of one sentence") == 1
