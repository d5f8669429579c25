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


def test_a_later_end_is_trained_to(fairseq_train, tmp_path):
    flags = ("--optimizer sam", "--max-epoch 5")
    whole = fairseq_train(*flags, "--max-update 8")
    fairseq_train(*flags, "--max-update 3", save_dir=tmp_path / "run")
    longer = fairseq_train(*flags, "--max-update 8", save_dir=tmp_path / "run")
    assert longer.updates() == 8
    assert len(longer.records["train_inner"]) == 5
    whole.assert_same_training(longer)


def test_as_a_module(fairseq_train_alone, tmp_path):
    """``python -m fairseq_cli.train`` is not the module that plugins import by that name."""
    flags = ("--optimizer sam", "--max-update 2", "--max-epoch 5")
    for _ in range(2):
        run = fairseq_train_alone(*flags, save_dir=tmp_path / "run", command=AS_A_MODULE)
        assert run.status == 0
    assert run.updates() == 2
    assert "the run has ended before" in run.output
