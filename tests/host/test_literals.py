"""Strings of a configuration: run as code by fairseq alone, read as literals once repaired."""

import builtins
import contextlib
import dataclasses
import importlib
import os
import subprocess
import sys
from argparse import Namespace
from types import SimpleNamespace

import pytest
import torch
from fairseq import options, utils
from fairseq.data import Dictionary
from fairseq.models import ARCH_CONFIG_REGISTRY, ARCH_MODEL_REGISTRY, MODEL_DATACLASS_REGISTRY

from fairseq_sam.commands import main
from fairseq_sam.host import fairseq_modules
from fairseq_sam.host.literals import evaluate_literal
from tests.fairseq_runs import USER_DIR


@pytest.fixture
def hostile(tmp_path):
    """Text that leaves a file when it is run, and that file."""
    ran = tmp_path / "ran"
    return f"[__import__('pathlib').Path({str(ran)!r}).touch()]", ran


class TestLiteral:
    @pytest.mark.parametrize(
        "text",
        [
            "[(512, 3)] * 4",
            "[(512, 10, 5)] + [(512, 3, 2)] * 4 + [(512,2,2)] * 2",
            "((64, 3, 2, 2, True), (128, 3, 2, 2, True))",
            "((256, 4, 1024, True, 0.15, 0.15, 0.15),) * 2",
            "2 * [(1, 2)]",
            "(0.9, 0.999)",
            "(1e-30, 1e-3)",
            "0.9, 1 - 1e-3",
            "-1e-3",
            "2 ** 16 / 3",
            "{'data': '/path', 'layers': [1, None]}",
            "True",
            "None",
            " 'text' ",
            "[]",
            "{1, 2}",
            "[(1, 2)] * 0",
        ],
    )
    def test_means_what_it_means_to_python(self, text):
        assert evaluate_literal(text) == builtins.eval(text.strip())

    @pytest.mark.parametrize(
        "text",
        [
            "__import__('os')",
            "name",
            "(1).__class__",
            "[1][0]",
            "f'{1}'",
            "[i for i in (1, 2)]",
            "(lambda: 1)()",
            "1 if 1 else 2",
            "{**{}}",
            "[*()]",
            "'%s' % 1",
            "'a' + 'b'",
            "1 << 9",
            "1; 2",
            "",
            "1 +",
            "\0",
        ],
    )
    def test_is_not(self, text):
        with pytest.raises(ValueError, match="not a literal"):
            evaluate_literal(text)

    @pytest.mark.parametrize(
        "text",
        [
            "[0] * 10 ** 12",
            "[[[[0] * 1000] * 1000] * 1000] * 1000",
            "'a' * 10 ** 12",
            "9 ** 9 ** 9 ** 9",
            "10.0 ** 400",
            "1 / 0",
            "(" * 5000,
            "-" * 50_000 + "1",
            "[" * 80 + "]" * 80 + " * 3" * 20_000,
        ],
    )
    def test_is_not_huge(self, text):
        with pytest.raises(ValueError, match="not a literal"):
            evaluate_literal(text)

    @pytest.mark.parametrize("value", [None, 1, ["[1]"], {}])
    def test_is_text(self, value):
        with pytest.raises(TypeError):
            evaluate_literal(value)
        with pytest.raises(TypeError):
            builtins.eval(value)


def test_flags_still_mean_the_same():
    assert utils.eval_str_list("[1, 2]", type=int) == [1, 2]
    assert utils.eval_str_list("0.25") == [0.25]
    assert utils.eval_str_list("1e-3,1e-4") == [1e-3, 1e-4]
    assert utils.eval_bool("False") is False
    assert utils.eval_bool(None, default=True) is True
    assert utils.eval_bool(1, default=True) is True


def defaults():
    """Yields the texts that architectures have for configurations of layers and the like."""
    for arch, fill in ARCH_CONFIG_REGISTRY.items():
        args = Namespace()
        try:
            fill(args)
        except Exception:  # not all can be filled without flags
            continue
        yield from ((arch, text) for text in vars(args).values())
    for name, config in MODEL_DATACLASS_REGISTRY.items():
        yield from ((name, field.default) for field in dataclasses.fields(config))


