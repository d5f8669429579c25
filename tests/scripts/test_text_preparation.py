"""Corpora from their official layouts to what is trained on, made and real."""

import doctest
import gzip
import importlib
import sys
from pathlib import Path

import pytest

from tests.conftest import REAL_DATA
from tests.scripts.made_text import pack, sentences, write_archive, write_parallel, write_side

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "scripts" / "data"))

pytest.importorskip("sacremoses")

moses_text = importlib.import_module("moses_text")
parallel_text = importlib.import_module("parallel_text")
summary_corpus = importlib.import_module("summary_corpus")
ted_corpus = importlib.import_module("ted_corpus")

LOWER = moses_text.TextStyle()
STANFORD = moses_text.TextStyle(cased=True, keep_abbreviations=True)


def run(module, monkeypatch, *arguments):
    """Runs a program in this process; returns its exit status."""
    monkeypatch.setattr(sys, "argv", [f"{module.__name__}.py", *map(str, arguments)])
    return module.main()


def lines(path):
    return path.read_text(encoding="utf-8").split("\n")[:-1]


@pytest.mark.parametrize("module", [parallel_text, ted_corpus, summary_corpus])
def test_examples_of_the_docs(module):
    assert doctest.testmod(module).failed == 0


class TestTokenize:
    @pytest.mark.parametrize(
        ("text", "style", "expected"),
        [
            ("It's here.", LOWER, "it &apos;s here ."),
            ("In the U.S.", LOWER, "in the u.s ."),
            ("In the U.S.", STANFORD, "In the U.S."),
            ("Wait...", LOWER, "wait ..."),
            ("Dr. No", LOWER, "dr. no"),
            ("", LOWER, ""),
        ],
    )
    def test_by_moses_rules(self, text, style, expected):
        assert moses_text.tokenize(text, "en", style) == expected


class TestClean:
    @pytest.mark.parametrize(
        ("source", "target", "kept"),
        [(3, 2, True), (4, 2, False), (2, 4, False), (175, 175, True), (176, 176, False)],
    )
    def test_lengths_and_ratio(self, source, target, kept):
        pair = (" ".join(["a"] * source), " ".join(["b"] * target))
        assert list(parallel_text.clean([pair])) == ([pair] if kept else [])

    def test_empty_sides_go(self):
        assert list(parallel_text.clean([("", ""), ("a", ""), (" ", "b")])) == []


class TestTedCorpus:
    FLAGS = ("--source", "de", "--target", "en", "--workers", 1)

    def test_splits(self, tmp_path, monkeypatch):
        folder = write_archive(tmp_path, train=46, test=2)
        status = run(
            ted_corpus, monkeypatch, "--archive", folder, "--out", tmp_path / "out", *self.FLAGS
        )
        assert status == 0
        # 46 sentences and a title; every 23rd is for validation.
        made = ["A title", *(pair[1] for pair in sentences(46, 0))]
        expected = [moses_text.tokenize(line, "en", LOWER) for line in made]
        assert lines(tmp_path / "out" / "valid.en") == expected[22::23]
        assert lines(tmp_path / "out" / "train.en") == [
            line for i, line in enumerate(expected, 1) if i % 23
        ]
        raw = [pair[0] for seed in range(1, 6) for pair in sentences(2, seed)]
        assert lines(tmp_path / "out" / "test.raw.de") == raw
        assert lines(tmp_path / "out" / "test.de") == [
            moses_text.tokenize(line, "de", LOWER) for line in raw
        ]

    def test_entities_and_apostrophes(self):
        assert ted_corpus.read_segments(['<seg id="1"> R&amp;D </seg>']) == ["R&amp;D"]
        assert ted_corpus.straight_apostrophes([("it’s", "l’eau")]) == [("it's", "l'eau")]

    def test_a_missing_file_is_named(self, tmp_path, monkeypatch, capsys):
        folder = write_archive(tmp_path)
        (folder / "IWSLT14.TED.tst2011.de-en.en.xml").unlink()
        arguments = ("--archive", folder, "--out", tmp_path / "out", *self.FLAGS)
        assert run(ted_corpus, monkeypatch, *arguments) == 1
        assert "tst2011.de-en.en.xml" in capsys.readouterr().err

    def test_sides_of_different_length_are_refused(self, tmp_path, monkeypatch, capsys):
        folder = write_archive(tmp_path)
        with open(folder / "train.tags.de-en.en", "a", encoding="utf-8") as file:
            file.write("One more.\n")
        arguments = ("--archive", folder, "--out", tmp_path / "out", *self.FLAGS)
        assert run(ted_corpus, monkeypatch, *arguments) == 1
        assert "train.tags.de-en.de has 121 lines" in capsys.readouterr().err

    @pytest.mark.skipif(
        not (REAL_DATA / "iwslt-ted-xml").is_dir(), reason="the TED talks are not there"
    )
    @pytest.mark.parametrize(
        ("pair", "style", "sets", "official", "different"),
        [
            ("de-en", LOWER, ted_corpus.TEST_SETS, "iwslt14-de-en/test", (0, 0)),
            ("en-vi", STANFORD, ("tst2012",), "iwslt15-en-vi/valid", (0, 1)),
            ("en-vi", STANFORD, ("tst2013",), "iwslt15-en-vi/test", (0, 0)),
        ],
    )
    def test_official_files_come_out_of_their_xml(self, pair, style, sets, official, different):
        languages = tuple(pair.split("-"))
        archive = ted_corpus.Archive(REAL_DATA / "iwslt-ted-xml" / pair, languages)
        raw = ted_corpus.straight_apostrophes(archive.segments(*sets))
        ours = parallel_text.tokenize_pairs(raw, languages, style, 2)
        for side, language in enumerate(languages):
            with gzip.open(f"{REAL_DATA / official}.{language}.gz", "rt", encoding="utf-8") as file:
                expected = file.read().split("\n")[:-1]
            assert len(ours) == len(expected)
            found = sum(pair[side] != line for pair, line in zip(ours, expected))
            assert found == different[side], language


