"""``fairseq-sam convert``: the converted model has the source's hidden states."""

import json
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any, Callable, List, Tuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fairseq_sam.checkpoints.conversion import encoder_checkpoint
from fairseq_sam.checkpoints.conversion.source import ConversionError
from fairseq_sam.checkpoints.conversion.tokenizer import load_tokenizer
from fairseq_sam.commands import main
from fairseq_sam.criterions.float64 import preserve_float64
from fairseq_sam.evaluation.trained_model import TrainedModel, load_trained_model
from tests.checkpoints.conversion.made_encoder import (
    BERT_PIECES,
    ROBERTA,
    MadeEncoder,
    hidden_states,
    write_encoder,
)
from tests.fairseq_runs import ROOT

Convert = Callable[..., Tuple[MadeEncoder, TrainedModel]]


@pytest.fixture
def convert(tmp_path: Path) -> Convert:
    """``convert(**settings)``: makes an encoder and converts it; returns it and the result."""

    def run(**settings: Any) -> Tuple[MadeEncoder, TrainedModel]:
        made = write_encoder(tmp_path / "source", **settings)
        needs_tokenizer(made.folder)
        assert main(["convert", str(made.folder), f"--output={tmp_path}/out/model.pt"]) == 0
        return made, load_trained_model(str(tmp_path / "out" / "model.pt"), str(tmp_path / "out"))

    return run


def needs_tokenizer(folder: Path) -> None:
    """Lets the conversion copy a tokeniser, so that it needs no package."""
    (folder / "tokenizer.json").write_text("{}", encoding="utf-8")


def batch_of(trained: TrainedModel, texts: List[str]) -> Tensor:
    """Tokens ``[batch, longest]`` of sentences given as pieces, with ``</s>`` as ``[SEP]``."""
    dictionary = trained.task.source_dictionary
    rows = [[dictionary.index(word) for word in f"<s> {text} </s>".split()] for text in texts]
    longest = max(map(len, rows))
    return torch.tensor([row + [dictionary.pad()] * (longest - len(row)) for row in rows])


def states_of(trained: TrainedModel, tokens: Tensor) -> List[Tensor]:
    model = trained.model.double()
    with torch.no_grad(), preserve_float64(model):
        features, extra = model(tokens, features_only=True, return_all_hiddens=True)
    assert torch.equal(features, extra["inner_states"][-1].transpose(0, 1))
    return [state.transpose(0, 1) for state in extra["inner_states"]]


def assert_same_states(made: MadeEncoder, trained: TrainedModel, texts: List[str]) -> None:
    is_bert = made.config["model_type"] == "bert"
    num_segments = made.config["type_vocab_size"] if is_bert else 1
    # A single segment's embedding is added to the positions, in float32.
    tolerance = 1e-9 if num_segments > 1 else 1e-6
    begin, end = ("[CLS]", "[SEP]") if is_bert else ("<s>", "</s>")
    found = states_of(trained, batch_of(trained, texts))
    for number, text in enumerate(texts):
        pieces = [begin, *text.replace("</s>", end).split(), end]
        pieces = [
            {"<mask>": "[MASK]", "<unk>": "[UNK]"}.get(p, p) if is_bert else p for p in pieces
        ]
        ends = [0, *(piece == end for piece in pieces[:-1])]
        segments = [min(sum(ends[: i + 1]), num_segments - 1) for i in range(len(ends))]
        rows = [made.pieces.index(piece) for piece in pieces]
        expected = hidden_states(made, rows, segments, first_position=0 if is_bert else 2)
        assert len(found) == len(expected)
        for ours, theirs in zip(found, expected):
            torch.testing.assert_close(
                ours[number, : len(rows)], theirs, rtol=tolerance, atol=tolerance
            )


SENTENCES = ["a man play ##s the guitar .", "the <mask> <unk>", "a", "a man </s> play ##s guitar"]


