"""A search whose training is made up."""

import sys
from pathlib import Path

import pytest

from fairseq_sam.search import runner

TRAINER = Path(__file__).with_name("made_trainer.py")


@pytest.fixture
def made_trainer(monkeypatch):
    """Puts tests/search/made_trainer.py in place of fairseq-train."""
    monkeypatch.setattr(runner, "TRAINER", (sys.executable, "-S", str(TRAINER)))
    monkeypatch.setattr(runner, "POLL_SECONDS", 0.02)
