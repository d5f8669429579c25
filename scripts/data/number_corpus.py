#!/usr/bin/env python3
"""Makes a small parallel corpus of real language on the spot: numbers, dates, times and prices.

The words for the numbers come from the ``num2words`` library. German, English and Vietnamese get
whole sentences ("am dritten Mai neunzehnhundertvier kaufte Anna zwölf Bücher"); every other
language that num2words knows gets its bare numbers. Which split a value belongs to is decided by a
hash of the value, so no date, time, price, year or amount of the valid and test sets occurs in
training. The same options give the same files.
"""

from __future__ import annotations

import argparse
import hashlib
import random
import sys
from pathlib import Path
from typing import Any, Callable, Dict, List, NamedTuple, Tuple

from fairseq_sam.files.writing import write_text
from fairseq_sam.flags.number_types import count, seed

Value = Tuple[Any, ...]
SPLITS = ("train", "valid", "test")
PEOPLE = ("Anna", "Paul", "Maria", "Jonas", "Linh", "Minh", "Clara", "Peter", "Laura", "David")


def _list(text: str) -> List[str]:
    return text.split("|")


NOUNS: Dict[str, List[str]] = {
    "de": _list(
        "Bücher|Häuser|Äpfel|Briefe|Karten|Stühle|Fenster|Schiffe|Pferde|Hefte|Lampen|Taschen|"
        "Bäume|Fische|Uhren|Bilder|Steine|Flaschen|Räder|Blumen"
    ),
    "en": _list(
        "books|houses|apples|letters|cards|chairs|windows|ships|horses|notebooks|lamps|bags|"
        "trees|fish|clocks|pictures|stones|bottles|wheels|flowers"
    ),
    "vi": _list(
        "quyển sách|ngôi nhà|quả táo|lá thư|tấm thẻ|cái ghế|cửa sổ|con tàu|con ngựa|quyển vở|"
        "cái đèn|cái túi|cái cây|con cá|đồng hồ|bức tranh|hòn đá|cái chai|bánh xe|bông hoa"
    ),
}
MONTHS: Dict[str, List[str]] = {
    "de": _list(
        "Januar|Februar|März|April|Mai|Juni|Juli|August|September|Oktober|November|Dezember"
    ),
    "en": _list(
        "January|February|March|April|May|June|July|August|September|October|November|December"
    ),
}
# Slots: p person, d date, t time, a amount of things, c price, y year, r rank.
SENTENCES: Dict[str, Tuple[str, ...]] = {
    "de": (
        "{d} kaufte {p} {a} für {c}",
        "{p} kommt {t} und bringt {a}",
        "{a} kosten {c}",
        "{p} wurde im Jahr {y} geboren",
        "{p} verkaufte im Jahr {y} {a}",
        "{d} fährt der Zug {t} ab",
        "seit dem Jahr {y} hat {p} {a} gesehen",
        "{p} ist der {r} Gast und zahlt {c}",
        "{t} waren schon {a} da",
        "der {r} Brief kam {d} an",
    ),
    "en": (
        "{p} bought {a} for {c} {d}",
        "{p} comes {t} and brings {a}",
        "{a} cost {c}",
        "{p} was born in {y}",
        "{p} sold {a} in {y}",
        "the train leaves {t} {d}",
        "{p} has seen {a} since {y}",
        "{p} is the {r} guest and pays {c}",
        "there were already {a} {t}",
        "the {r} letter arrived {d}",
    ),
    "vi": (
        "{p} đã mua {a} với giá {c} vào {d}",
        "{p} đến lúc {t} và mang theo {a}",
        "{a} có giá {c}",
        "{p} sinh năm {y}",
        "{p} đã bán {a} năm {y}",
        "tàu chạy lúc {t} {d}",
        "{p} đã thấy {a} từ năm {y}",
        "{p} là khách thứ {r} và trả {c}",
        "đã có {a} lúc {t}",
        "lá thư thứ {r} đến vào {d}",
    ),
}


class Language(NamedTuple):
    """How one language says each kind of slot, and its sentences."""

    slots: Dict[str, Callable[[Value], str]]
    sentences: Tuple[str, ...]


def _words(lang: str, to: str = "cardinal", **options: Any) -> Callable[[Any], str]:
    from num2words import num2words

    return lambda number: str(num2words(number, lang=lang, to=to, **options))


def german() -> Language:
    """Returns German; ordinals after "am" and "der" take an ending."""
    cardinal, ordinal, year = _words("de"), _words("de", "ordinal"), _words("de", "year")
    euros = _words("de", "currency", currency="EUR")
    return Language(
        {
            "p": lambda v: PEOPLE[v[0]],
            "d": lambda v: f"am {ordinal(v[0])}n {MONTHS['de'][v[1]]} {year(v[2])}",
            "t": lambda v: f"um {cardinal(v[0])} Uhr {cardinal(v[1])}",
            "a": lambda v: f"{cardinal(v[0])} {NOUNS['de'][v[1]]}",
            "c": lambda v: euros(v[0] + v[1] / 100),
            "y": lambda v: year(v[0]),
            "r": lambda v: ordinal(v[0]),
        },
        SENTENCES["de"],
    )


def english() -> Language:
    """Returns English; the clock has twelve hours and a time of the day."""
    cardinal, ordinal, year = _words("en"), _words("en", "ordinal"), _words("en", "year")
    euros = _words("en", "currency", currency="EUR")

    def time(value: Value) -> str:
        part = "morning" if value[0] < 12 else "afternoon" if value[0] < 18 else "evening"
        return f"at {cardinal((value[0] - 1) % 12 + 1)} {cardinal(value[1])} in the {part}"

    return Language(
        {
            "p": lambda v: PEOPLE[v[0]],
            "d": lambda v: f"on the {ordinal(v[0])} of {MONTHS['en'][v[1]]} {year(v[2])}",
            "t": time,
            "a": lambda v: f"{cardinal(v[0])} {NOUNS['en'][v[1]]}",
            "c": lambda v: euros(v[0] + v[1] / 100),
            "y": lambda v: year(v[0]),
            "r": lambda v: ordinal(v[0]),
        },
        SENTENCES["en"],
    )


