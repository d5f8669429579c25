"""Semantic textual similarity: SentEval's data sets, and rank correlation with people's scores.

The seven sets of delta-SAM §5.3 and Table 2: STS12 to STS16 (Agirre et al. 2012 to 2016), the test
sets of STS-B (Cer et al. 2017) and of SICK-R (Marelli et al. 2014), in the layout of SentEval's
``data/downstream`` (Conneau and Kiela 2018). A file may be gzipped under its name with ``.gz``.
"""

import csv
import gzip
import io
import math
from functools import partial
from pathlib import Path
from typing import Callable, Dict, Iterator, List, NamedTuple, Sequence, Tuple

import torch.nn.functional as F
from torch import Tensor

from fairseq_sam.files.reading import DataError

SUBSETS = {
    "STS12": ("MSRpar", "MSRvid", "SMTeuroparl", "surprise.OnWN", "surprise.SMTnews"),
    "STS13": (
        "FNWN",
        "headlines",
        "OnWN",
    ),  # not SMT, whose sentences are not free; nor has SentEval
    "STS14": ("deft-forum", "deft-news", "headlines", "OnWN", "images", "tweet-news"),
    "STS15": ("answers-forums", "answers-students", "belief", "headlines", "images"),
    "STS16": ("answer-answer", "headlines", "plagiarism", "postediting", "question-question"),
}

Embed = Callable[[Sequence[str]], Tensor]
"""From sentences to their embeddings [sentences, dim]."""


class Subset(NamedTuple):
    """Pairs of sentences and how similar people find them.

    Attributes:
        name: of the subset; of the set where it has none.
        pairs: the sentences.
        scores: one a pair, more is more similar.
    """

    name: str
    pairs: List[Tuple[str, str]]
    scores: List[float]


class Correlation(NamedTuple):
    """Spearman's ρ between cosine and score, in per cent.

    Attributes:
        all: of all pairs of a set together; what SentEval calls "all" and papers report.
        mean: the mean of the subsets' ρ.
        weighted_mean: the same, weighted with the number of pairs.
        subsets: by name.
        num_pairs: how many.
    """

    all: float
    mean: float
    weighted_mean: float
    subsets: Dict[str, float]
    num_pairs: int


def read_sets(folder: Path, dev: bool = False) -> Tuple[Dict[str, List[Subset]], List[str]]:
    """Reads the sets that are there.

    Pairs without a score, which STS15 and STS16 have many of, are left out, as SentEval does.

    Args:
        folder: SentEval's ``data/downstream``, with ``STS`` and ``SICK`` in it.
        dev: read STS-B's development set alone, on which settings are chosen.

    Returns:
        The sets' subsets by name, in the papers' order; and a line for each missing set or subset.

    Raises:
        DataError: a file is damaged, or there is no set at all.
    """
    sets: Dict[str, List[Subset]] = {}
    missing: List[str] = []

    for name, label, read in _readers(folder, dev):
        try:
            sets.setdefault(name, []).append(read())
        except FileNotFoundError as error:
            missing.append(f"{label}: skipped, there is no {error.filename}")
    sets = {name: subsets for name, subsets in sets.items() if subsets}
    if not sets:
        raise DataError(f"{folder}: has none of the sets in SentEval's layout ({missing[0]})")
    return sets, missing


def _readers(folder: Path, dev: bool) -> Iterator[Tuple[str, str, Callable[[], Subset]]]:
    """Yields for each subset the set's name, what to call it, and what reads it."""
    benchmark = folder / "STS" / "STSBenchmark"
    if dev:
        path = benchmark / "sts-dev.csv"
        yield "STS-B dev", "STS-B dev", partial(_read_table, path, "STS-B dev", 4, (5, 6))
        return
    for name, parts in SUBSETS.items():
        for part in parts:
            where = folder / "STS" / f"{name}-en-test"
            yield name, f"{name} {part}", partial(_read_sts, where, part)
    path = benchmark / "sts-test.csv"
    yield "STS-B", "STS-B", partial(_read_table, path, "STS-B", 4, (5, 6))
    path = folder / "SICK" / "SICK_test_annotated.txt"
    yield "SICK-R", "SICK-R", partial(_read_table, path, "SICK-R", 3, (1, 2), header=True)