class TestHiddenStates:
    @pytest.mark.parametrize("prefix", ["", "bert."])
    def test_bert(self, convert: Convert, prefix: str) -> None:
        made, trained = convert(prefix=prefix)
        assert type(trained.model).__name__ == "BertModel"
        assert_same_states(made, trained, SENTENCES)

    def test_eps_and_a_single_segment(self, convert: Convert) -> None:
        made, trained = convert(layer_norm_eps=0.3, type_vocab_size=1)
        assert_same_states(made, trained, SENTENCES)

    def test_roberta_is_the_stock_model(self, convert: Convert) -> None:
        made, trained = convert(**ROBERTA)
        assert type(trained.model).__name__ == "RobertaModel"
        assert trained.cfg.model.max_positions == 14
        assert_same_states(made, trained, ["a Ġman <mask> Ġplays Ġthe", "a", "<unk> a"])

    @pytest.mark.parametrize(
        "settings", [{"layer_norm_eps": 0.3}, {"type_vocab_size": 2}, {"layer_norm_eps": 1e-12}]
    )
    def test_an_unusual_roberta_has_no_segments(self, convert: Convert, settings: Any) -> None:
        """Hugging Face's default eps is BERT's; its RoBERTa uses the first segment alone."""
        made, trained = convert(**{**ROBERTA, **settings})
        assert_same_states(made, trained, ["a Ġman", "a </s> </s> Ġman Ġplays </s> Ġthe"])
        assert getattr(trained.cfg.model, "num_segments", 1) == 1

    def test_a_bert_like_a_roberta_is_a_bert(self, convert: Convert) -> None:
        made, trained = convert(layer_norm_eps=1e-5, type_vocab_size=1)
        assert trained.cfg.model.num_segments == 2
        assert_same_states(made, trained, SENTENCES)

    def test_longest_sentence(self, convert: Convert) -> None:
        made, trained = convert()
        longest = " ".join(["man"] * (made.config["max_position_embeddings"] - 2))
        assert_same_states(made, trained, [longest])

    def test_another_activation(self, convert: Convert) -> None:
        _, trained = convert(hidden_act="gelu_new")
        activation = trained.model.encoder.sentence_encoder.layers[0].activation_fn
        x = torch.linspace(-3, 3, 50, dtype=torch.float64)
        torch.testing.assert_close(activation(x), F.gelu(x, approximate="tanh"))

    def test_safetensors(self, tmp_path: Path) -> None:
        library = pytest.importorskip("safetensors.torch")
        made = write_encoder(tmp_path / "source")
        (made.folder / "pytorch_model.bin").unlink()
        library.save_file(made.weights, str(made.folder / "model.safetensors"))
        needs_tokenizer(made.folder)
        assert main(["convert", str(made.folder), f"--output={tmp_path}/out/model.pt"]) == 0
        trained = load_trained_model(str(tmp_path / "out" / "model.pt"), str(tmp_path / "out"))
        assert_same_states(made, trained, SENTENCES)

    def test_onnx(self, tmp_path: Path) -> None:
        """A graph as torch's exporter writes it: matrices transposed, their names lost."""
        onnx = pytest.importorskip("onnx")
        made = write_encoder(tmp_path / "source")
        (made.folder / "pytorch_model.bin").unlink()
        stored, nodes = [], []
        for number, (name, value) in enumerate(made.weights.items()):
            layer = name.rsplit(".", 1)[0]
            if value.dim() == 2 and not name.startswith("embeddings."):
                matrix, at = f"onnx::MatMul_{number}", "/" + layer.replace(".", "/")
                at = at.replace("/layer/", "/layer.")  # a list of modules is one scope
                inputs, outputs = [f"{at}/in", matrix], [f"{at}/MatMul_output_0"]
                nodes.append(onnx.helper.make_node("MatMul", inputs, outputs, name=f"{at}/MatMul"))
                name, value = matrix, value.t()
            stored.append(onnx.numpy_helper.from_array(value.contiguous().numpy(), name))
        graph = onnx.helper.make_graph(nodes, "made", [], [], initializer=stored)
        onnx.save(onnx.helper.make_model(graph), str(made.folder / "model.onnx"))
        needs_tokenizer(made.folder)
        assert main(["convert", str(made.folder), f"--output={tmp_path}/out/model.pt"]) == 0
        trained = load_trained_model(str(tmp_path / "out" / "model.pt"), str(tmp_path / "out"))
        assert_same_states(made, trained, SENTENCES)

    def test_against_transformers(self, convert: Convert) -> None:
        transformers = pytest.importorskip("transformers")
        made, trained = convert()
        config = transformers.BertConfig(**made.config, vocab_size=len(made.pieces))
        theirs = transformers.BertModel(config).double().eval()
        theirs.load_state_dict(made.weights, strict=False)
        rows = [made.pieces.index(p) for p in ["[CLS]", "a", "man", "[SEP]", "the", "[SEP]"]]
        kinds = torch.tensor([[0, 0, 0, 0, 1, 1]])
        with torch.no_grad():
            output = theirs(torch.tensor([rows]), token_type_ids=kinds).last_hidden_state
        ours = states_of(trained, batch_of(trained, ["a man </s> the"]))[-1]
        torch.testing.assert_close(ours, output, rtol=1e-9, atol=1e-9)


