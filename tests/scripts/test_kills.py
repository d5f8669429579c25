"""Scripts that are killed at random moments end as if they had been left alone."""

import pytest

from tests.scripts.script_runs import (
    BASH,
    command,
    compare_after_kills,
    needs_text_packages,
    predictions_of,
)
from tests.scripts.test_other_experiments import reviews
from tests.scripts.test_quickstart import small_options  # noqa: F401  (a fixture)
from tests.scripts.test_reproduction import small_de_en

pytestmark = [
    pytest.mark.slow,
    needs_text_packages,
    pytest.mark.skipif(BASH is None, reason="there is no bash"),
]


def test_quickstart(tmp_path, small_options):  # noqa: F811
    options = list(small_options)
    del options[options.index("--out") : options.index("--out") + 2]
    compare_after_kills(
        lambda out: command("quickstart", *options, "--out", out), tmp_path, 10, predictions_of
    )


def test_textcnn(tmp_path):
    data = reviews(tmp_path / "aclImdb")
    options = ["--small", "--data", data, "--seeds", 1, "--epochs", 2, "--parallel", 2]
    options += ["--methods", "baseline,ga_sam", "--extra", "--max-update 8"]
    compare_after_kills(
        lambda out: command("textcnn_imdb", *options, "--out", out), tmp_path, 10, predictions_of
    )


def test_de_en(tmp_path):
    compare_after_kills(
        lambda out: command(*small_de_en(tmp_path, out)), tmp_path, 10, predictions_of
    )
