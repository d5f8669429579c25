"""What the tests of the subcommands share."""

from pathlib import Path
from typing import Any, Callable

import pytest

from fairseq_sam.commands import main
from tests.fairseq_runs import Run


@pytest.fixture
def failing(capsys: pytest.CaptureFixture) -> Callable[..., str]:
    """``failing(arguments…)``: runs fairseq-sam, which must fail; the one line that it prints."""

    def run(*arguments: Any) -> str:
        assert main([str(argument) for argument in arguments]) == 1
        captured = capsys.readouterr()
        assert captured.out == ""
        assert captured.err.count("\n") == 1
        return captured.err

    return run


@pytest.fixture
def misused(capsys: pytest.CaptureFixture) -> Callable[..., str]:
    """``misused(arguments…)``: runs fairseq-sam, which must refuse them; the line it prints."""

    def run(*arguments: Any) -> str:
        with pytest.raises(SystemExit) as caught:
            main([str(argument) for argument in arguments])
        assert caught.value.code == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        return error

    return run


@pytest.fixture(scope="module")
def other_data(preprocess: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A corpus with other dictionaries than those of ``corpus``."""
    text = tmp_path_factory.mktemp("other_text") / "other"
    for language in ("de", "en"):
        text.with_suffix(f".{language}").write_text("a b c\n", encoding="utf-8")
    data = tmp_path_factory.mktemp("other_data")
    preprocess("-s de -t en --validpref", text, "--trainpref", text, "--destdir", data)
    return data


@pytest.fixture(scope="module")
def trained(shared_fairseq_train: Callable[..., Run]) -> Run:
    """A translation model, trained for two epochs."""
    criterion = "--criterion label_smoothed_cross_entropy --label-smoothing 0.1 --report-accuracy"
    flags = "--optimizer adam --max-epoch 2 --save-interval 1"
    return shared_fairseq_train(flags, criterion, validate=True)


@pytest.fixture(scope="module")
def other_criterion(shared_fairseq_train: Callable[..., Run]) -> str:
    """A model of the same kind whose criterion is another, and reports no accuracy."""
    flags = "--optimizer adam --max-epoch 1 --save-interval 1"
    run = shared_fairseq_train(flags, "--criterion cross_entropy --sentence-avg", validate=True)
    return str(run.save_dir / "checkpoint_last.pt")


@pytest.fixture(scope="module")
def checkpoint(trained: Run) -> str:
    """Its second epoch."""
    return str(trained.save_dir / "checkpoint_last.pt")


@pytest.fixture(scope="module")
def earlier(trained: Run) -> str:
    """Its first epoch."""
    return str(trained.save_dir / "checkpoint1.pt")
