"""What --dry-run prints, against the commands of the shell scripts that the recipes took over."""

import shlex

import pytest

from fairseq_sam.experiments.experiment import ROOT
from fairseq_sam.experiments.recipes import NAMES
from tests.experiments import golden
from tests.experiments.runs import printed, without_condition

TWICE = ("--total-num-update", "--warmup-updates", "--max-update")
CASES = sorted(path.stem for path in golden.FOLDER.glob("*.txt"))


@pytest.fixture
def places(tmp_path, monkeypatch):
    """The folders that the cases name D, and nothing else."""
    for name in ("text", "sts", "glue", "bert", "roberta"):
        (tmp_path / name).mkdir()
    for name in ("bert", "roberta"):
        (tmp_path / name / "flags.txt").write_text(f"--arch {name} --max-positions 512\n")
    (tmp_path / "text" / "train").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def commands_of(script, folder):
    """Returns the commands of a script as lists of words, with O, D and R for its places."""
    values, commands = {}, []
    for line in script.splitlines():
        words = without_condition(shlex.split(line, comments=True))
        if len(words) == 1 and "=" in words[0]:
            name, _, values[f"${name}"] = words[0].partition("=")
        elif words and words[0] not in ("export", "set"):
            if words[-1] == "2>&1":
                words = words[:-3]
            for name, value in values.items():
                words = [word.replace(name, value) for word in words]
            for letter, place in (("O", folder / "O"), ("R", ROOT), ("D", folder)):
                words = [word.replace(str(place), letter) for word in words]
            commands.append(words)
    return commands


def without_named_differences(name, commands):
    """Takes out what is new on purpose."""
    # What a branch shares has its log with it, as when the runner copies it.
    commands = [c for c in commands if c[0] != "cp" or not c[-1].endswith("/train.log")]
    # scripts/ablation.sh drew this by itself.
    commands = [c for c in commands if not c[1].endswith("ablation_plot.py")]
    # --free-disk notes that it may delete.
    commands = [c for c in commands if c[0] != "touch" or not c[-1].endswith("/scored")]
    for words in commands:
        if name == "lstm_ptb.small" and "--lr" in words:  # suits 64 units
            assert words[words.index("--lr") + 1] == "15"
            words[words.index("--lr") + 1] = "50"
        if name == "glue.small" and "--max-update" in words:  # of 200 pairs; it had the whole set's
            for flag, whole in zip(TWICE, ("720", "43", "720")):
                words[words.index(flag) + 1] = whole
        if name == "glue.CoLA" and "--report-mcc" in words:  # chosen by the task's own metric
            words.remove("--report-mcc")
            words[words.index("mcc")] = "accuracy"
        if "per_instance_sam" in words:  # twice the epochs (δ-SAM, Appendix A)
            values = dict(zip(words, words[1:]))
            end = words.index("per_instance_sam")
            first = {flag: words[words.index(flag) + 1] for flag in TWICE}
            assert values == {**values, **{f: str(2 * int(v)) for f, v in first.items()}}
            del words[end + 1 : end + 7]
    return commands


def without_folders(commands):
    """Leaves out that folders are made: some are made a step earlier now."""
    return [command for command in commands if command[:2] != ["mkdir", "-p"]]


@pytest.mark.parametrize("name", [case for case in CASES if case.split(".")[0] in NAMES])
def test_commands_are_those_of_the_shell_scripts(places, capsys, name):
    (recipe, *arguments), expected = golden.read(name)
    arguments = [a.replace("D/", f"{places}/") if a.startswith("D/") else a for a in arguments]
    found = commands_of(printed(capsys, recipe, "--out", "O", *arguments), places)
    assert without_folders(without_named_differences(name, found)) == without_folders(expected)


@pytest.mark.parametrize("name", CASES)
def test_cases_are_read_as_they_were_written(name):
    _, commands = golden.read(name)
    assert golden.decode(golden.encode(commands)) == commands