class TestHeads:
    def test_language_model(self, convert: Convert, capsys: Any) -> None:
        made, trained = convert(lm_head=True)
        assert "random" not in capsys.readouterr().out
        tokens = batch_of(trained, ["a <mask> play ##s"])
        model = trained.model.double()
        with torch.no_grad(), preserve_float64(model):
            logits = model(tokens)[0][0]
        w = {name: value.double() for name, value in made.weights.items()}
        rows = [made.pieces.index(p) for p in ["[CLS]", "a", "[MASK]", "play", "##s", "[SEP]"]]
        x = hidden_states(made, rows, [0] * len(rows))[-1]
        at = "cls.predictions.transform"
        x = F.gelu(x @ w[f"{at}.dense.weight"].t() + w[f"{at}.dense.bias"])
        dim = (made.config["hidden_size"],)
        x = F.layer_norm(x, dim, w[f"{at}.LayerNorm.weight"], w[f"{at}.LayerNorm.bias"], 1e-12)
        expected = x @ w["embeddings.word_embeddings.weight"].t() + w["cls.predictions.bias"]
        symbols = trained.task.source_dictionary.symbols
        theirs = {"<s>": "[CLS]", "</s>": "[SEP]", "<pad>": "[PAD]", "<unk>": "[UNK]"}
        theirs["<mask>"] = "[MASK]"
        order = [made.pieces.index(theirs.get(symbol, symbol)) for symbol in symbols]
        torch.testing.assert_close(logits, expected[:, order], rtol=1e-9, atol=1e-9)

    @pytest.mark.parametrize("tied", [True, False])
    def test_a_head_with_a_matrix_of_its_own_is_none_of_fairseq_s(
        self, tied: bool, tmp_path: Path, capsys: Any
    ) -> None:
        made = write_encoder(tmp_path / "source", lm_head=True)
        needs_tokenizer(made.folder)
        words = made.weights["embeddings.word_embeddings.weight"]
        head = {"cls.predictions.decoder.weight": words if tied else -words}
        torch.save({**made.weights, **head}, made.folder / "pytorch_model.bin")
        assert main(["convert", str(made.folder), f"--output={tmp_path}/out/model.pt"]) == 0
        assert ("random" in capsys.readouterr().out) is not tied
        state = torch.load(tmp_path / "out" / "model.pt", weights_only=False)["model"]
        theirs = made.weights["cls.predictions.transform.dense.weight"]
        assert torch.equal(state["encoder.lm_head.dense.weight"], theirs) is tied

    def test_none_is_said(self, convert: Convert, capsys: Any) -> None:
        convert()
        assert "no head of a language model" in capsys.readouterr().out

    def test_pooler_starts_classification_heads(self, convert: Convert) -> None:
        made, trained = convert()
        state = torch.load(made.folder.parent / "out" / "model.pt", weights_only=False)["model"]
        trained.model.register_classification_head("mine", num_classes=2)
        trained.model.register_classification_head("narrow", num_classes=2, inner_dim=5)
        narrow = trained.model.classification_heads["narrow"].dense.weight.clone()
        trained.model.load_state_dict(dict(state), strict=True)
        dense = trained.model.classification_heads["mine"].dense
        torch.testing.assert_close(dense.weight.data, made.weights["pooler.dense.weight"])
        torch.testing.assert_close(dense.bias.data, made.weights["pooler.dense.bias"])
        assert torch.equal(trained.model.classification_heads["narrow"].dense.weight, narrow)


