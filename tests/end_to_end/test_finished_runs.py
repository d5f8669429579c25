"""A run that has ended, started again: not one update more."""

import pytest

AS_A_MODULE = (
    "import runpy; runpy.run_module('fairseq_cli.train', run_name='__main__', alter_sys=True)"
)


@pytest.mark.parametrize("end", ["--max-update 3", "--stop-time-hours 1e-9"])
@pytest.mark.parametrize("optimizer", ["adam", "sam"])
def test_nothing_is_trained_or_written(fairseq_train, tmp_path, end, optimizer):
    flags = (f"--optimizer {optimizer}", end, "--max-epoch 5")
    first = fairseq_train(*flags, save_dir=tmp_path / "run")
    content = {path.name: path.read_bytes() for path in first.save_dir.iterdir()}
    again = fairseq_train(*flags, save_dir=tmp_path / "run")
    assert "train_inner" not in again.records
    assert "the run has ended before" in again.output
    assert "done training" in again.output
    assert {path.name: path.read_bytes() for path in first.save_dir.iterdir()} == content
    assert first.updates() == (3 if "update" in end else 1)


WORSE = "--lr 0 --max-epoch 9 --save-interval 1 --patience"  # the loss stays: no epoch is better


@pytest.mark.parametrize("optimizer", ["adam", "sam"])
def test_patience_is_not_forgotten(fairseq_train, tmp_path, optimizer):
    flags = (f"--optimizer {optimizer}", WORSE)
    first = fairseq_train(*flags, "2", save_dir=tmp_path / "run", validate=True)
    assert len(first.records["valid"]) == 3
    content = {path.name: path.read_bytes() for path in first.save_dir.iterdir()}
    for _ in range(2):
        again = fairseq_train(*flags, "2", save_dir=tmp_path / "run", validate=True)
        assert "train_inner" not in again.records
        assert "the run has ended before" in again.output
        assert {path.name: path.read_bytes() for path in first.save_dir.iterdir()} == content
    more = fairseq_train(*flags, "4", save_dir=tmp_path / "run", validate=True)
    assert len(more.records["valid"]) == 2


def test_an_interrupted_run_waits_as_long_as_another(fairseq_train, tmp_path):
    begun = WORSE.replace("9", "2")
    fairseq_train("--optimizer sam", begun, "3", save_dir=tmp_path / "run", validate=True)
    rest = fairseq_train("--optimizer sam", WORSE, "3", save_dir=tmp_path / "run", validate=True)
    assert len(rest.records["valid"]) == 2
    whole = fairseq_train("--optimizer sam", WORSE, "3", validate=True)
    assert len(whole.records["valid"]) == 4
    whole.assert_same_training(rest)


@pytest.mark.parametrize("flag", ["--reset-meters", "--reset-optimizer", "finetune"])
def test_a_new_beginning_has_patience_anew(fairseq_train, tmp_path, flag):
    first = fairseq_train("--optimizer sam", WORSE, "1", save_dir=tmp_path / "run", validate=True)
    assert len(first.records["valid"]) == 2
    last = first.save_dir / "checkpoint_last.pt"
    begin = (
        ("--finetune-from-model", last) if flag == "finetune" else (flag, "--restore-file", last)
    )
    again = fairseq_train("--optimizer sam", WORSE, "1", *begin, validate=True)
    assert len(again.records["valid"]) == 2


def test_another_metric_has_patience_anew(fairseq_train, tmp_path):
    first = fairseq_train("--optimizer sam", WORSE, "1", save_dir=tmp_path / "run", validate=True)
    assert len(first.records["valid"]) == 2
    other = "--best-checkpoint-metric ppl"
    for validations in (2, 0):
        again = fairseq_train(
            "--optimizer sam", WORSE, "1", other, save_dir=tmp_path / "run", validate=True
        )
        assert len(again.records.get("valid", [])) == validations
    assert "the run has ended before" in again.output


def test_a_later_end_is_trained_to(fairseq_train, tmp_path):
    flags = ("--optimizer sam", "--max-epoch 5")
    whole = fairseq_train(*flags, "--max-update 8")
    fairseq_train(*flags, "--max-update 3", save_dir=tmp_path / "run")
    longer = fairseq_train(*flags, "--max-update 8", save_dir=tmp_path / "run")
    assert longer.updates() == 8
    assert len(longer.records["train_inner"]) == 5
    whole.assert_same_training(longer)


@pytest.mark.slow
def test_as_a_module(fairseq_train_alone, tmp_path):
    """``python -m fairseq_cli.train`` is not the module that plugins import by that name."""
    flags = ("--optimizer sam", "--max-update 2", "--max-epoch 5")
    for _ in range(2):
        run = fairseq_train_alone(*flags, save_dir=tmp_path / "run", command=AS_A_MODULE)
        assert run.status == 0
    assert run.updates() == 2
    assert "the run has ended before" in run.output
