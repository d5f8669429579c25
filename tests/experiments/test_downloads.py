"""Downloads go on from whatever part is there, and a file by its name is whole and checked."""

import gzip
import hashlib
import http.server
import os
import threading
from pathlib import Path

import pytest

from fairseq_sam.experiments.command_lines import Download
from fairseq_sam.experiments.downloads import DownloadError, download

CONTENT = gzip.compress(os.urandom(40_000), mtime=0)


class Handler(http.server.BaseHTTPRequestHandler):
    """Gives CONTENT, in ranges unless the path says otherwise."""

    def do_GET(self):
        start = 0
        asked = self.headers.get("Range", "")
        if asked and "plain" not in self.path:
            start = int(asked.partition("=")[2].rstrip("-"))
            if start >= len(CONTENT):
                self.send_error(416)
                return
        if "missing" in self.path:
            self.send_error(404)
            return
        if "garbage" in self.path:
            self.wfile.write(b"what is this\r\n\r\n")
            return
        content = CONTENT[: len(CONTENT) // 2] if "cut" in self.path else CONTENT
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(CONTENT) - 1}/{len(CONTENT)}")
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        self.wfile.write(content[start:])

    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def server():
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as made:
        threading.Thread(target=made.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{made.server_port}"
        made.shutdown()


def fetch(url, file, sha256=""):
    said = []
    download(Download(url, str(file), sha256), said.append)
    return said


PARTS = {
    "none": None,
    "empty": b"",
    "half": CONTENT[:20_000],
    "complete": CONTENT,
    "overlong": CONTENT + b"x" * 100,
    "garbage": b"x" * 20_000,
    "long garbage": b"x" * 60_000,
}


@pytest.mark.parametrize("kind", ["ranges", "plain"])
@pytest.mark.parametrize("part", PARTS)
def test_recovers_from_any_part(server, tmp_path, part, kind):
    file = tmp_path / "a.tar.gz"
    if PARTS[part] is not None:
        Path(f"{file}.part").write_bytes(PARTS[part])
    fetch(f"{server}/{kind}", file)
    assert file.read_bytes() == CONTENT
    assert os.listdir(tmp_path) == ["a.tar.gz"]


def test_a_part_is_continued_and_not_got_again(server, tmp_path):
    half = bytearray(CONTENT[:20_000])
    half[0] = 0  # the first byte was there before, and stays
    file = tmp_path / "plain text"
    Path(f"{file}.part").write_bytes(half)
    fetch(f"{server}/ranges", file)
    assert file.read_bytes() == bytes(half) + CONTENT[20_000:]


@pytest.mark.parametrize("part", [None, CONTENT[:9]])
def test_what_is_not_there_is_named(server, tmp_path, part):
    file = tmp_path / "a.gz"
    if part:
        Path(f"{file}.part").write_bytes(part)
    with pytest.raises(DownloadError, match=f"{server}/missing could not be downloaded") as caught:
        fetch(f"{server}/missing", file)
    assert f"{server}/missing -> {file}" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not file.exists()


def test_a_host_that_cannot_be_reached(tmp_path):
    with pytest.raises(DownloadError, match="could not be downloaded"):
        fetch("http://127.0.0.1:9/a.tgz", tmp_path / "a.tgz")
    assert os.listdir(tmp_path) == []


def test_a_cut_archive_is_not_taken_for_whole(server, tmp_path):
    with pytest.raises(DownloadError, match="damaged"):
        fetch(f"{server}/cut", tmp_path / "a.tgz")
    assert os.listdir(tmp_path) == []


def test_another_file_than_the_one_wanted(server, tmp_path):
    with pytest.raises(DownloadError, match="SHA-256"):
        fetch(f"{server}/ranges", tmp_path / "a.txt", "0" * 64)
    assert os.listdir(tmp_path) == ["a.txt.damaged"]


def test_a_file_put_there_by_hand_is_taken_and_checked(tmp_path):
    (tmp_path / "a.txt").write_text("text")
    sha256 = hashlib.sha256(b"text").hexdigest()
    assert fetch("http://127.0.0.1:9/a", tmp_path / "a.txt", sha256) == [
        f"{tmp_path}/a.txt is there"
    ]


def test_a_server_that_speaks_no_http_is_told(server, tmp_path):
    with pytest.raises(DownloadError, match=r"could not be downloaded \(what is this\): get it"):
        fetch(f"{server}/garbage", tmp_path / "a.gz")


def test_a_download_that_is_stopped_goes_on_another_time(server, tmp_path, monkeypatch):
    monkeypatch.setattr("fairseq_sam.experiments.downloads._PIECE", 10_000)
    file, asked = tmp_path / "a.gz", []

    def stops():
        asked.append(0)
        return len(asked) > 1

    download(Download(f"{server}/ranges", str(file)), print, stops)
    assert not file.exists()
    assert 0 < Path(f"{file}.part").stat().st_size < len(CONTENT)
    fetch(f"{server}/ranges", file)
    assert file.read_bytes() == CONTENT
