"""The programs of scripts/ find this package, whichever one is installed."""

import os

import pytest

from tests.scripts.script_runs import ROOT


@pytest.fixture(autouse=True)
def _this_package(monkeypatch):
    found = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(found))