def test_every_default_of_fairseq_is_a_literal():
    found = set()
    for _, text in defaults():
        if isinstance(text, str) and text[:1] in ("(", "["):
            assert evaluate_literal(text) == builtins.eval(text)
            found.add(text)
    assert "[(512, 3)] * 20" in found
    assert any("(512, 10, 5)" in text for text in found)


def test_no_module_runs_strings():
    modules = fairseq_modules.fairseq_modules()
    running = [module for module in modules if fairseq_modules.uses(module, "eval")]
    assert len(running) > 10
    for module in running:
        assert vars(module)["eval"] is evaluate_literal, module


def test_others_run_what_they_did():
    assert "eval" not in vars(torch)
    assert eval("1 + 1") == 2


LAYERS = ("encoder_layers", "decoder_layers", "decoder_attention")
EVALUATED = [
    *(("fconv", setting) for setting in LAYERS),
    *(("fconv_self_att", setting) for setting in (*LAYERS, "self_attention", "pretrained")),
    *(("fconv_lm", setting) for setting in LAYERS[1:]),
    ("transformer_lm", "character_filters"),
    ("lightconv_lm", "character_filters"),
    ("wav2vec", "conv_feature_layers"),
    ("wav2vec", "conv_aggregator_layers"),
    ("wav2vec2", "conv_feature_layers"),
    ("hubert", "conv_feature_layers"),
]
CONFIGURED = {
    "wav2vec": {},
    "wav2vec2": {"encoder_layers": 1},
    "hubert": {"encoder_layers": 1, "label_rate": 50},
    "transformer_lm": {
        "decoder_layers": 1,
        "decoder_embed_dim": 16,
        "max_target_positions": 9,
        "character_embeddings": True,
    },
}


def build(arch, **settings):
    """Builds a model, small unless its size is in the evaluated strings."""
    dictionary = Dictionary()
    for letter in "abc":
        dictionary.add_symbol(letter)
    task = SimpleNamespace(
        dictionary=dictionary,
        output_dictionary=dictionary,
        source_dictionary=dictionary,
        target_dictionary=dictionary,
        dictionaries=[dictionary],
        cfg=SimpleNamespace(label_rate=50, sample_rate=16000),
    )
    model = ARCH_MODEL_REGISTRY[arch]
    if arch in CONFIGURED:
        config = MODEL_DATACLASS_REGISTRY[arch]()
        for name, value in {**CONFIGURED[arch], **settings}.items():
            setattr(config, name, value)
        return model.build_model(config, task)
    kind = "language_modeling" if arch.endswith("_lm") else "translation"
    flags = f"data --task {kind} --arch {arch} --dropout 0"
    if "character_filters" in settings:
        flags += " --character-embeddings --decoder-embed-dim 16"
    args = options.parse_args_and_arch(options.get_training_parser(), flags.split())
    vars(args).update(settings)
    return model.build_model(args, task)


@pytest.mark.parametrize(("arch", "setting"), EVALUATED)
def test_code_is_not_run_when_a_model_is_built(arch, setting, hostile):
    text, ran = hostile
    with pytest.raises(ValueError, match="not a literal, and code is not run"):
        build(arch, **{setting: text})
    assert not ran.exists()


@pytest.mark.parametrize(("arch", "setting"), EVALUATED)
def test_fairseq_alone_runs_code(arch, setting, hostile, monkeypatch):
    text, ran = hostile
    for module in fairseq_modules.fairseq_modules():
        if vars(module).get("eval") is evaluate_literal:
            monkeypatch.delattr(module, "eval")
    with contextlib.suppress(Exception):  # the value is no configuration of layers
        build(arch, **{setting: text})
    assert ran.exists()


@pytest.mark.parametrize("arch", ["fconv", "fconv_lm", "fconv_self_att", *CONFIGURED])
def test_models_are_built_with_their_defaults(arch):
    assert sum(weight.numel() for weight in build(arch).parameters()) > 1000


