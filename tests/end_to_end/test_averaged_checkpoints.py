"""What fairseq does with an averaged checkpoint: translate, fine-tune, continue."""

import sys

import pytest
import torch

from fairseq_sam.commands import main
from tests.fairseq_runs import run_in_process, split


@pytest.fixture(scope="module")
def run(shared_fairseq_train):
    return shared_fairseq_train("--optimizer adam --max-epoch 3 --save-interval 1")


@pytest.fixture(scope="module")
def average(run):
    path = run.save_dir / "average.pt"
    command = ["average", str(run.save_dir), "--last-epochs", "2", "--output", str(path)]
    assert main(command) == 0
    return path


def naive_mean(run):
    models = [run.weights(f"checkpoint{epoch}.pt") for epoch in (2, 3)]
    return {
        name: torch.stack([model[name].double() for model in models]).mean(0).to(value.dtype)
        for name, value in models[0].items()
    }


def test_weights_are_the_mean(run, average):
    averaged, expected = run.weights("average.pt"), naive_mean(run)
    assert list(averaged) == list(expected)
    assert all(torch.equal(averaged[name], expected[name]) for name in expected)


def test_file_is_smaller_than_its_inputs(run, average):
    assert average.stat().st_size < 0.6 * (run.save_dir / "checkpoint3.pt").stat().st_size


def test_model_loads(run, average):
    from fairseq.checkpoint_utils import load_model_ensemble

    (model,), _ = load_model_ensemble([str(average)])
    state, expected = model.state_dict(), naive_mean(run)
    assert all(torch.equal(state[name], expected[name]) for name in expected)


def test_generate_translates_every_sentence(corpus, average, capsys):
    from fairseq_cli.generate import cli_main

    flags = split(corpus, "--path", average, "--gen-subset valid --beam 2 --cpu --max-len-b 5")
    run_in_process(cli_main, flags)
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("H-")]
    assert len(lines) == 8


def test_fine_tuning_starts_from_it(fairseq_train, run, average):
    tuned = fairseq_train("--optimizer adam --max-update 1 --finetune-from-model", average)
    assert tuned.updates() == 1
    assert tuned.differs_from(run)


def test_restoring_it_continues_after_the_last_epoch(fairseq_train, average):
    reset = "--reset-optimizer --reset-lr-scheduler --reset-meters"
    continued = fairseq_train("--optimizer adam --max-epoch 4", reset, "--restore-file", average)
    assert {record["epoch"] for record in continued.records["train_inner"]} == {4}


def test_ties_survive(shared_fairseq_train):
    run = shared_fairseq_train(
        "--optimizer adam --max-epoch 2 --save-interval 1 --share-decoder-input-output-embed"
    )
    path = run.save_dir / "average.pt"
    assert main(["average", str(run.save_dir), "--last-epochs", "2", "--output", str(path)]) == 0
    model = run.weights("average.pt")
    tied = [model[f"decoder.{name}.weight"] for name in ("embed_tokens", "output_projection")]
    assert tied[0].data_ptr() == tied[1].data_ptr()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_memory_does_not_grow_with_the_number_of_checkpoints(tmp_path):
    """Peak memory of averaging 12 checkpoints against that of averaging 2."""
    import subprocess

    def peak(count):
        program = (
            "import sys, torch, resource\n"
            "from fairseq_sam.checkpoints.averaging import average_checkpoints\n"
            "average_checkpoints(sys.argv[1:])\n"
            "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)\n"
        )
        paths = [str(tmp_path / f"checkpoint{i % 2}-{i}.pt") for i in range(count)]
        for path in paths:
            torch.save({"model": {"w": torch.zeros(5_000_000)}}, path)
        done = subprocess.run([sys.executable, "-c", program, *paths], stdout=subprocess.PIPE)
        return int(done.stdout)

    one_checkpoint_kib = 5_000_000 * 4 / 1024
    assert peak(12) - peak(2) < 1.5 * one_checkpoint_kib
