"""What every command that takes checkpoints and data says of those that it cannot use."""

import os
import shutil
from pathlib import Path
from typing import Any, Callable, List

import pytest
import torch

USES = {
    "gradients": "gradients {data} {checkpoint}",
    "landscape": "landscape {data} {checkpoint}",
    "risk": "risk {data} {checkpoint}",
    "robustness": "robustness {data} {checkpoint} --radii 0.1",
    "spectrum": "spectrum {data} {checkpoint}",
    "spectrum of the Fisher": "spectrum {data} {checkpoint} --matrix fisher",
}


class Program:
    """Runs when it is unpickled."""

    def __init__(self, ran: Path) -> None:
        self.ran = ran

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.ran),)


@pytest.fixture(params=list(USES))
def error_of(request: pytest.FixtureRequest, failing: Any) -> Callable[..., str]:
    """``error_of(data, checkpoint, flags…)``: the one line that the command prints."""

    def run(data: Path, checkpoint: "str | Path", *flags: Any) -> str:
        arguments: List[str] = USES[request.param].format(data=data, checkpoint=checkpoint).split()
        error: str = failing(*arguments, *flags, "--cpu")
        return error

    return run


def test_no_checkpoint(error_of: Any, corpus: Path, tmp_path: Path) -> None:
    assert "absent.pt: no such file" in error_of(corpus, tmp_path / "absent.pt")


def test_truncated_checkpoint(error_of: Any, checkpoint: str, corpus: Path, tmp_path: Path) -> None:
    content = Path(checkpoint).read_bytes()
    (tmp_path / "half.pt").write_bytes(content[: len(content) // 2])
    assert "half.pt: damaged" in error_of(corpus, tmp_path / "half.pt")


def test_something_else(error_of: Any, corpus: Path, tmp_path: Path) -> None:
    (tmp_path / "other.pt").write_text("not a checkpoint\n")
    error = error_of(corpus, tmp_path / "other.pt")
    assert "other.pt: damaged, or not a" in error
    assert "weights_only" not in error
    torch.save({"weights": torch.ones(1)}, tmp_path / "other.pt")
    assert "other.pt: damaged, or not a fairseq" in error_of(corpus, tmp_path / "other.pt")


def test_code(error_of: Any, checkpoint: str, corpus: Path, tmp_path: Path) -> None:
    state = torch.load(checkpoint, weights_only=False)
    state["task_state"] = Program(tmp_path / "ran")
    torch.save(state, tmp_path / "program.pt")
    error = error_of(corpus, tmp_path / "program.pt")
    assert f"program.pt: holds {os.mkdir.__module__}.mkdir, which is code, not data" in error
    assert "damaged" not in error
    assert "weights_only" not in error
    assert not (tmp_path / "ran").exists()


def test_no_data(error_of: Any, checkpoint: str, tmp_path: Path) -> None:
    assert "absent: no such" in error_of(tmp_path / "absent", checkpoint)
    assert "there is no dict.de.txt but no dictionary at all" in error_of(tmp_path, checkpoint)


def test_data_of_another_dictionary(error_of: Any, checkpoint: str, other_data: Path) -> None:
    error = error_of(other_data, checkpoint)
    assert "does not fit" in error
    assert "its dictionary makes 8 embeddings, the model has 24 in encoder.embed_tokens" in error


def test_data_of_another_language_pair(
    error_of: Any, checkpoint: str, corpus: Path, tmp_path: Path
) -> None:
    for path in corpus.iterdir():
        shutil.copy(path, tmp_path / path.name.replace("de", "fr"))
    error = error_of(tmp_path, checkpoint)
    assert f"{tmp_path}: does not fit {checkpoint} (the model was trained from de to en, " in error
    assert "there is no dict.de.txt but dict.en.txt, dict.fr.txt)" in error


def test_a_dictionary_is_missing(
    error_of: Any, checkpoint: str, corpus: Path, tmp_path: Path
) -> None:
    shutil.copytree(corpus, tmp_path / "data")
    (tmp_path / "data" / "dict.en.txt").unlink()
    error = error_of(tmp_path / "data", checkpoint)
    assert "there is no dict.en.txt but dict.de.txt)" in error


def test_no_such_subset(error_of: Any, checkpoint: str, corpus: Path) -> None:
    assert "subset test cannot be used" in error_of(corpus, checkpoint, "--subset", "test")


@pytest.mark.parametrize("flag", ["--json", "--plot"])
def test_nowhere_to_write(error_of: Any, checkpoint: str, corpus: Path, flag: str) -> None:
    path = "/absent/figures.json" if flag == "--json" else "/absent/plot.png"
    assert "its directory does not exist" in error_of(corpus, checkpoint, flag, path)


def test_no_user_dir(error_of: Any, checkpoint: str, corpus: Path) -> None:
    assert "nowhere: no such" in error_of(corpus, checkpoint, "--user-dir", "nowhere")
