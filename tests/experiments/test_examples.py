"""The examples in the docstrings."""

import doctest
import importlib

import pytest

MODULES = (
    *("command_lines", "log_lines", "option_types", "processes", "recipe"),
    *("search.strategy", "search.trials"),
)


@pytest.mark.parametrize("name", MODULES)
def test_examples_of_the_docs(name):
    result = doctest.testmod(importlib.import_module(f"fairseq_sam.experiments.{name}"))
    assert result.attempted > 0
    assert result.failed == 0
