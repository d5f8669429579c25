"""The examples that ``--help`` gives run as they stand, in a folder with what they speak of."""

import glob
import shutil
import sys
from pathlib import Path
from typing import Any, List, Optional

import pytest

from fairseq_sam.commands import main
from fairseq_sam.experiments.search import command_check, trial_jobs
from tests.analysis.test_sts import write_all
from tests.checkpoints.conversion.made_encoder import write_encoder
from tests.commands.help_examples import examples
from tests.commands.test_manners import SUBCOMMANDS
from tests.fairseq_runs import ROOT, Run
from tests.idx_files import write_mnist

pytestmark = pytest.mark.slow
LOG = (
    '| INFO | train | {"epoch": 1, "train_loss": "4", "train_gnorm": "2"}\n'
    '| INFO | valid | {"epoch": 1, "valid_loss": "3"}\n'
)


@pytest.fixture(scope="module")
def run(shared_fairseq_train: Any) -> Run:
    """A tiny run with a checkpoint of each of ten epochs, and some between."""
    criterion = "--criterion label_smoothed_cross_entropy --label-smoothing 0.1"
    ends = "--max-epoch 10 --save-interval 1 --save-interval-updates 5"
    made: Run = shared_fairseq_train("--optimizer adam", criterion, ends, validate=True)
    return made


@pytest.fixture(scope="module")
def place(run: Run, corpus: Path, preprocess: Any, tmp_path_factory: Any) -> Path:
    """The folder in which the examples run."""
    here: Path = tmp_path_factory.mktemp("examples")
    for language in ("de", "en"):
        lines = [f"w{number} w{number + 3}\n" for number in range(16)]
        (here / f"sixteen.{language}").write_text("".join(lines))
    dictionaries = f"--srcdict {corpus}/dict.de.txt --tgtdict {corpus}/dict.en.txt"
    text = here / "sixteen"
    splits = ("--validpref", text, "--testpref", text, "--destdir", here / "data-bin")
    preprocess("-s de -t en", dictionaries, *splits)
    (here / "DATA").symlink_to("data-bin")
    shutil.copytree(run.save_dir, here / "checkpoints")
    epochs = {"checkpoint1.pt": 1, "checkpoint5.pt": 5, "checkpoint20.pt": 10}
    names = ["checkpoint_best.pt", "adam.pt", "ga_sam.pt", "lm.pt", "runs/adam/checkpoint_last.pt"]
    for folder in ("adam", "ga_sam"):
        names += [f"{folder}/average.pt", f"{folder}/checkpoint_best.pt"]
        (here / "runs" / folder).mkdir(parents=True)
        (here / "runs" / folder / "train.log").write_text(LOG)
    names += [f"seed{number}/checkpoint_best.pt" for number in (1, 2)]
    for number, name in enumerate(sorted({*names, *epochs})):
        (here / name).parent.mkdir(exist_ok=True)
        epoch = epochs.get(name, 9 + number % 2)
        shutil.copy(run.save_dir / f"checkpoint{epoch}.pt", here / name)
    (here / "mnist").mkdir()
    write_mnist(here / "mnist", 200, 200)
    return here


@pytest.fixture(scope="module")
def encoders(tmp_path_factory: Any) -> Path:
    """Another one for the examples of encoders."""
    tokenizers = pytest.importorskip("tokenizers")
    here: Path = tmp_path_factory.mktemp("encoders")
    made = write_encoder(here / "all-MiniLM-L6-v2")
    tokenizer = tokenizers.BertWordPieceTokenizer(str(made.folder / "vocab.txt"))
    tokenizer.save(str(made.folder / "tokenizer.json"))
    assert main(["convert", str(made.folder), f"--output={here}/minilm/model.pt"]) == 0
    (here / "checkpoints").mkdir()
    (here / "data-bin").mkdir()
    for name in ("dict.txt", "tokenizer.json"):
        shutil.copy(here / "minilm" / name, here / "data-bin")
    for name in ("checkpoints/checkpoint_last.pt", "adam.pt", "ga_sam.pt"):
        shutil.copy(here / "minilm" / "model.pt", here / name)
    (here / "SentEval" / "data" / "downstream").mkdir(parents=True)
    write_all(here / "SentEval" / "data" / "downstream")
    return here


def expanded(words: List[str]) -> List[str]:
    """Returns the words as a shell gives them."""
    return [path for word in words for path in (sorted(glob.glob(word)) or [word])]


@pytest.mark.parametrize("command", [None, *SUBCOMMANDS])
def test_every_example_runs(
    command: Optional[str], request: Any, capsys: Any, monkeypatch: Any
) -> None:
    kind = "encoders" if command in ("convert", "sts") else "place"
    monkeypatch.chdir(request.getfixturevalue(kind))
    made = ROOT / "tests" / "experiments" / "search" / "made_trainer.py"
    monkeypatch.setattr(trial_jobs, "TRAINER", (sys.executable, "-S", str(made)))
    monkeypatch.setattr(command_check, "CHECKER", (sys.executable, "-S", "-c", ""))
    monkeypatch.setattr(trial_jobs, "POLL_SECONDS", 0.02)
    found = examples(command, capsys)
    assert found
    for words in found:
        out = Path("runs/search")
        if out.exists():  # another example's
            shutil.rmtree(out)
        if command == "convert" and "--force" not in words:
            shutil.rmtree("minilm")
        for name in ("average.pt", "checkpoints/average.pt"):
            if command == "average" and Path(name).exists():
                Path(name).unlink()
        assert main(expanded(words)) == 0, words
        printed = capsys.readouterr()
        assert printed.out, words
        assert "Traceback" not in printed.err
        for flag in ("--json", "--plot", "--output"):
            if flag in words:
                assert Path(words[words.index(flag) + 1]).stat().st_size > 0
