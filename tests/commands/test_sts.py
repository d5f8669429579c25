"""``fairseq-sam sts``: from a converted encoder to a table, and what it says when it cannot."""

import json
from pathlib import Path
from typing import Any, Callable

import pytest
import torch
import torch.nn.functional as F

from fairseq_sam.commands import main
from fairseq_sam.evaluation.sentence_embedding import SentenceEmbedder
from fairseq_sam.evaluation.trained_model import LoadError, TrainedModel, load_trained_model
from tests.analysis.test_sts import write_all, write_sts
from tests.checkpoints.conversion.made_encoder import (
    BERT_PIECES,
    MadeEncoder,
    hidden_states,
    write_encoder,
)

pytest.importorskip("scipy")

SENTENCES = ["a man play ##s the guitar .", "the guitar", "a man", "un ##known", "", "the . ."]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> MadeEncoder:
    made = write_encoder(tmp_path_factory.mktemp("made") / "source")
    (made.folder / "tokenizer.json").write_text("{}")
    assert main(["convert", str(made.folder), f"--output={made.folder.parent}/out/model.pt"]) == 0
    (made.folder.parent / "out" / "tokenizer.json").unlink()
    return made


@pytest.fixture(scope="module")
def checkpoint(made: MadeEncoder) -> Path:
    return made.folder.parent / "out" / "model.pt"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_all(tmp_path)
    pairs = [[str(i), SENTENCES[i], SENTENCES[i + 1]] for i in range(len(SENTENCES) - 1)]
    write_sts(tmp_path, "STS12", "MSRpar", pairs)
    return tmp_path


def sts(*arguments: Any) -> int:
    return main(["sts", *map(str, arguments), "--cpu"])


class TestFigures:
    @pytest.mark.parametrize("pooling", ["mean", "cls"])
    def test_embeddings_are_the_source_models(
        self, made: MadeEncoder, checkpoint: Path, pooling: str
    ) -> None:
        trained = load_trained_model(str(checkpoint), str(checkpoint.parent))
        embed = SentenceEmbedder(trained, str.split, pooling, batch_size=4)
        found = embed(SENTENCES)
        for row, sentence in zip(found, SENTENCES):
            pieces = ["[CLS]", *sentence.split(), "[SEP]"]
            indices = [made.pieces.index(piece) for piece in pieces]
            states = hidden_states(made, indices, [0] * len(indices))[-1]
            expected = states[0] if pooling == "cls" else states.mean(dim=0)
            torch.testing.assert_close(row.double(), expected, rtol=0, atol=1e-5)

    def test_long_sentences_are_cut(self, checkpoint: Path) -> None:
        trained = load_trained_model(str(checkpoint), str(checkpoint.parent))
        embed = SentenceEmbedder(trained, str.split)
        long, longer = embed([" ".join(["man"] * n) for n in (14, 40)])
        assert torch.equal(long, longer)

    def test_table_and_json(self, checkpoint: Path, folder: Path, capsys: Any) -> None:
        written = folder / "sts.json"
        assert sts(folder, checkpoint, "--tokenizer", "none", "--json", written) == 0
        captured = capsys.readouterr()
        figures = json.loads(written.read_text())
        assert figures["missing"] == []
        (figures,) = figures["checkpoints"]
        assert figures["pooling"] == "mean"
        row = next(line.split() for line in captured.out.splitlines() if "STS12" in line)
        found = figures["sets"]["STS12"]
        assert row[1] == str(found["num_pairs"]) == "13"
        values = [found[key] for key in ("all", "mean", "weighted_mean")]
        assert [None if v == "nan" else float(v) for v in row[2:]] == [
            None if v is None else pytest.approx(v, abs=0.005) for v in values
        ]
        assert "average" in captured.out
        assert captured.err.count("\n") == 1  # for most of the made sentences' words are none
        assert "of the words are not in its dictionary: the tokenizer may be" in captured.err

    def test_words_that_are_known_are_nothing_to_tell(
        self, checkpoint: Path, tmp_path: Path, capsys: Any
    ) -> None:
        write_sts(tmp_path, "STS12", "MSRpar", [["1", "a", "the"], ["2", "a", "man . ."]])
        assert sts(tmp_path, checkpoint, "--tokenizer", "none") == 0
        assert "warning" not in capsys.readouterr().err

    def test_correlation_of_a_set(self, made: MadeEncoder, checkpoint: Path, folder: Path) -> None:
        from scipy.stats import spearmanr

        written = folder / "sts.json"
        assert sts(folder, checkpoint, "--tokenizer", "none", "--json", written) == 0

        def embedding(sentence: str) -> torch.Tensor:
            indices = [made.pieces.index(p) for p in ["[CLS]", *sentence.split(), "[SEP]"]]
            return hidden_states(made, indices, [0] * len(indices))[-1].mean(dim=0)

        rows = [embedding(sentence) for sentence in SENTENCES]
        cosines = [float(F.cosine_similarity(a, b, dim=0)) for a, b in zip(rows, rows[1:])]
        expected = 100 * spearmanr(cosines, range(len(cosines)))[0]
        (figures,) = json.loads(written.read_text())["checkpoints"]
        found = figures["sets"]["STS12"]["subsets"]["MSRpar"]
        assert found == pytest.approx(expected)

    def test_several_checkpoints(self, checkpoint: Path, folder: Path, capsys: Any) -> None:
        pytest.importorskip("matplotlib")
        other = folder / "other.pt"
        state = torch.load(checkpoint, weights_only=False)
        for name, weights in state["model"].items():
            if name.endswith("fc1.weight"):
                weights.mul_(3)
        torch.save(state, other)
        flags = ["--tokenizer", "none", "--data", checkpoint.parent, "--json", folder / "all.json"]
        assert sts(folder, checkpoint, other, *flags, "--plot", folder / "sts.png") == 0
        tables = capsys.readouterr().out
        assert (folder / "sts.png").stat().st_size > 5000
        both = json.loads((folder / "all.json").read_text())["checkpoints"]
        assert both[0]["sets"] != both[1]["sets"]
        for path, found in zip((checkpoint, other), both):
            assert sts(folder, path, *flags) == 0
            (alone,) = json.loads((folder / "all.json").read_text())["checkpoints"]
            assert {**alone, "name": found["name"]} == found
            assert capsys.readouterr().out in tables

    def test_missing_sets_are_said(self, checkpoint: Path, tmp_path: Path, capsys: Any) -> None:
        pairs = [["1", "a", "the"], ["2", "a", "man"]]
        write_sts(tmp_path, "STS14", "images", pairs)
        assert sts(tmp_path, checkpoint, "--tokenizer", "none") == 0
        captured = capsys.readouterr()
        assert "SICK-R: skipped, there is no" in captured.err
        assert "STS14" in captured.out
        assert "STS12" not in captured.out

    def test_development_set(self, checkpoint: Path, folder: Path, capsys: Any) -> None:
        assert sts(folder, checkpoint, "--tokenizer", "none", "--dev", "--pooling", "cls") == 0
        out = capsys.readouterr().out
        assert "STS-B dev" in out
        assert "cls pooling" in out
        assert "STS12" not in out

    def test_tokenizer_beside_the_dictionary(
        self, checkpoint: Path, folder: Path, capsys: Any
    ) -> None:
        tokenizers = pytest.importorskip("tokenizers")
        source = checkpoint.parent.parent / "source" / "vocab.txt"
        data = folder / "data"
        data.mkdir()
        (data / "dict.txt").write_text((checkpoint.parent / "dict.txt").read_text())
        tokenizers.BertWordPieceTokenizer(str(source)).save(str(data / "tokenizer.json"))
        assert sts(folder, checkpoint, "--data", data) == 0