class TestFiles:
    def test_dictionary_fits_the_rows(self, convert: Convert) -> None:
        _, trained = convert()
        symbols = trained.task.source_dictionary.symbols
        assert symbols[:4] == ["<s>", "<pad>", "</s>", "<unk>"]
        assert symbols[-1] == "<mask>"
        assert symbols[4:-1] == [p for p in BERT_PIECES if not p.isupper()]

    def test_flags_build_the_model(self, convert: Convert, tmp_path: Path) -> None:
        convert()
        flags = shlex.split((tmp_path / "out" / "flags.txt").read_text())
        assert flags[:2] == ["--arch", "bert"]
        assert flags[flags.index("--max-positions") + 1] == "16"

    def test_recipes_know_a_roberta_by_its_arch(self, convert: Convert, tmp_path: Path) -> None:
        convert(**ROBERTA)
        assert "roberta" in shlex.split((tmp_path / "out" / "flags.txt").read_text())

    def test_same_bytes_again(self, convert: Convert, tmp_path: Path) -> None:
        _, trained = convert()
        again = tmp_path / "again"
        assert main(["convert", str(tmp_path / "source"), "--output", str(again / "model.pt")]) == 0
        other = load_trained_model(str(again / "model.pt"), str(again)).model.state_dict()
        for name, value in trained.model.state_dict().items():
            assert torch.equal(value, other[name]), name

    def test_pieces_that_a_dictionary_cannot_hold(self, convert: Convert) -> None:
        odd = ["\u2028", "a b", "<s>", ""]
        made, trained = convert(pieces=[*BERT_PIECES, *odd, "last"])
        assert_same_states(made, trained, ["a last man"])
        assert [s for s in trained.task.source_dictionary.symbols if "madeup" in s] == [
            f"madeupword{len(BERT_PIECES) + i}" for i in range(len(odd))
        ]

    def test_from_pretrained(self, convert: Convert, tmp_path: Path) -> None:
        from fairseq.models.roberta import RobertaModel

        made, _ = convert()
        hub = RobertaModel.from_pretrained(str(tmp_path / "out"), "model.pt", bpe=None)
        features = hub.double().eval().extract_features(torch.tensor([0, 5, 2]))
        rows = [made.pieces.index(p) for p in ["[CLS]", "a", "[SEP]"]]
        expected = hidden_states(made, rows, [0, 0, 0])[-1]
        torch.testing.assert_close(features[0], expected, rtol=0, atol=1e-5)