@pytest.mark.parametrize("arch", ["transformer_lm", "lightconv_lm"])
def test_character_embeddings_are_built(arch):
    model = build(arch, character_filters="[(1, 8), (2, 8)] + [(3, 4)] * 2")
    assert len(model.decoder.embed_tokens.convolutions) == 4


class TestCheckpoint:
    """One that holds no pickled code, but a string in its configuration."""

    @pytest.fixture(scope="class")
    def trained(self, corpus, shared_fairseq_train):
        flags = (
            "--task translation -s de -t en --arch fconv --encoder-layers '[(8, 3)]' --batch-size 8"
            " --decoder-layers '[(8, 3)]' --encoder-embed-dim 8 --decoder-embed-dim 8"
            " --decoder-out-embed-dim 8"
        )
        return shared_fairseq_train("--optimizer adam --max-update 1", task=(corpus, flags))

    @pytest.fixture
    def poisoned(self, trained, hostile, tmp_path):
        state = trained.checkpoint()
        state["cfg"]["model"].encoder_layers, ran = hostile
        torch.save(state, tmp_path / "poisoned.pt")
        return tmp_path / "poisoned.pt", ran

    @pytest.mark.parametrize("command", ["risk {1} {0} --cpu", "gradients {1} {0} --cpu"])
    def test_is_refused_by_commands(self, corpus, poisoned, command, capsys):
        path, ran = poisoned
        assert main(command.format(path, corpus).split()) == 1
        assert "not a literal, and code is not run" in capsys.readouterr().err
        assert not ran.exists()

    @pytest.mark.parametrize(
        "command", ["generate", pytest.param("validate", marks=pytest.mark.slow)]
    )
    def test_is_refused_by_fairseq(self, corpus, poisoned, command):
        path, ran = poisoned
        program = f"from fairseq_cli.{command} import cli_main; cli_main()"
        flags = f"{corpus} --path {path} --task translation --batch-size 8 --cpu".split()
        subset = "--gen-subset" if command == "generate" else "--valid-subset"
        done = subprocess.run(
            [sys.executable, "-c", program, *flags, subset, "valid", "--user-dir", str(USER_DIR)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert done.returncode != 0
        assert "not a literal, and code is not run" in done.stdout.splitlines()[-1]
        assert not ran.exists()


class TestLaterModules:
    @pytest.fixture
    def example(self, monkeypatch, tmp_path, hostile):
        """A module of an example, as --user-dir imports it."""
        monkeypatch.setattr(fairseq_modules, "_examples", lambda: (f"{tmp_path}{os.sep}",))
        monkeypatch.syspath_prepend(str(tmp_path))
        monkeypatch.delitem(sys.modules, "later_example", raising=False)
        source = "import numpy as np\nimport torch\ndef build(text):\n    return eval(text)\n"
        (tmp_path / "later_example.py").write_text(f"{source}\ndef one():\n    return np.float(1)")
        yield lambda: importlib.import_module("later_example")
        sys.modules.pop("later_example", None)

    def test_are_repaired(self, example, hostile):
        text, ran = hostile
        module = example()
        with pytest.raises(ValueError, match="not a literal"):
            module.build(text)
        assert not ran.exists()
        assert module.build("[1] * 2") == [1, 1]
        assert module.one() == 1.0

    def test_are_not_without_the_repair(self, example, hostile, monkeypatch):
        text, ran = hostile
        others = [f for f in sys.meta_path if type(f).__module__ != fairseq_modules.__name__]
        monkeypatch.setattr(sys, "meta_path", others)
        example().build(text)
        assert ran.exists()

    def test_of_others_are_left_alone(self, example, monkeypatch):
        monkeypatch.setattr(fairseq_modules, "_examples", lambda: ())
        assert "eval" not in vars(example())

    def test_of_fairseq_are_looked_at(self):
        finder, path = fairseq_modules._Importer(()), sys.modules["fairseq.models"].__path__
        loader = finder.find_spec("fairseq.models.fconv_lm", path).loader
        assert "exec_module" in vars(loader)
