"""The shell library: downloads that are continued, archives, choices, and the lock."""

import functools
import gzip
import http.server
import os
import shutil
import subprocess
import sys
import tarfile
import threading
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"
CONTENT = gzip.compress(os.urandom(40_000), mtime=0)

pytestmark = pytest.mark.skipif(shutil.which("bash") is None, reason="no bash")


def library(code, *arguments, path=None):
    """Runs shell code with the libraries loaded; $1 … are the arguments."""
    files = " ".join(
        f'source "{SCRIPTS}/{name}.sh";' for name in ("lib", "lib/stages", "lib/commands")
    )
    return subprocess.run(
        ["bash", "-c", f"{files} {code}", "script", *map(str, arguments)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, **({"PATH": str(path)} if path else {})},
    )


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
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(CONTENT) - 1}/{len(CONTENT)}")
        self.send_header("Content-Length", str(len(CONTENT) - start))
        self.end_headers()
        self.wfile.write(CONTENT[start:])

    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def server():
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as made:
        threading.Thread(target=made.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{made.server_port}"
        made.shutdown()


PARTS = {
    "none": None,
    "empty": b"",
    "half": CONTENT[:20_000],
    "complete": CONTENT,
    "overlong": CONTENT + b"x" * 100,
    "garbage": b"x" * 20_000,
    "long garbage": b"x" * 60_000,
}


@pytest.mark.skipif(shutil.which("curl") is None, reason="no curl")
class TestFetch:
    @pytest.mark.parametrize("kind", ["ranges", "plain"])
    @pytest.mark.parametrize("part", PARTS)
    def test_recovers_from_any_part(self, server, tmp_path, part, kind):
        file = tmp_path / "a.tar.gz"
        if PARTS[part] is not None:
            Path(f"{file}.part").write_bytes(PARTS[part])
        result = library('fetch "$1" "$2"', f"{server}/{kind}", file)
        assert result.returncode == 0, result.stderr
        assert file.read_bytes() == CONTENT
        assert os.listdir(tmp_path) == ["a.tar.gz"]

    def test_a_part_is_continued_and_not_got_again(self, server, tmp_path):
        half = bytearray(CONTENT[:20_000])
        half[0] = 0  # the first byte was there before, and stays
        file = tmp_path / "plain text"
        Path(f"{file}.part").write_bytes(half)
        assert library('fetch "$1" "$2"', f"{server}/ranges", file).returncode == 0
        assert file.read_bytes() == bytes(half) + CONTENT[20_000:]

    def test_what_is_not_there_is_named(self, server, tmp_path):
        file = tmp_path / "a.gz"
        Path(f"{file}.part").write_bytes(CONTENT[:9])
        result = library('fetch "$1" "$2"', f"{server}/missing", file)
        assert result.returncode == 1
        assert f"{server}/missing could not be downloaded" in result.stderr


def test_a_damaged_archive_is_named(tmp_path):
    good = tmp_path / "good.tgz"
    with tarfile.open(good, "w:gz") as archive:
        archive.add(__file__, "file")
    assert library('extract "$1" "$2"', good, tmp_path).returncode == 0
    assert (tmp_path / "file").exists()
    bad = tmp_path / "bad.tgz"
    bad.write_bytes(good.read_bytes()[:200])
    result = library('extract "$1" "$2"', bad, tmp_path)
    assert result.returncode == 1
    assert f"{bad} cannot be unpacked" in result.stderr.splitlines()[-1]


@pytest.mark.parametrize(
    "value", ["tiny", "small", "tiny small", "", " ", "*", "tin", "small tiny"]
)
def test_a_choice_is_one_word(value):
    result = library('check_choice --model "$1" "tiny small"', value)
    assert result.returncode == (0 if value in ("tiny", "small") else 2)
    if result.returncode:
        assert f"--model {value}: choose from: tiny small" in result.stderr


class TestLock:
    @pytest.fixture
    def without_flock(self, tmp_path):
        """A PATH with all that the library needs but the command flock."""
        folder = tmp_path / "bin"
        folder.mkdir()
        for name in ("bash", "mkdir", "sleep", "cat", "dirname", "touch", "sed", "env"):
            (folder / name).symlink_to(shutil.which(name))
        return folder

    def test_one_at_a_time_without_flock(self, tmp_path, without_flock):
        lock = functools.partial(library, path=without_flock)
        hold = f'PYTHON="{sys.executable}"; OUT="$1"; lock_output; '
        assert lock(f"{hold} echo ok", tmp_path / "out").stdout == "ok\n"
        holder = subprocess.Popen(
            [
                "bash",
                "-c",
                f'source "{SCRIPTS}/lib.sh"; source "{SCRIPTS}/lib/stages.sh"; {hold}'
                "echo ok; read -r _",
                "script",
                str(tmp_path / "out"),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        try:
            assert holder.stdout.readline() == "ok\n"
            result = lock(f"{hold} echo ok", tmp_path / "out")
            assert result.returncode == 1
            assert "another script is at work" in result.stderr
            assert result.stdout == ""
        finally:
            holder.communicate("\n", timeout=30)
        assert lock(f"{hold} echo ok", tmp_path / "out").stdout == "ok\n"


def test_quickstart_cuts_what_is_longer_than_the_model(tmp_path):
    """One such line ended the script after all trainings."""
    for split in ("valid", "test"):
        for language in ("de", "en"):
            lines = ["a b", " ".join(map(str, range(3000))), "", "c"]
            (tmp_path / f"{split}.bpe.{language}").write_text("\n".join(lines) + "\n")
    script = SCRIPTS / "quickstart.sh"
    code = f"eval \"$(sed -n '/^shorten_sentences()/,/^}}/p' '{script}')\"; SRC=de; TGT=en; "
    result = library(f'{code} shorten_sentences "$1"', tmp_path)
    assert result.returncode == 0, result.stderr
    assert result.stderr.count("line 2 has 3000 tokens, cut to 1000") == 4
    cut = " ".join(map(str, range(1000)))
    assert (tmp_path / "test.short.en").read_text() == f"a b\n{cut}\n\nc\n"
    assert "test.short" in script.read_text()
