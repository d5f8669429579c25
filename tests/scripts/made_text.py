"""Small made-up corpora in the layouts of the real ones."""

import gzip
import random
import tarfile
from pathlib import Path

SOURCE_WORDS = ["haus", "hund", "katze", "baum", "auto", "kind", "frau", "mann", "brot", "wasser"]
TARGET_WORDS = ["house", "dog", "cat", "tree", "car", "child", "woman", "man", "bread", "water"]


def sentences(count, seed):
    """Pairs that can be learnt: a word-by-word translation, with capitals and full stops."""
    rng = random.Random(seed)
    pairs = []
    for _ in range(count):
        chosen = [rng.randrange(len(SOURCE_WORDS)) for _ in range(rng.randint(2, 6))]
        pairs.append(
            tuple(
                " ".join(words[i] for i in chosen).capitalize() + "."
                for words in (SOURCE_WORDS, TARGET_WORDS)
            )
        )
    return pairs


def write_side(path, lines):
    text = "".join(f"{line}\n" for line in lines)
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(text.encode("utf-8")))
    else:
        path.write_text(text, encoding="utf-8")


def write_parallel(root, names, languages, sizes, suffix=""):
    """Writes NAME.LANG for each name."""
    root.mkdir(parents=True, exist_ok=True)
    for seed, (name, size) in enumerate(zip(names, sizes)):
        pairs = sentences(size, seed)
        for side, language in enumerate(languages):
            write_side(root / f"{name}.{language}{suffix}", [pair[side] for pair in pairs])
    return root


def xml(pairs, side):
    segments = [f'<seg id="{i}"> {pair[side]} </seg>' for i, pair in enumerate(pairs, 1)]
    return ["<mteval>", "<doc>", "<title>Not a sentence</title>", *segments, "</doc>", "</mteval>"]


def write_archive(root, train=120, test=4):
    """Writes an IWSLT'14 archive, unpacked, and returns its folder."""
    folder = root / "de-en"
    folder.mkdir(parents=True)
    pairs = sentences(train, 0)
    for side, language in enumerate(("de", "en")):
        lines = [f"<url>http://x/{language}</url>", "<keywords>a, b</keywords>"]
        lines += ["<title>Ein Titel</title>" if language == "de" else "<title>A title</title>"]
        write_side(folder / f"train.tags.de-en.{language}", lines + [p[side] for p in pairs])
        for seed, name in enumerate(
            ["TED.dev2010", "TEDX.dev2012", "TED.tst2010", "TED.tst2011", "TED.tst2012"], 1
        ):
            path = folder / f"IWSLT14.{name}.de-en.{language}.xml"
            write_side(path, xml(sentences(test, seed), side))
    return folder


def pack(folder: Path, archive: Path) -> Path:
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(folder, folder.name)
    return archive