class TestErrors:
    @pytest.fixture
    def made(self, tmp_path: Path) -> MadeEncoder:
        made = write_encoder(tmp_path / "source")
        needs_tokenizer(made.folder)
        return made

    @pytest.fixture
    def one_line(self, made: MadeEncoder, tmp_path: Path, capsys: Any) -> Callable[[], str]:
        def run() -> str:
            assert main(["convert", str(made.folder), f"--output={tmp_path}/out/model.pt"]) == 1
            error = str(capsys.readouterr().err)
            assert error.count("\n") == 1
            assert not (tmp_path / "out" / "model.pt").exists()
            return error

        return run

    def rewrite(self, made: MadeEncoder, **settings: Any) -> None:
        config = {k: v for k, v in {**made.config, **settings}.items() if v is not None}
        (made.folder / "config.json").write_text(json.dumps(config))

    @pytest.mark.parametrize(
        ("settings", "said"),
        [
            ({"model_type": "gpt2"}, "model_type is gpt2; it must be one of bert, roberta"),
            ({"hidden_act": "silu"}, "hidden_act is silu; it must be one of gelu"),
            ({"position_embedding_type": "relative_key"}, "must be absolute"),
            ({"num_hidden_layers": None}, "has no num_hidden_layers"),
            ({"num_hidden_layers": 3}, "no weight encoder.layer.2.attention"),
            ({"intermediate_size": 24}, "fc1.weight: has shape [20, 12]"),
        ],
    )
    def test_configuration(
        self, made: MadeEncoder, one_line: Any, settings: Any, said: str
    ) -> None:
        self.rewrite(made, **settings)
        assert said in one_line()

    def test_a_roberta_whose_positions_are_counted_otherwise(self, tmp_path: Path) -> None:
        made = write_encoder(tmp_path / "source", **ROBERTA, pad_token_id=0)
        with pytest.raises(ConversionError, match="pad_token_id is 0; of a roberta it must be 1"):
            encoder_checkpoint.convert(made.folder, tmp_path / "out" / "model.pt")

    def test_missing_files(self, made: MadeEncoder, one_line: Any) -> None:
        (made.folder / "vocab.txt").rename(made.folder / "elsewhere")
        assert "has neither vocab.txt nor vocab.json" in one_line()
        (made.folder / "pytorch_model.bin").unlink()
        assert "has none of model.safetensors, pytorch_model.bin, model.onnx" in one_line()
        (made.folder / "config.json").write_text("{")
        assert "config.json: cannot be read" in one_line()
        (made.folder / "config.json").unlink()
        assert "config.json: no such file" in one_line()

    @pytest.mark.parametrize("content", ["{", "[]"])
    def test_damaged_settings_of_the_tokenizer(
        self, made: MadeEncoder, one_line: Any, content: str
    ) -> None:
        pytest.importorskip("tokenizers")
        (made.folder / "tokenizer.json").unlink(missing_ok=True)
        (made.folder / "tokenizer_config.json").write_text(content)
        assert "tokenizer_config.json: " in one_line()

    def test_damaged_weights(self, made: MadeEncoder, one_line: Any) -> None:
        (made.folder / "pytorch_model.bin").write_bytes(b"nothing")
        assert "pytorch_model.bin: cannot be read" in one_line()

    def test_vocabulary(self, made: MadeEncoder, one_line: Any) -> None:
        path = made.folder / "vocab.txt"
        pieces = path.read_text()
        path.write_text(pieces + "more\n")
        assert "17 pieces, the embedding 16 rows" in one_line()
        path.write_text(pieces.replace("[MASK]", "mask"))
        assert "the vocabulary has no [MASK]" in one_line()
        path.write_text(pieces.replace("guitar", "man"))
        assert "the vocabulary has man twice" in one_line()

    @pytest.mark.parametrize(
        ("name", "package"), [("model.safetensors", "safetensors"), ("model.onnx", "onnx")]
    )
    def test_reader_is_not_installed(
        self, made: MadeEncoder, one_line: Any, monkeypatch: Any, name: str, package: str
    ) -> None:
        (made.folder / "pytorch_model.bin").rename(made.folder / name)
        for module in (package, f"{package}.torch"):
            monkeypatch.setitem(sys.modules, module, None)
        assert f"pip install {package}" in one_line()

    def test_existing_output(self, made: MadeEncoder, tmp_path: Path, capsys: Any) -> None:
        out = str(tmp_path / "out" / "model.pt")
        assert main(["convert", str(made.folder), "--output", out]) == 0
        assert main(["convert", str(made.folder), "--output", out]) == 1
        assert "exists (--force overwrites it)" in capsys.readouterr().err
        assert main(["convert", str(made.folder), "--output", out, "--force"]) == 0

    def test_a_dictionary_of_somebody_else_stays(
        self, made: MadeEncoder, tmp_path: Path, capsys: Any
    ) -> None:
        folder = tmp_path / "data"
        folder.mkdir()
        (folder / "dict.txt").write_text("mine 1\n")
        assert main(["convert", str(made.folder), "--output", str(folder / "model.pt")]) == 1
        assert f"{folder / 'dict.txt'}: exists" in capsys.readouterr().err
        assert [path.name for path in folder.iterdir()] == ["dict.txt"]

    def test_into_the_sources_own_folder(self, made: MadeEncoder) -> None:
        assert main(["convert", str(made.folder), f"--output={made.folder}/model.pt"]) == 0
        assert (made.folder / "tokenizer.json").read_text(encoding="utf-8") == "{}"

    def test_a_failure_leaves_an_earlier_result_whole(
        self, made: MadeEncoder, tmp_path: Path, capsys: Any
    ) -> None:
        arguments = ["convert", str(made.folder), f"--output={tmp_path}/out/model.pt", "--force"]
        assert main(arguments) == 0
        before = {path: path.read_bytes() for path in (tmp_path / "out").iterdir()}
        (made.folder / "vocab.txt").write_text("\n".join(made.pieces[::-1]) + "\n")
        self.rewrite(made, intermediate_size=24)
        assert main(arguments) == 1
        assert {path: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before

    @pytest.mark.parametrize("output", ["folder", "folder/", "model.bin"])
    def test_output_is_a_checkpoint(self, made: MadeEncoder, output: str, capsys: Any) -> None:
        with pytest.raises(SystemExit) as caught:
            main(["convert", str(made.folder), "--output", output])
        assert caught.value.code == 2
        assert "convert: error: argument --output: " in capsys.readouterr().err


class TestTokenizer:
    LINE = "A man plays: the UNKNOWN guitarist."

    @pytest.fixture(autouse=True)
    def _needs_the_library(self) -> None:
        pytest.importorskip("tokenizers")

    def pieces(self, folder: Path, text: str) -> List[str]:
        script = ROOT / "scripts" / "data" / "wordpiece.py"
        command = [sys.executable, str(script), str(folder)]
        done = subprocess.run(command, input=text, capture_output=True, encoding="utf-8")
        assert done.returncode == 0, done.stderr
        return done.stdout.split("\n")

    def test_pieces_are_words_of_the_dictionary(self, tmp_path: Path) -> None:
        made = write_encoder(tmp_path / "source")
        out = tmp_path / "out"
        assert main(["convert", str(made.folder), "--output", str(out / "model.pt")]) == 0
        first, empty, last, end = self.pieces(out, f"{self.LINE}\n\nthe\u2028man\n")
        assert first == "a man play ##s [UNK] the un ##known guitar ##ist ."
        assert (empty, last, end) == ("", "the man", "")
        words = {line.split()[0] for line in (out / "dict.txt").open(encoding="utf-8")}
        assert set(first.split()) - words == {"[UNK]"}

    def test_case_is_kept_where_the_source_keeps_it(self, tmp_path: Path) -> None:
        made = write_encoder(tmp_path / "source")
        (made.folder / "tokenizer_config.json").write_text('{"do_lower_case": false}')
        assert main(["convert", str(made.folder), f"--output={tmp_path}/out/model.pt"]) == 0
        assert self.pieces(tmp_path / "out", "A man\n")[0] == "[UNK] man"

    @pytest.mark.parametrize(
        ("settings", "wanted"),
        [
            ("{}", "schon 中 中"),
            ('{"strip_accents": null, "tokenize_chinese_chars": true}', "schon 中 中"),
            ('{"strip_accents": false}', "schön 中 中"),
            ('{"tokenize_chinese_chars": false}', "schon [UNK]"),
            ('{"do_lower_case": false, "strip_accents": true}', "[UNK] 中 中"),
        ],
    )
    def test_accents_and_chinese_are_as_the_source_says(
        self, tmp_path: Path, settings: str, wanted: str
    ) -> None:
        pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "schön", "schon", "中"]
        made = write_encoder(tmp_path / "source", pieces=pieces)
        (made.folder / "tokenizer_config.json").write_text(settings)
        assert main(["convert", str(made.folder), f"--output={tmp_path}/out/model.pt"]) == 0
        pieces_of = load_tokenizer(tmp_path / "out" / "tokenizer.json")
        assert pieces_of("Schön 中中") == wanted.split()

    def test_byte_level(self, tmp_path: Path) -> None:
        pieces = ["<s>", "<pad>", "</s>", "<unk>", "a", "b", "Ġ", "Ġa", "<mask>"]
        made = write_encoder(tmp_path / "source", pieces=pieces, **ROBERTA)
        (made.folder / "merges.txt").write_text("#version: 0.2\nĠ a\n", encoding="utf-8")
        assert main(["convert", str(made.folder), f"--output={tmp_path}/out/model.pt"]) == 0
        assert self.pieces(tmp_path / "out", "ab a\n")[0] == "a b Ġa"

    def test_script_without_a_tokenizer(self, tmp_path: Path) -> None:
        script = ROOT / "scripts" / "data" / "wordpiece.py"
        command = [sys.executable, str(script), str(tmp_path)]
        done = subprocess.run(command, input="", capture_output=True, encoding="utf-8")
        assert done.returncode == 1
        assert done.stderr.endswith("tokenizer.json: no such file\n")
