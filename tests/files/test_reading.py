"""Files that are read without waiting."""

import hashlib
import os

import pytest

from fairseq_sam.files.reading import read_json, read_lines, read_text, sha256_of


@pytest.mark.parametrize(
    "read", [read_text, lambda path: list(read_lines(path)), read_json, sha256_of]
)
def test_what_is_no_file_is_named(read, tmp_path):
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


def test_lines(tmp_path):
    (tmp_path / "log").write_bytes(b"a\nb\r\nc\xff\n\nd" + b"x" * (3 << 20))
    lines = list(read_lines(tmp_path / "log"))
    assert lines[:4] == ["a", "b", "c\ufffd", ""]
    assert "".join(lines[4:]) == "d" + "x" * (3 << 20)


@pytest.mark.parametrize("size", [0, 1, 1 << 20, (2 << 20) + 1])
def test_digest(tmp_path, size):
    content = b"x" * size
    (tmp_path / "file").write_bytes(content)
    assert sha256_of(tmp_path / "file") == hashlib.sha256(content).hexdigest()