def vietnamese() -> Language:
    """Returns Vietnamese; cardinals serve for everything."""
    cardinal = _words("vi")
    return Language(
        {
            "p": lambda v: PEOPLE[v[0]],
            "d": lambda v: f"ngày {cardinal(v[0])} tháng {cardinal(v[1] + 1)} năm {cardinal(v[2])}",
            "t": lambda v: f"{cardinal(v[0])} giờ {cardinal(v[1])} phút",
            "a": lambda v: f"{cardinal(v[0])} {NOUNS['vi'][v[1]]}",
            "c": lambda v: f"{cardinal(v[0])} euro {cardinal(v[1])} xu",
            "y": lambda v: cardinal(v[0]),
            "r": lambda v: cardinal(v[0]),
        },
        SENTENCES["vi"],
    )


def numbers_only(lang: str) -> Language:
    """Returns a language of which only the cardinals are used."""
    cardinal = _words(lang)
    return Language({"n": lambda v: cardinal(v[0])}, ("{n}",))


def language_pair(source: str, target: str) -> Tuple[Language, Language]:
    """Returns both languages with the same sentences.

    Raises:
        ValueError: num2words does not know one of them.
    """
    full = {"de": german, "en": english, "vi": vietnamese}
    if source in full and target in full:
        return full[source](), full[target]()
    for lang in (source, target):
        try:
            _words(lang)(21)
        except NotImplementedError:
            raise ValueError(f"num2words does not know the language {lang!r}") from None
    return numbers_only(source), numbers_only(target)


def draw_value(slot: str, rng: random.Random) -> Value:
    """Draws one value of a slot."""
    if slot == "p":
        return (rng.randrange(len(PEOPLE)),)
    if slot == "d":
        return (rng.randint(1, 28), rng.randrange(12), rng.randint(1500, 2030))
    if slot == "t":
        return (rng.randint(1, 23), rng.randint(2, 59))
    if slot == "a":
        return (rng.randint(2, 10 ** rng.randint(1, 4)), rng.randrange(len(NOUNS["en"])))
    if slot == "c":
        return (rng.randint(2, 10 ** rng.randint(2, 4)), rng.randint(2, 99))
    if slot == "n":
        return (rng.randint(0, 10 ** rng.randint(2, 7)),)
    return (rng.randint(1100, 2030) if slot == "y" else rng.randint(2, 999),)


def split_of(slot: str, value: Value) -> str:
    """Tells which split a value belongs to: 1 in 10 is for valid, 1 in 10 for test."""
    digest = hashlib.sha256(f"{slot}{value}".encode()).digest()[0] % 10
    return "valid" if digest == 0 else "test" if digest == 1 else "train"


def make_pair(
    languages: Tuple[Language, Language], split: str, rng: random.Random
) -> Tuple[str, str]:
    """Makes one sentence pair whose values all belong to the split."""
    index = rng.randrange(len(languages[0].sentences))
    values: Dict[str, Value] = {}
    for slot in languages[0].slots:
        if f"{{{slot}}}" not in languages[0].sentences[index]:
            continue
        values[slot] = draw_value(slot, rng)
        while slot != "p" and split_of(slot, values[slot]) != split:
            values[slot] = draw_value(slot, rng)
    source, target = (
        lang.sentences[index].format(**{s: lang.slots[s](v) for s, v in values.items()})
        for lang in languages
    )
    return source, target


def make_corpus(
    pair: Tuple[str, str], sizes: Dict[str, int], seed: int
) -> Dict[str, List[Tuple[str, str]]]:
    """Makes all splits; sentence pairs are distinct."""
    languages = language_pair(*pair)
    corpus = {}
    for split, size in sizes.items():
        rng = random.Random(f"{seed}-{split}")
        pairs: Dict[Tuple[str, str], None] = {}
        for _ in range(100 * size):
            if len(pairs) < size:
                pairs.setdefault(make_pair(languages, split, rng))
        corpus[split] = list(pairs)
    return corpus


def main() -> int:
    """Writes the files ``{train,valid,test}.{source,target}``."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0],
        epilog="example: number_corpus.py --pair de-en --out data",
    )
    parser.add_argument("--out", type=Path, required=True, help="directory to write into")
    parser.add_argument("--pair", default="de-en", help="source-target (default: %(default)s)")
    parser.add_argument("--seed", type=seed, default=1, help="(default: %(default)s)")
    for split, size in zip(SPLITS, (1000, 300, 300)):
        parser.add_argument(
            f"--{split}", type=count, default=size, metavar="N", help="pairs (default: %(default)s)"
        )
    args = parser.parse_args()
    source, _, target = args.pair.partition("-")
    if not source or not target or source == target:
        parser.error(f"--pair {args.pair}: two different languages with a hyphen, such as de-en")
    try:
        corpus = make_corpus((source, target), {s: getattr(args, s) for s in SPLITS}, args.seed)
    except ValueError as error:
        parser.error(str(error))
    except ImportError:
        print("number_corpus.py: needs num2words: pip install num2words", file=sys.stderr)
        return 1
    args.out.mkdir(parents=True, exist_ok=True)
    for split, pairs in corpus.items():
        for side, lang in enumerate((source, target)):
            text = "".join(f"{pair[side]}\n" for pair in pairs)
            write_text(args.out / f"{split}.{lang}", text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
