#!/usr/bin/env python3
"""Brings a GLUE task's tsv files into {train,valid,test}.{input0,input1,label or number}.

The validation set is GLUE's dev set (MNLI's matched one). A test set (--test) is there for MRPC,
as Microsoft's msr_paraphrase_test.txt, and for STS-B, as sts-test.csv of the benchmark that GLUE
has it from: GLUE's own have no labels. STS-B's scores become numbers between 0 and 1, as fairseq's
recipe has them. Files are read with quoting off, plain or .gz; MRPC also as Microsoft's
msr_paraphrase_train.txt.

Example:
    glue_task.py --data GLUE --task RTE --out text
"""

from __future__ import annotations

import argparse
import math
import random
import sys
from pathlib import Path
from typing import Dict, Iterator, List, NamedTuple, Optional, Sequence, Tuple

from corpus import (
    CorpusError,
    add_limit_argument,
    find,
    limited,
    parser_of,
    read_lines,
    run,
    write_lines,
)


class Task(NamedTuple):
    """Where a task has what, by the names in its header (by number where it has none).

    Attributes:
        first: the sentence, or the first of two.
        second: the other.
        label: the label.
        number: whether the label is a number to predict.
        dev: the validation set's file.
        test: the test set's file, where there is one with labels; a .csv has no header.
    """

    first: str
    second: Optional[str]
    label: str
    number: bool = False
    dev: str = "dev"
    test: str = ""


TASKS = {
    "CoLA": Task("3", None, "1"),
    "MNLI": Task("sentence1", "sentence2", "gold_label", dev="dev_matched"),
    "MRPC": Task("#1 String", "#2 String", "Quality", test="msr_paraphrase_test.txt"),
    "QNLI": Task("question", "sentence", "label"),
    "QQP": Task("question1", "question2", "is_duplicate"),
    "RTE": Task("sentence1", "sentence2", "label"),
    "SST-2": Task("sentence", None, "label"),
    "STS-B": Task("sentence1", "sentence2", "score", number=True, test="sts-test.csv"),
}
IN_CSV = {"first": "5", "second": "6", "label": "4"}

Row = Tuple[str, Optional[str], str]


def file_of(root: Path, name: str) -> Path:
    """Returns the file of a split, whichever of its names it has."""
    if name.endswith((".txt", ".csv")):
        return find(root, name)
    other = ["msr_paraphrase_train.txt"] if name == "train" else []
    return find(root, f"{name}.tsv", *other)


def read(path: Path, task: Task) -> Iterator[Row]:
    """Yields sentence, second sentence and label; rows that lack one of them are passed over."""
    lines = [line for line in read_lines(path) if line.strip()]
    if not lines:
        raise CorpusError(f"{path}: no examples in it")
    if task.label.isdigit():
        columns = {str(i): i for i in range(9)}
    else:
        columns = {name: i for i, name in enumerate(lines.pop(0).split("\t"))}
    wanted = [name for name in (task.first, task.second, task.label) if name is not None]
    missing = [name for name in wanted if name not in columns]
    if missing:
        raise CorpusError(f"{path}: its first line names no column {missing[0]}")
    for line in lines:
        fields = line.split("\t")
        if len(fields) <= max(columns[name] for name in wanted):
            continue
        first, *second, label = (fields[columns[name]].strip() for name in wanted)
        if first and label not in ("", "-") and all(second):
            if task.number and not _is_number(label):
                raise CorpusError(f"{path}: {label!r} in column {task.label} is not a number")
            yield first, (second[0] if second else None), label


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def write(rows: Sequence[Row], prefix: Path, task: Task) -> None:
    """Writes a split's files."""
    parts: Dict[str, List[str]] = {"input0": [row[0] for row in rows]}
    if task.second is not None:
        parts["input1"] = [str(row[1]) for row in rows]
    if task.number:
        parts["number"] = [f"{float(row[2]) / 5:g}" for row in rows]
    else:
        parts["label"] = [row[2] for row in rows]
    for suffix, lines in parts.items():
        write_lines(lines, prefix.with_name(f"{prefix.name}.{suffix}"))


def prepare(args: argparse.Namespace) -> None:
    """Reads and writes."""
    task = TASKS[args.task]
    root = args.data / args.task if (args.data / args.task).is_dir() else args.data
    if args.test and not task.test:
        raise CorpusError(
            f"--test: GLUE's test set of {args.task} has no labels; MRPC and STS-B can be tested"
        )
    test = {"test": task.test} if args.test else {}
    for split, name in {"train": "train", "valid": task.dev, **test}.items():
        columns = IN_CSV if name.endswith(".csv") else {}
        rows = list(read(file_of(root, name), task._replace(**columns)))
        if not rows:
            raise CorpusError(f"{file_of(root, name)}: no examples in it")
        if args.limit:
            rows = limited({split: random.Random(1).sample(rows, len(rows))}, args.limit)[split]
        write(rows, args.out / split, task)
        print(f"{split} {len(rows)}")


def main() -> int:
    """Runs the command line."""
    parser = parser_of(__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder with a folder a task")
    parser.add_argument("--task", choices=sorted(TASKS), required=True)
    parser.add_argument("--out", type=Path, required=True, help="folder to write into")
    parser.add_argument("--test", action="store_true", help="the test set, too; of MRPC and STS-B")
    add_limit_argument(parser)
    return run(parser, prepare)


if __name__ == "__main__":
    sys.exit(main())
