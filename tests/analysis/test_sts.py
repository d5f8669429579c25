"""SentEval's data sets and rank correlations, on made-up folders."""

import gzip
import math
from pathlib import Path
from typing import Any, List, Sequence

import pytest
import torch
from torch import Tensor

from fairseq_sam.analysis.sts import (
    SUBSETS,
    Subset,
    average,
    evaluate,
    read_sets,
)
from fairseq_sam.files.reading import DataError
from tests.conftest import REAL_DATA

pytest.importorskip("scipy")


def write_sts(folder: Path, name: str, part: str, rows: Sequence[Sequence[str]]) -> None:
    """Rows of score and two sentences; no score where it is empty."""
    where = folder / "STS" / f"{name}-en-test"
    where.mkdir(parents=True, exist_ok=True)
    texts = "".join("\t".join(row[1:]) + "\n" for row in rows)
    (where / f"STS.input.{part}.txt").write_text(texts, encoding="utf-8")
    scores = "".join(f"{row[0]}\n" for row in rows)
    (where / f"STS.gs.{part}.txt").write_text(scores, encoding="utf-8")


def write_all(folder: Path) -> None:
    """Every set, with two or three pairs in each subset."""
    for number, (name, parts) in enumerate(SUBSETS.items()):
        for part in parts:
            rows = [[str(i), f"{name} a{i}", f"{part} b{i}"] for i in range(2 + number % 2)]
            write_sts(folder, name, part, rows)
    benchmark = folder / "STS" / "STSBenchmark"
    benchmark.mkdir(parents=True)
    line = 'main\tMSRvid\t2012test\t{0}\t{1:.3f}\tan "odd sentence\tanother {0}\n'
    for split, count in (("dev", 4), ("test", 3)):
        lines = "".join(line.format(i, i / 2) for i in range(count))
        (benchmark / f"sts-{split}.csv").write_text(lines, encoding="utf-8")
    (folder / "SICK").mkdir()
    header = "pair_ID\tsentence_A\tsentence_B\trelatedness_score\tentailment_judgment"
    rows = [header, "6\tone\tother\t3.3\tNEUTRAL", "7\ttwo\tthird\t4.5\tNEUTRAL"]
    content = "".join(f"{row}\r\n" for row in rows).encode()
    (folder / "SICK" / "SICK_test_annotated.txt.gz").write_bytes(gzip.compress(content))


class TestReading:
    def test_all_sets(self, tmp_path: Path) -> None:
        write_all(tmp_path)
        sets, missing = read_sets(tmp_path)
        assert missing == []
        assert list(sets) == [*SUBSETS, "STS-B", "SICK-R"]
        assert [subset.name for subset in sets["STS12"]] == list(SUBSETS["STS12"])
        assert sets["STS13"][0] == Subset(
            "FNWN",
            [(f"STS13 a{i}", f"FNWN b{i}") for i in range(3)],
            [0.0, 1.0, 2.0],
        )
        assert sets["STS-B"][0].pairs[1] == ('an "odd sentence', "another 1")
        assert sets["STS-B"][0].scores == [0.0, 0.5, 1.0]
        assert sets["SICK-R"] == [
            Subset("SICK-R", [("one", "other"), ("two", "third")], [3.3, 4.5])
        ]

    def test_development_set(self, tmp_path: Path) -> None:
        write_all(tmp_path)
        sets, missing = read_sets(tmp_path, dev=True)
        assert missing == []
        assert list(sets) == ["STS-B dev"]
        assert len(sets["STS-B dev"][0].pairs) == 4

    def test_pairs_without_a_score_and_odd_lines(self, tmp_path: Path) -> None:
        rows = [["", "a", "b"], ["1", "c\u2028c", "d\x85", "more"], ["", "e", "f"]]
        write_sts(tmp_path, "STS16", "headlines", rows)
        sets, missing = read_sets(tmp_path)
        assert sets == {"STS16": [Subset("headlines", [("c\u2028c", "d\x85")], [1.0])]}
        assert "STS16 plagiarism: skipped, there is no" in "\n".join(missing)
        assert any(line.startswith("STS-B: skipped") for line in missing)
        assert len(missing) == sum(map(len, SUBSETS.values())) - 1 + 2

    def test_damaged_files(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match="has none of the sets"):
            read_sets(tmp_path)
        write_sts(tmp_path, "STS12", "MSRpar", [["1", "only one sentence"]])
        with pytest.raises(DataError, match=r"MSRpar\.txt: is not in SentEval's layout"):
            read_sets(tmp_path)
        write_sts(tmp_path, "STS12", "MSRpar", [["much", "a", "b"]])
        with pytest.raises(DataError, match=r"MSRpar\.txt: is not in SentEval's layout"):
            read_sets(tmp_path)
        write_sts(tmp_path, "STS12", "MSRpar", [["1", "a", "b"], ["2", "a", "b"]])
        where = tmp_path / "STS" / "STS12-en-test"
        (where / "STS.gs.MSRpar.txt").write_text("1\n")
        with pytest.raises(DataError, match=r"has 2 lines, STS.gs.MSRpar.txt 1"):
            read_sets(tmp_path)
        (where / "STS.input.MSRpar.txt.gz").write_bytes(b"not gzip")
        with pytest.raises(DataError, match=r"MSRpar\.txt: cannot be read"):
            read_sets(tmp_path)

    def test_real_data(self) -> None:
        folder = REAL_DATA / "sts"
        if not folder.is_dir():
            pytest.skip(f"no sts in {REAL_DATA}")
        sets, missing = read_sets(folder)
        sizes = {name: sum(len(s.pairs) for s in subsets) for name, subsets in sets.items()}
        assert missing == []
        assert sizes == {
            "STS12": 3108, "STS13": 1500, "STS14": 3750, "STS15": 3000, "STS16": 1186,
            "STS-B": 1379, "SICK-R": 4927,
        }  # fmt: skip


