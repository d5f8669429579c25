"""The maths can be used without fairseq, and its examples are true."""

import doctest
import importlib
import os
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import fairseq_sam.perturbation as package

ROOT = Path(__file__).resolve().parents[2]
MODULES = ["fairseq_sam.perturbation"] + [
    f"fairseq_sam.perturbation.{module.name}" for module in pkgutil.iter_modules(package.__path__)
]


def test_the_maths_imports_nothing_of_fairseq():
    code = (
        "import importlib, sys\n"
        f"for name in {MODULES!r}: importlib.import_module(name)\n"
        "loaded = {name.split('.')[0] for name in sys.modules}\n"
        "print(sorted(loaded & {'fairseq', 'fairseq_cli', 'hydra', 'omegaconf'}))"
    )
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        timeout=120,
    )
    assert (done.returncode, done.stdout.strip()) == (0, "[]")


@pytest.mark.parametrize("name", MODULES)
def test_doctests(name: str):
    assert doctest.testmod(importlib.import_module(name)).failed == 0


def test_there_are_doctests():
    found = [doctest.DocTestFinder().find(importlib.import_module(name)) for name in MODULES]
    assert sum(len(each.examples) for tests in found for each in tests) >= 3
