"""Whatever fairseq registers is run by a case, or listed with the reason why it is not."""

import re
from typing import Dict, Iterable, Set

import pytest

from tests.yardstick.cases import CASES, NOT_RUN
from tests.yardstick.made_cases import MADE_CASES

DEFAULTS = {"task": "translation", "criterion": "cross_entropy"}


def value(flags: str, kind: str) -> str:
    found = re.search(rf"--{kind} (\S+)", flags)
    return found.group(1) if found else DEFAULTS[kind]


def covered(kind: str) -> Set[str]:
    cases = [*CASES, *MADE_CASES]
    if kind != "model":
        return {value(case.flags, kind) for case in cases}
    from fairseq.models import ARCH_MODEL_NAME_REGISTRY

    architectures = {value(case.flags, "arch") for case in cases}
    return {ARCH_MODEL_NAME_REGISTRY.get(name, name) for name in architectures}


def registered(kind: str) -> Set[str]:
    """Returns the names that fairseq or the plugin registers, and that can be asked for."""
    from fairseq import criterions, models, tasks

    registry: Dict[str, type] = {
        "model": models.MODEL_REGISTRY,
        "task": tasks.TASK_REGISTRY,
        "criterion": criterions.CRITERION_REGISTRY,
    }[kind]
    names: Iterable[str] = registry
    if kind == "model":  # the others are for loading only: no --arch builds them
        names = set(models.ARCH_MODEL_NAME_REGISTRY.values())
    rooms = ("fairseq.", "fairseq_sam.")
    return {name for name in names if registry[name].__module__.startswith(rooms)}


@pytest.mark.parametrize("kind", ["model", "task", "criterion"])
def test_everything_is_run_or_listed(kind):
    assert registered(kind) - covered(kind) - set(NOT_RUN[kind]) == set()


@pytest.mark.parametrize("kind", ["model", "task", "criterion"])
def test_nothing_is_both(kind):
    assert covered(kind) & set(NOT_RUN[kind]) == set()
    assert all(NOT_RUN[kind].values()), "no reason"


def test_names_of_cases_are_unique():
    names = [case.name for case in [*CASES, *MADE_CASES]]
    assert len(names) == len(set(names))
