"""The shape of the package: a room a topic, names that tell modules apart, no crumbs."""

import ast
from collections import Counter
from pathlib import Path
from typing import Iterator

PACKAGE = Path(__file__).resolve().parents[1] / "fairseq_sam"
MODULES = sorted(PACKAGE.rglob("*.py"))

LOOSE = {"__init__.py", "version.py", "py.typed"}

NAMED_BY_USERS = ("commands", "experiments/recipes")
"""A command's module is called as the command, a recipe's as its script, whatever others are."""

FEWEST_LINES = 40
SHORT = {
    "commands/__main__.py": "python -m looks for it",
    "commands/user_dir.py": "one module a command",
    "experiments/__main__.py": "python -m looks for it",
    "experiments/errors.py": "all modules of the room import it, so that it can be a part of none",
    "reporting/risk_table.py": "one module a table, and the plot beside it needs matplotlib",
    "version.py": "setup.py reads it without importing the package",
}


def room(module: Path) -> str:
    return module.parent.relative_to(PACKAGE).as_posix()


def test_nothing_stands_loose_at_the_top() -> None:
    found = {path.name for path in PACKAGE.iterdir() if path.is_file()}
    assert found <= LOOSE


def test_every_room_says_what_is_in_it() -> None:
    for folder in {module.parent for module in MODULES}:
        text = (folder / "__init__.py").read_text(encoding="utf-8")
        assert text.startswith('"""'), folder


def test_no_two_modules_have_one_name() -> None:
    names = Counter(
        module.stem
        for module in MODULES
        if not module.stem.startswith("__") and room(module) not in NAMED_BY_USERS
    )
    assert {name for name, count in names.items() if count > 1} == set()


def test_no_module_is_a_crumb() -> None:
    short = {
        module.relative_to(PACKAGE).as_posix()
        for module in MODULES
        if module.name != "__init__.py"
        and len(module.read_text(encoding="utf-8").splitlines()) < FEWEST_LINES
    }
    assert short == set(SHORT)


def test_tests_mirror_the_package() -> None:
    """Every folder of tests is a room, or one of those that are about more than one."""
    across = {"end_to_end", "scripts", "yardstick"}
    folders = {path.name for path in (PACKAGE.parent / "tests").iterdir() if path.is_dir()}
    rooms = {path.name for path in PACKAGE.iterdir() if path.is_dir()}
    assert {name for name in folders if not name.startswith((".", "__"))} - across <= rooms


LOOP = ("fairseq.trainer", "fairseq.optim", "fairseq.distributed", "fairseq.nan_detector")
ASK_WHICH_OPTIMIZERS_THERE_ARE = {"commands/methods.py", "experiments/search/command_check.py"}


def imported(module: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(module.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def test_only_training_and_host_touch_the_training_loop() -> None:
    """Of the whole of fairseq's programs pyproject.toml says it, with the rules for our rooms."""
    touching = {
        module.relative_to(PACKAGE).as_posix()
        for module in MODULES
        for name in imported(module)
        if f"{name}.".startswith(tuple(f"{part}." for part in LOOP))
    }
    rooms = ("training/", "host/")
    assert {name for name in touching if not name.startswith(rooms)} == (
        ASK_WHICH_OPTIMIZERS_THERE_ARE
    )
    assert any(name.startswith("training/") for name in touching)


def test_no_other_room_replaces_a_step() -> None:
    for module in MODULES:
        if room(module).partition("/")[0] in ("training", "host"):
            continue
        for node in ast.walk(ast.parse(module.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
                assert node.attr not in ("train_step", "valid_step", "optimizer_step"), module
