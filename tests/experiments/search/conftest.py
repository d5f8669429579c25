"""A stand-in for fairseq-train, where a test does not ask for a corpus to train on."""

import sys
from pathlib import Path

import pytest

from fairseq_sam.experiments import jobs
from fairseq_sam.experiments.search import command_check, trial_jobs

MADE = Path(__file__).with_name("made_trainer.py")


@pytest.fixture(autouse=True)
def _made_trainer(request, monkeypatch):
    """Puts made_trainer.py in place of fairseq-train."""
    if "corpus" not in request.fixturenames:
        monkeypatch.setattr(trial_jobs, "TRAINER", (sys.executable, "-S", str(MADE)))
        monkeypatch.setattr(command_check, "CHECKER", (sys.executable, "-S", "-c", ""))
    monkeypatch.setattr(jobs, "POLL_SECONDS", 0.02)
