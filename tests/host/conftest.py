"""A repaired fairseq, and the way back to what a repair replaced."""

import fairseq
import pytest

from fairseq_sam import host


@pytest.fixture(autouse=True, scope="session")
def _repaired():
    host.repair()


@pytest.fixture
def unrepaired():
    """A function from what fairseq has now to what it had before; skips if that is the same."""

    def original(function):
        if not hasattr(function, "__wrapped__"):
            pytest.skip(f"fairseq {fairseq.__version__} does not have this fault here")
        return function.__wrapped__

    return original