class TestErrors:
    @pytest.fixture
    def one_line(self, failing: Any) -> Callable[..., str]:
        return lambda *arguments: failing("sts", *arguments, "--cpu")

    def test_no_data_sets(self, one_line: Any, checkpoint: Path, tmp_path: Path) -> None:
        assert "has none of the sets" in one_line(tmp_path, checkpoint)

    def test_no_dictionary(self, one_line: Any, folder: Path) -> None:
        (folder / "model.pt").touch()
        assert "has no dict.txt: give its directory with --data" in one_line(
            folder, folder / "model.pt"
        )

    def test_no_tokenizer(self, one_line: Any, checkpoint: Path, folder: Path) -> None:
        assert "give it with --tokenizer" in one_line(folder, checkpoint)
        absent = folder / "absent.json"
        assert "absent.json: no such file" in one_line(folder, checkpoint, "--tokenizer", absent)

    def test_a_checkpoint_is_not_written_to(
        self, one_line: Any, checkpoint: Path, folder: Path
    ) -> None:
        before = checkpoint.read_bytes()
        assert "is a checkpoint to read" in one_line(folder, checkpoint, "--json", checkpoint)
        assert checkpoint.read_bytes() == before

    def test_no_checkpoint(self, one_line: Any, checkpoint: Path, folder: Path) -> None:
        absent = checkpoint.with_name("absent.pt")
        assert "absent.pt: no such file" in one_line(folder, absent, "--tokenizer", "none")

    def test_nowhere_to_write(self, one_line: Any, checkpoint: Path, folder: Path) -> None:
        path = folder / "absent" / "sts.json"
        assert "its directory does not exist" in one_line(folder, checkpoint, "--json", path)

    def test_another_model(self) -> None:
        trained = TrainedModel(torch.nn.Linear(1, 1), None, None)
        with pytest.raises(LoadError, match="Linear is not an encoder"):
            SentenceEmbedder(trained, str.split)


def test_pieces_of_the_made_encoder_are_words_of_its_dictionary(checkpoint: Path) -> None:
    words = {line.split()[0] for line in checkpoint.with_name("dict.txt").open(encoding="utf-8")}
    assert words == {piece for piece in BERT_PIECES if not piece.isupper()}