class TestParallelText:
    FLAGS = ("--source", "en", "--target", "vi", "--workers", 1)

    @pytest.mark.parametrize("suffix", ["", ".gz"])
    @pytest.mark.parametrize("names", [("train", "valid", "test"), ("train", "tst2012", "tst2013")])
    def test_names_and_compression(self, tmp_path, monkeypatch, names, suffix):
        data = write_parallel(tmp_path / "in", names, ("en", "vi"), (9, 3, 2), suffix)
        arguments = ("--data", data, "--out", tmp_path / "out", *self.FLAGS)
        assert run(parallel_text, monkeypatch, *arguments) == 0
        counts = {
            name: len(lines(tmp_path / "out" / f"{name}.vi")) for name in ("train", "valid", "test")
        }
        assert counts == {"train": 9, "valid": 3, "test": 2}
        assert lines(tmp_path / "out" / "test.raw.vi") == [p[1] for p in sentences(2, 2)]

    def test_tokenised_text_stays_and_is_detokenised_for_scoring(self, tmp_path, monkeypatch):
        for name in ("train", "valid", "test"):
            for language in ("en", "vi"):
                write_side(tmp_path / f"{name}.{language}", ["it &apos;s here .", "go on !"])
        arguments = ("--data", tmp_path, "--out", tmp_path / "out", *self.FLAGS)
        assert run(parallel_text, monkeypatch, *arguments) == 0
        assert lines(tmp_path / "out" / "test.en") == ["it &apos;s here .", "go on !"]
        assert lines(tmp_path / "out" / "test.raw.en") == ["it's here.", "go on!"]

    def test_limit(self, tmp_path, monkeypatch):
        data = write_parallel(tmp_path, ("train", "valid", "test"), ("en", "vi"), (9, 3, 2))
        arguments = ("--data", data, "--out", tmp_path / "out", *self.FLAGS, "--limit", 5, 1)
        assert run(parallel_text, monkeypatch, *arguments) == 0
        assert len(lines(tmp_path / "out" / "train.en")) == 5
        assert len(lines(tmp_path / "out" / "valid.en")) == 1

    def test_a_damaged_file_is_named(self, tmp_path, monkeypatch, capsys):
        data = write_parallel(
            tmp_path, ("train", "valid", "test"), ("en", "vi"), (9, 3, 2), suffix=".gz"
        )
        whole = (data / "valid.vi.gz").read_bytes()
        (data / "valid.vi.gz").write_bytes(whole[: len(whole) // 2])
        arguments = ("--data", data, "--out", tmp_path / "out", *self.FLAGS)
        assert run(parallel_text, monkeypatch, *arguments) == 1
        assert "valid.vi.gz" in capsys.readouterr().err


class TestSummaryCorpus:
    STORY = "A man ran.\n\nHe won\n\n@highlight\n\nMan wins\n\n@highlight\n\nHe ran"

    def write_stories(self, root):
        (root / "url_lists").mkdir(parents=True)
        for source in ("cnn", "dailymail"):
            (root / source / "stories").mkdir(parents=True)
        for i, split in enumerate(("train", "val", "test")):
            url = f"http://x/{split}"
            source = ("cnn", "dailymail")[i % 2]
            name = summary_corpus.story_name(url)
            (root / source / "stories" / name).write_text(f"{split}: {self.STORY}")
            (root / "url_lists" / f"all_{split}.txt").write_text(f"{url}\n")

    def test_stories(self, tmp_path, monkeypatch):
        self.write_stories(tmp_path)
        assert run(summary_corpus, monkeypatch, "--data", tmp_path, "--out", tmp_path / "o") == 0
        assert lines(tmp_path / "o" / "val.source") == ["val: A man ran. He won."]
        assert lines(tmp_path / "o" / "val.target") == ["Man wins. He ran."]

    def test_a_missing_story_is_named(self, tmp_path, monkeypatch, capsys):
        self.write_stories(tmp_path)
        next((tmp_path / "dailymail" / "stories").iterdir()).unlink()
        assert run(summary_corpus, monkeypatch, "--data", tmp_path, "--out", tmp_path / "o") == 1
        assert "http://x/val" in capsys.readouterr().err

    def test_name_of_a_story(self):
        # SHA-1 of "abc", FIPS 180-2, appendix A.
        assert summary_corpus.story_name("abc\n") == (
            "a9993e364706816aba3e25717850c26c9cd0d89d.story"
        )

    def test_ready_text(self, tmp_path, monkeypatch):
        for name in ("train", "valid", "test"):
            for side in ("source", "target"):
                write_side(tmp_path / f"{name}.{side}.gz", [f"{name} {side} {i}" for i in range(4)])
        arguments = ("--data", tmp_path, "--out", tmp_path / "o", "--limit", 3, 2)
        assert run(summary_corpus, monkeypatch, *arguments) == 0
        assert lines(tmp_path / "o" / "train.source") == [f"train source {i}" for i in range(3)]
        assert lines(tmp_path / "o" / "val.target") == ["valid target 0", "valid target 1"]

    def test_sides_of_different_length_are_refused(self, tmp_path, monkeypatch, capsys):
        for name in ("train", "val", "test"):
            write_side(tmp_path / f"{name}.source", ["a", "b"])
            write_side(tmp_path / f"{name}.target", ["a"])
        assert run(summary_corpus, monkeypatch, "--data", tmp_path, "--out", tmp_path / "o") == 1
        assert "train.source has 2 lines" in capsys.readouterr().err


class TestSentencePiece:
    def test_round_trip(self, tmp_path):
        pytest.importorskip("sentencepiece")
        import subprocess

        text = tmp_path / "text"
        write_side(text, [pair[1].lower() for pair in sentences(80, 1)])
        program = [sys.executable, str(ROOT / "scripts" / "data" / "sentencepiece_text.py")]
        model = ["--model", str(tmp_path / "model")]
        subprocess.run([*program, "learn", *model, "--size", "30", str(text)], check=True)
        with open(text, encoding="utf-8") as file:
            pieces = subprocess.run(
                [*program, "encode", *model], stdin=file, capture_output=True, text=True, check=True
            ).stdout
        assert len(pieces.split()) > len(text.read_text(encoding="utf-8").split())
        joined = [line.replace(" ", "").replace("▁", " ").strip() for line in pieces.split("\n")]
        assert joined[:-1] == lines(text)


def test_pack_keeps_the_layout(tmp_path):
    import tarfile

    archive = pack(write_archive(tmp_path), tmp_path / "x.tgz")
    with tarfile.open(archive) as tar:
        assert "de-en/train.tags.de-en.de" in tar.getnames()
