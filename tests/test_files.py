"""Files that are read without waiting, and written whole or not at all."""

import errno
import json
import math
import os
import threading

import pytest

from fairseq_sam.files import read_json, read_lines, read_text, replaced, write_json, write_text

needs_full = pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full")


def left(directory):
    return sorted(path.name for path in directory.iterdir())


class TestReading:
    @pytest.mark.parametrize("read", [read_text, lambda path: list(read_lines(path)), read_json])
    def test_what_is_no_file_is_named(self, read, tmp_path):
        os.mkfifo(tmp_path / "fifo")
        (tmp_path / "link").symlink_to("nowhere")
        for name, reason in (
            ("fifo", "is a FIFO"),
            ("", "is a directory"),
            ("link", "is a link to nothing"),
            ("none", "No such file"),
        ):
            with pytest.raises(OSError, match=reason) as caught:
                read(tmp_path / name)
            assert caught.value.filename == str(tmp_path / name)
        with pytest.raises(OSError, match="is a device"):
            read("/dev/zero")

    def test_lines(self, tmp_path):
        (tmp_path / "log").write_bytes(b"a\nb\r\nc\xff\n\nd" + b"x" * (3 << 20))
        lines = list(read_lines(tmp_path / "log"))
        assert lines[:4] == ["a", "b", "c\ufffd", ""]
        assert "".join(lines[4:]) == "d" + "x" * (3 << 20)


class TestWriting:
    def test_a_failure_leaves_the_old_file_alone(self, tmp_path):
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

    def test_errors_of_other_files_keep_their_names(self, tmp_path):
        with pytest.raises(FileNotFoundError) as caught, replaced(tmp_path / "file"):
            (tmp_path / "other").read_text()
        assert str(caught.value.filename) == str(tmp_path / "other")

    def test_a_link_stays_a_link(self, tmp_path):
        (tmp_path / "link").symlink_to("file")
        write_text(tmp_path / "link", "new")
        assert (tmp_path / "file").read_text() == "new"
        assert (tmp_path / "link").is_symlink()

    @needs_full
    def test_a_full_device_is_named_and_stays_a_device(self, tmp_path):
        with pytest.raises(OSError, match="No space left") as caught:
            write_text("/dev/full", "x" * 100_000)
        assert caught.value.filename == "/dev/full"
        assert not os.path.isfile("/dev/full")
        assert [name for name in os.listdir("/dev") if "incomplete" in name] == []
        write_text(os.devnull, "x")
        assert not os.path.isfile(os.devnull)

    @pytest.mark.parametrize("name", ["", ".", "directory", "directory/", "none/file"])
    def test_what_cannot_be_a_file(self, name, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        (tmp_path / "directory").mkdir()
        with pytest.raises(OSError, match=r"\] (Is a directory|No such file)"):
            write_text(name, "x")
        assert left(tmp_path) == ["directory"]

    def test_fifos(self, tmp_path):
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

    def test_json_has_no_nan(self, tmp_path):
        write_json({"a": [math.nan, 1.5], "b": (math.inf,)}, tmp_path / "a.json")
        assert json.loads((tmp_path / "a.json").read_text()) == {"a": [None, 1.5], "b": [None]}
