"""Checkpoints are the base optimizer's: they continue with the plugin, without it, and resume."""

import copy
import os
import signal
import subprocess
import sys
import time

import pytest
import torch

from tests.fairseq_runs import TRAINING, TRANSLATION, USER_DIR, Run, split

ADAM = "--optimizer adam --adam-betas '(0.9, 0.98)'"
GA_SAM = "--optimizer ga_sam --sam-rho 0.05 --adam-betas '(0.9, 0.98)'"

# fairseq cannot read its own checkpoints with torch >= 2.6 unless it is told that this is safe.
PLAIN_FAIRSEQ = """
import argparse, sys, torch
if hasattr(torch.serialization, "add_safe_globals"):
    torch.serialization.add_safe_globals([argparse.Namespace])
from fairseq_cli.train import cli_main
cli_main()
assert "fairseq_sam" not in sys.modules
"""


@pytest.fixture(scope="module")
def adam(shared_fairseq_train):
    return shared_fairseq_train(ADAM, "--max-update 10")


@pytest.fixture(scope="module")
def ga_sam(shared_fairseq_train):
    return shared_fairseq_train(GA_SAM, "--max-update 10")


@pytest.fixture
def loaded(monkeypatch):
    """The optimizer states right after the checkpoints of the runs to come were loaded."""
    from fairseq.trainer import Trainer

    states, load = [], Trainer.load_checkpoint

    def watched(self, *args, **kwargs):
        outcome = load(self, *args, **kwargs)
        if outcome is not None:
            states.append((copy.deepcopy(self.optimizer.state_dict()), self.get_num_updates()))
        return outcome

    monkeypatch.setattr(Trainer, "load_checkpoint", watched)
    return states


def assert_moments_are(state, run: Run):
    saved = run.checkpoint()["last_optimizer_state"]
    assert len(state["state"]) == len(saved["state"]) > 20
    for key, moments in saved["state"].items():
        assert state["state"][key]["step"] == moments["step"] == 10
        for name in ("exp_avg", "exp_avg_sq"):
            assert torch.equal(state["state"][key][name], moments[name])
            assert moments[name].any()


def test_adam_continues_under_ga_sam_with_its_moments(fairseq_train, adam, loaded):
    run = fairseq_train(
        GA_SAM, "--max-update 12 --restore-file", str(adam.save_dir / "checkpoint_last.pt")
    )
    ((state, updates),) = loaded
    assert updates == 10
    assert_moments_are(state, adam)
    assert run.updates() == 12
    assert len(run.values("perturbation_on")) == 2


def test_ga_sam_continues_under_adam_with_its_moments(fairseq_train, ga_sam, loaded):
    run = fairseq_train(
        ADAM, "--max-update 12 --restore-file", str(ga_sam.save_dir / "checkpoint_last.pt")
    )
    ((state, updates),) = loaded
    assert updates == 10
    assert_moments_are(state, ga_sam)
    assert run.updates() == 12


def test_gated_continuation_of_adam_is_adam(fairseq_train, adam):
    restore = ("--max-update 16 --restore-file", str(adam.save_dir / "checkpoint_last.pt"))
    run = fairseq_train(GA_SAM, "--sam-start-epoch 9", *restore)
    run.assert_same_training(fairseq_train(ADAM, *restore))


def test_a_fairseq_without_the_plugin_continues(fairseq_train_alone, fairseq_train):
    """Within the first epoch: some fairseqs form other batches after a later restart."""
    started = fairseq_train(GA_SAM, "--max-update 3")
    restore = ("--max-update 5 --restore-file", str(started.save_dir / "checkpoint_last.pt"))
    run = fairseq_train_alone(ADAM, *restore, user_dir=False, command=PLAIN_FAIRSEQ)
    assert run.status == 0, run.output
    run.assert_same_training(fairseq_train(ADAM, *restore))


def test_another_base_optimizer_is_refused_as_by_fairseq(fairseq_train, adam):
    with pytest.raises(AssertionError, match="Optimizer does not match"):
        fairseq_train(
            "--optimizer ga_sam --base-optimizer sgd --max-update 12 --restore-file",
            str(adam.save_dir / "checkpoint_last.pt"),
        )


def test_resumed_mid_epoch_the_gate_knows_its_epoch(fairseq_train):
    """An epoch has 6 updates; the run stops in epoch 2, where the gate opens."""
    run = fairseq_train("--optimizer sam --sam-start-epoch 2 --max-update 8")
    again = fairseq_train(
        "--optimizer sam --sam-start-epoch 2 --max-update 14", save_dir=run.save_dir
    )
    assert again.values("perturbation_on") == [1.0] * 6
    whole = fairseq_train("--optimizer sam --sam-start-epoch 2 --max-update 14")
    assert whole.values("perturbation_on") == [0.0] * 6 + [1.0] * 8
    again.assert_same_training(whole)


@pytest.mark.parametrize("flags", ["", "--memory-efficient-bf16"])
def test_resume_equals_an_uninterrupted_run(fairseq_train, flags):
    flags = f"{GA_SAM} --sam-steps 2 --update-freq 2 --max-update {{}} {flags}"
    run = fairseq_train(flags.format(4))
    again = fairseq_train(flags.format(8), save_dir=run.save_dir)
    again.assert_same_training(fairseq_train(flags.format(8)))


SLOWED = """
import time
from fairseq_cli import train
from fairseq.trainer import Trainer
step = Trainer.train_step
def slow_step(self, *args, **kwargs):
    if self.get_num_updates() >= 5:
        time.sleep(0.5)
    return step(self, *args, **kwargs)
Trainer.train_step = slow_step
train.cli_main()
"""


def test_killed_mid_epoch_and_resumed_equals_an_uninterrupted_run(
    fairseq_train_alone, fairseq_train, corpus, tmp_path
):
    flags = f"{GA_SAM} --max-update 20 --save-interval-updates 4 --keep-interval-updates 2"
    save_dir = tmp_path / "killed"
    arguments = split(
        corpus,
        TRANSLATION,
        TRAINING,
        "--disable-validation --save-dir",
        save_dir,
        "--user-dir",
        USER_DIR,
        flags,
    )
    process = subprocess.Popen(
        [sys.executable, "-c", SLOWED, *arguments],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 120
    try:
        while not (save_dir / "checkpoint_last.pt").exists():
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
        time.sleep(0.3)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert 4 <= Run(save_dir).updates() < 20
    assert not any("part" in name for name in os.listdir(save_dir))
    resumed = fairseq_train_alone(flags, save_dir=save_dir)
    assert resumed.status == 0, resumed.output
    assert resumed.updates() == 20
    assert len(resumed.records["train_inner"]) < 20
    resumed.assert_same_training(fairseq_train(flags))