def _lines(path: Path) -> List[str]:
    """Reads a file or its gzipped form; lines end as on Unix or Windows, not as in Unicode."""
    zipped = path.with_name(f"{path.name}.gz")
    try:
        content = gzip.decompress(zipped.read_bytes()) if zipped.is_file() else path.read_bytes()
        text = content.decode("utf-8")
    except FileNotFoundError:
        raise FileNotFoundError(2, "no such file", str(path)) from None
    except (OSError, EOFError, ValueError) as error:
        raise DataError(f"{path}: cannot be read ({error})") from error
    lines = text.split("\n")
    return [line.rstrip("\r") for line in (lines if lines[-1] else lines[:-1])]


def _read_sts(folder: Path, part: str) -> Subset:
    path, gold = folder / f"STS.input.{part}.txt", folder / f"STS.gs.{part}.txt"
    texts, scores = _lines(path), _lines(gold)
    if len(texts) != len(scores):
        raise DataError(f"{path}: has {len(texts)} lines, {gold.name} {len(scores)}")
    rows = [[score, *text.split("\t")] for text, score in zip(texts, scores) if score.strip()]
    return _subset(path, part, rows, 0, (1, 2))


def _read_table(
    path: Path, name: str, score: int, sentences: Tuple[int, int], header: bool = False
) -> Subset:
    table = io.StringIO("\n".join(_lines(path)[1 if header else 0 :]), newline="")
    rows = list(csv.reader(table, delimiter="\t", quoting=csv.QUOTE_NONE))
    return _subset(path, name, rows, score, sentences)


def _subset(
    path: Path, name: str, rows: List[List[str]], score: int, sentences: Tuple[int, int]
) -> Subset:
    one, other = sentences
    if not rows:
        raise DataError(f"{path}: has no scored pair")
    try:
        return Subset(
            name, [(row[one], row[other]) for row in rows], [float(row[score]) for row in rows]
        )
    except (IndexError, ValueError) as error:
        raise DataError(f"{path}: is not in SentEval's layout ({error})") from error


def evaluate(subsets: Sequence[Subset], embed: Embed) -> Correlation:
    """Correlates the cosine of embeddings with the scores; ties share their mean rank.

    Args:
        subsets: of one set.
        embed: the model.

    Returns:
        Correlations in per cent; NaN where all cosines, or all scores, are the same.
    """
    cosines = [_cosines(subset, embed) for subset in subsets]
    found = [_spearman(cosine, subset.scores) for cosine, subset in zip(cosines, subsets)]
    sizes = [len(subset.pairs) for subset in subsets]
    together = [score for subset in subsets for score in subset.scores]
    return Correlation(
        all=_spearman([cosine for part in cosines for cosine in part], together),
        mean=sum(found) / len(found),
        weighted_mean=sum(rho * size for rho, size in zip(found, sizes)) / sum(sizes),
        subsets={subset.name: rho for subset, rho in zip(subsets, found)},
        num_pairs=sum(sizes),
    )


def _cosines(subset: Subset, embed: Embed) -> List[float]:
    sentences = [sentence for pair in subset.pairs for sentence in pair]
    embeddings = embed(sentences).double()
    cosines: List[float] = F.cosine_similarity(embeddings[::2], embeddings[1::2]).tolist()
    return cosines


def _spearman(found: List[float], wanted: List[float]) -> float:
    from scipy.stats import spearmanr

    if len(set(found)) < 2 or len(set(wanted)) < 2:
        return math.nan
    return 100.0 * float(spearmanr(found, wanted)[0])


def average(correlations: Dict[str, Correlation]) -> float:
    """Returns the mean of the sets' ρ over all pairs, which papers call the average."""
    return sum(each.all for each in correlations.values()) / len(correlations)