def made_subset(name: str, angles: List[float], scores: List[float]) -> Subset:
    """Pairs whose embeddings have these angles, in degrees, between them."""
    return Subset(name, [("0", str(angle)) for angle in angles], scores)


def embed(sentences: Sequence[str]) -> Tensor:
    angles = torch.tensor([math.radians(float(text)) for text in sentences])
    return 3.0 * torch.stack([angles.cos(), angles.sin()], dim=1)


class TestCorrelation:
    def test_against_ranks_by_hand(self) -> None:
        # Ranks of the cosine 4 3 2 1; of the scores 4 1.5 1.5 3 (a tie): Pearson of the two.
        found = evaluate([made_subset("x", [10, 20, 30, 40], [5, 1, 1, 2])], embed)
        a = torch.tensor([4.0, 3, 2, 1]) - 2.5
        b = torch.tensor([4.0, 1.5, 1.5, 3]) - 2.5
        expected = 100 * float((a * b).sum() / (a.norm() * b.norm()))
        assert found.all == found.mean == pytest.approx(expected, abs=1e-4)
        assert found.num_pairs == 4

    def test_all_is_of_the_pairs_together(self) -> None:
        # Perfect in each subset, but the second is scored on another scale.
        one = made_subset("one", [10, 20], [2, 1])
        other = made_subset("other", [5, 15, 25], [0.3, 0.2, 0.1])
        found = evaluate([one, other], embed)
        assert found.subsets == pytest.approx({"one": 100.0, "other": 100.0})
        assert found.mean == found.weighted_mean == pytest.approx(100.0)
        together = made_subset("x", [10, 20, 5, 15, 25], [2, 1, 0.3, 0.2, 0.1])
        assert found.all == pytest.approx(evaluate([together], embed).all)
        assert found.all < 50

    def test_weights(self) -> None:
        one = made_subset("one", [10, 20], [1, 2])  # -100
        other = made_subset("other", [5, 15, 25], [3, 2, 1])  # +100
        found = evaluate([one, other], embed)
        assert found.mean == pytest.approx(0, abs=1e-9)
        assert found.weighted_mean == pytest.approx((-100 * 2 + 100 * 3) / 5)

    def test_embeddings_that_are_all_the_same(self) -> None:
        found = evaluate([made_subset("x", [10, 10, 10], [1, 2, 3])], embed)
        assert math.isnan(found.all)

    def test_average_is_over_sets(self) -> None:
        good = evaluate([made_subset("x", [1, 2, 3], [3, 2, 1])], embed)
        bad = evaluate([made_subset("y", [1, 2], [1, 2])], embed)
        assert average({"x": good, "y": bad}) == pytest.approx(0)

    def test_against_scipy(self) -> None:
        from scipy.stats import spearmanr

        generator = torch.Generator().manual_seed(0)
        angles = (180 * torch.rand(50, generator=generator)).tolist()
        scores: List[Any] = torch.randint(0, 6, (50,), generator=generator).tolist()
        found = evaluate([made_subset("x", angles, scores)], embed).all
        cosines = [math.cos(math.radians(angle)) for angle in angles]
        assert found == pytest.approx(100 * spearmanr(cosines, scores)[0], abs=1e-6)
