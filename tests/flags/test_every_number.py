"""No flag, wherever it is declared, takes a number that is none, or has no limit."""

import argparse
import ast
import dataclasses
import doctest
from typing import Any, Dict, Iterator, List, Tuple, get_args

import fairseq  # noqa: F401
import pytest
from fairseq import options
from fairseq.criterions import CRITERION_DATACLASS_REGISTRY
from fairseq.models import MODEL_DATACLASS_REGISTRY
from fairseq.tasks import TASK_DATACLASS_REGISTRY

import fairseq_sam
from fairseq_sam.flags import number_types
from fairseq_sam.flags.checked_fields import CheckedConfig, check
from fairseq_sam.models.bert import BertModel
from fairseq_sam.training import optimizers
from tests.fairseq_runs import ROOT

fairseq_sam.register()

NO_NUMBERS = ["1_0", "٣", "inf", "nan", "-inf", "1e400", "9" * 5000, "", " 1", "0x1", "one", "-1"]
SCRIPTS = sorted(path for path in (ROOT / "scripts").rglob("*.py"))


def own_fields() -> Iterator[Tuple[str, Any, dataclasses.Field]]:
    """Yields every field of our own that is a number, of every registered dataclass."""
    for registry in (
        CRITERION_DATACLASS_REGISTRY,
        MODEL_DATACLASS_REGISTRY,
        TASK_DATACLASS_REGISTRY,
    ):
        for name, config in registry.items():
            ours = [c for c in config.__mro__ if c.__module__.startswith("fairseq_sam")]
            for field in dataclasses.fields(config):
                if not any(field.name in vars(c).get("__annotations__", {}) for c in ours):
                    continue
                if isinstance(field.default, str) and field.default.startswith("${"):
                    continue  # set by another flag
                if {int, float} & {field.type, *get_args(field.type)}:
                    yield name, config, field


FIELDS = {f"{name} {field.name}": (config, field) for name, config, field in own_fields()}


def test_the_fields_are_found() -> None:
    found = {key.split()[1] for key in FIELDS}
    assert {"r_drop_alpha", "smart_steps", "free_lb_step_size", "mirror_span"} <= found
    assert {"feature_maps", "dropout", "max_sentence_tokens"} <= found


@pytest.mark.parametrize("key", FIELDS)
def test_fields_of_dataclasses(key: str, capsys: Any) -> None:
    config, field = FIELDS[key]
    parser = argparse.ArgumentParser()
    options.gen_parser_from_dataclass(parser, config())
    flag = f"--{field.name.replace('_', '-')}"
    for text in NO_NUMBERS:
        with pytest.raises(SystemExit) as caught:
            parser.parse_args([f"{flag}={text}", "data"])
        assert caught.value.code == 2
        last = capsys.readouterr().err.splitlines()[-1]
        assert f"argument {flag}: {text} is not allowed: it must be" in last
    assert parser.get_default(field.name) == field.default


@pytest.mark.parametrize("key", FIELDS)
def test_fields_of_dataclasses_from_hydra(key: str) -> None:
    config, field = FIELDS[key]
    assert issubclass(config, CheckedConfig)
    defaults = {f.name: f.default for f in dataclasses.fields(config)}
    check(argparse.Namespace(**defaults), config)
    for value in (float("inf"), float("nan"), -1, 10**20):
        with pytest.raises(SystemExit, match=f"--{field.name.replace('_', '-')}: .* not allowed"):
            check(argparse.Namespace(**{**defaults, field.name: value}), config)


def parsers() -> Dict[str, argparse.ArgumentParser]:
    """Returns the parsers of what declares its flags by itself."""
    found = {}
    for name in ("ga_sam", "delta_sam"):
        found[name] = argparse.ArgumentParser()
        optimizers.REGISTERED[name].add_args(found[name])
    found["bert"] = argparse.ArgumentParser()
    BertModel.add_args(found["bert"])
    return found


def test_flags_of_optimizers_and_models() -> None:
    seen: List[str] = []
    for name, parser in parsers().items():
        for action in parser._actions:
            convert = action.type
            ours = action.dest.startswith(("sam_", "delta_sam_")) or action.dest in (
                "layer_norm_eps",
                "num_segments",
            )
            if not ours or convert is None or convert.__name__ == "_pattern":
                continue
            assert convert.__module__ == number_types.__name__, (name, action.dest)
            seen.append(action.dest)
    assert {"sam_rho", "sam_steps", "delta_sam_eta", "layer_norm_eps", "num_segments"} <= {*seen}


@pytest.mark.parametrize("path", SCRIPTS, ids=[path.name for path in SCRIPTS])
def test_scripts(path: Any) -> None:
    """A script's flags take their numbers by the same types."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.keyword) and node.arg == "type":
            called = node.value.func if isinstance(node.value, ast.Call) else node.value
            assert isinstance(called, ast.Name), f"{path}:{node.value.lineno}"
            known = hasattr(number_types, called.id) or called.id in ("Path", "_metrics", "str")
            assert known, f"{path}:{node.value.lineno}: {called.id}"


def test_no_module_reads_digits_by_itself() -> None:
    for path in (ROOT / "fairseq_sam").rglob("*.py"):
        assert ".isdigit()" not in path.read_text(encoding="utf-8"), path


def test_number_types() -> None:
    result = doctest.testmod(number_types)
    assert result.attempted > 5
    assert result.failed == 0
