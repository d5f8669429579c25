"""Preparing labelled texts: bad corpora end in one line that names the file."""

import subprocess
import sys

import pytest

from tests.scripts.script_runs import ROOT, needs_text_packages


def prepare(script, *arguments):
    return subprocess.run(
        [sys.executable, str(ROOT / "scripts" / "data" / script), *map(str, arguments)],
        capture_output=True,
        text=True,
    )


def assert_refused(result, *parts, status=1):
    assert result.returncode == status
    line = result.stderr.strip().splitlines()[-1]
    assert "error: " in line
    for part in parts:
        assert part in line
    assert "Traceback" not in result.stderr


IMDB = {
    "no archive": ("x.tar.gz", b"no archive", "x.tar.gz: damaged"),
    "not UTF-8": ("train/pos/1_7.txt", b"\xff\xfe", "1_7.txt: not UTF-8"),
}


@needs_text_packages
@pytest.mark.parametrize("name", IMDB)
def test_imdb(tmp_path, name):
    file, content, message = IMDB[name]
    path = tmp_path / file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    data = path if path.suffix == ".gz" else tmp_path
    assert_refused(prepare("labelled_text.py", "--data", data, "--out", tmp_path / "o"), message)


@needs_text_packages
@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"neg": b"a\n", "pos.gz": b"garbage"}, "pos.gz: damaged"),
        ({"neg": b"", "pos": b""}, "0 sentences are too few for 10 folds"),
        ({"neg": b"a\n"}, "neither pos nor rt-polarity.pos is there"),
    ],
)
def test_mr(tmp_path, files, message):
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    result = prepare("labelled_text.py", "--data", tmp_path, "--fold", 1, "--out", tmp_path / "o")
    assert_refused(result, message)


@needs_text_packages
@pytest.mark.parametrize("script", ["labelled_text.py", "glue_task.py"])
def test_limits_are_above_zero(tmp_path, script):
    result = prepare(script, "--data", tmp_path, "--out", tmp_path, "--limit", -5, 3)
    assert_refused(
        result, "--limit", "-5 is not allowed: it must be a whole number, 1 or more", status=2
    )


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "train.tsv: no examples in it"),
        ("index\tsentence1\tsentence2\tscore\n", "train.tsv: no examples in it"),
        ("index\tsentence1\tscore\n", "train.tsv: its first line names no column sentence2"),
        ("index\tsentence1\tsentence2\tscore\n1\ta\tb\tgood\n", "'good' in column score is not a"),
        ("index\tsentence1\tsentence2\tscore\n1\ta\tb\tnan\n", "'nan' in column score is not a"),
    ],
)
def test_glue(tmp_path, content, message):
    (tmp_path / "train.tsv").write_text(content)
    result = prepare("glue_task.py", "--data", tmp_path, "--task", "STS-B", "--out", tmp_path / "o")
    assert_refused(result, message)


def test_test_sets_with_labels(tmp_path):
    table = "Quality\t#1 ID\t#2 ID\t#1 String\t#2 String\n1\t1\t2\tA {0} .\tThe {0} .\n"
    for name in ("train.tsv", "dev.tsv", "msr_paraphrase_test.txt"):
        (tmp_path / name).write_text(table.format(name))
    arguments = ("glue_task.py", "--data", tmp_path, "--out", tmp_path / "o", "--test")
    assert prepare(*arguments, "--task", "MRPC").returncode == 0
    assert (tmp_path / "o" / "test.input0").read_text() == "A msr_paraphrase_test.txt .\n"
    assert (tmp_path / "o" / "test.label").read_text() == "1\n"
    assert_refused(prepare(*arguments, "--task", "RTE"), "--test", "RTE has no labels")


def test_sts_b_is_tested_on_the_benchmark_that_it_comes_from(tmp_path):
    table = "index\tsentence1\tsentence2\tscore\n1\tA .\tThe .\t2.5\n"
    for name in ("train.tsv", "dev.tsv"):
        (tmp_path / name).write_text(table)
    # Without a header, and with a quotation mark that opens nothing.
    row = 'main-news\theadlines\t2016\t0001\t4.000\tOne " here .\tTwo here .\tmore\n'
    (tmp_path / "sts-test.csv").write_text(row)
    out = tmp_path / "o"
    arguments = ("glue_task.py", "--data", tmp_path, "--task", "STS-B", "--out", out)
    assert prepare(*arguments, "--test").returncode == 0
    assert (out / "train.number").read_text() == "0.5\n"
    assert (out / "test.number").read_text() == "0.8\n"
    assert (out / "test.input0").read_text() == 'One " here .\n'
    assert (out / "test.input1").read_text() == "Two here .\n"
