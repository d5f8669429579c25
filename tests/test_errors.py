"""Errors: one base for all, whatever else they are."""

import importlib
import inspect
import pkgutil
from typing import List, Type

import pytest

import fairseq_sam
from fairseq_sam import FairseqSamError
from fairseq_sam.commands import main


@pytest.fixture(scope="module")
def errors() -> List[Type[Exception]]:
    """All exception classes of the package."""
    pytest.importorskip("fairseq")
    fairseq_sam.register()
    found = {}
    for module in pkgutil.walk_packages(fairseq_sam.__path__, "fairseq_sam."):
        for each in vars(importlib.import_module(module.name)).values():
            if inspect.isclass(each) and issubclass(each, Exception):
                found[each] = each.__module__.partition(".")[0] == "fairseq_sam"
    return [each for each, is_ours in found.items() if is_ours]


def test_every_error_has_the_base(errors: List[Type[Exception]]) -> None:
    assert len(errors) > 12
    assert [each for each in errors if not issubclass(each, FairseqSamError)] == []


def test_no_two_have_one_name(errors: List[Type[Exception]]) -> None:
    assert len({each.__name__ for each in errors}) == len(errors)


def test_they_can_be_caught_as_what_else_they_are(errors: List[Type[Exception]]) -> None:
    named = {f"{each.__module__}.{each.__name__}": each for each in errors}
    assert issubclass(named["fairseq_sam.experiments.errors.MisuseError"], ValueError)
    assert issubclass(named["fairseq_sam.perturbation.step.BackwardPassedBy"], RuntimeError)
    assert issubclass(named["fairseq_sam.perturbation.outputs.OutputsBypassed"], RuntimeError)


def test_a_command_says_any_of_them_in_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    class OtherError(FairseqSamError):
        """Of a kind that no command knows."""

    def run(args: object) -> int:
        raise OtherError("the text")

    monkeypatch.setattr("fairseq_sam.commands.user_dir.run", run)
    assert main(["user-dir"]) == 1
    assert capsys.readouterr().err == "fairseq-sam user-dir: error: the text\n"
