"""Files that are written whole or not at all."""

import errno
import json
import math
import os
import threading

import pytest

from fairseq_sam.files.writing import may_write, replaced, write_json, write_text

needs_full = pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full")


def left(directory):
    return sorted(path.name for path in directory.iterdir())


def test_a_failure_leaves_the_old_file_alone(tmp_path):
    (tmp_path / "file").write_text("old")

    def fill():
        with replaced(tmp_path / "file") as name:
            name.write_text("half")
            raise OSError(errno.ENOSPC, "full")

    with pytest.raises(OSError, match="full") as caught:
        fill()
    assert (caught.value.filename, caught.value.strerror) == (str(tmp_path / "file"), "full")
    assert (tmp_path / "file").read_text() == "old"
    assert left(tmp_path) == ["file"]


def test_errors_of_other_files_keep_their_names(tmp_path):
    with pytest.raises(FileNotFoundError) as caught, replaced(tmp_path / "file"):
        (tmp_path / "other").read_text()
    assert str(caught.value.filename) == str(tmp_path / "other")


def test_a_link_stays_a_link(tmp_path):
    (tmp_path / "link").symlink_to("file")
    write_text(tmp_path / "link", "new")
    assert (tmp_path / "file").read_text() == "new"
    assert (tmp_path / "link").is_symlink()


def test_permissions_are_those_of_what_would_be_written_to(tmp_path, monkeypatch):
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to("folder/file")
    asked = []
    monkeypatch.setattr(os, "access", lambda path, mode: asked.append(path))
    assert not any(map(may_write, (tmp_path / "file", tmp_path / "link", os.devnull)))
    assert asked == [str(tmp_path), str(tmp_path / "folder"), os.devnull]


@needs_full
def test_a_full_device_is_named_and_stays_a_device(tmp_path):
    with pytest.raises(OSError, match="No space left") as caught:
        write_text("/dev/full", "x" * 100_000)
    assert caught.value.filename == "/dev/full"
    assert not os.path.isfile("/dev/full")
    assert [name for name in os.listdir("/dev") if "incomplete" in name] == []
    write_text(os.devnull, "x")
    assert not os.path.isfile(os.devnull)


@pytest.mark.parametrize("name", ["", ".", "directory", "directory/", "none/file"])
def test_what_cannot_be_a_file(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "directory").mkdir()
    with pytest.raises(OSError, match=r"\] (Is a directory|No such file)"):
        write_text(name, "x")
    assert left(tmp_path) == ["directory"]


def test_fifos(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(OSError, match="No such device or address"):
        write_text(tmp_path / "fifo", "x")
    found = []
    reader = threading.Thread(target=lambda: found.append((tmp_path / "fifo").read_text()))
    reader.start()
    while True:
        try:
            write_text(tmp_path / "fifo", "x")
            break
        except OSError:
            continue
    reader.join(10)
    assert left(tmp_path) == ["fifo"]


def test_json_has_no_nan(tmp_path):
    write_json({"a": [math.nan, 1.5], "b": (math.inf,)}, tmp_path / "a.json")
    assert json.loads((tmp_path / "a.json").read_text()) == {"a": [None, 1.5], "b": [None]}
