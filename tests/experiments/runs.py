"""Dry runs of recipes in this process."""

import shlex

from fairseq_sam.experiments import conduct
from fairseq_sam.experiments.recipes import recipe_of


def refused(capsys, recipe, *arguments):
    """Returns what is said of a command line, after checking that it was refused with 2."""
    try:
        status = conduct.main(recipe_of(recipe), recipe, ["--check", *map(str, arguments)])
    except SystemExit as end:
        status = end.code
    error = capsys.readouterr().err
    assert status == 2, error
    assert error.startswith("error: ")
    assert "Traceback" not in error
    return error.splitlines()[0]


def printed(capsys, recipe, *arguments):
    """Returns the script of a dry run."""
    status = conduct.main(recipe_of(recipe), recipe, ["--dry-run", *map(str, arguments)])
    output = capsys.readouterr()
    assert status == 0, output.err
    return output.out


def commands(capsys, recipe, *arguments):
    """Returns the commands of a dry run as lists of words."""
    lines = printed(capsys, recipe, *arguments).splitlines()
    found = (without_condition(shlex.split(line, comments=True)) for line in lines)
    return [words for words in found if words]


def without_condition(words):
    """Leaves out ``[ -e FILE ] ||`` before a command."""
    return words[5:] if words[:1] == ["["] else words


def trainings(found):
    """Returns the flags of each fairseq-train by the last part of its folder."""
    return {
        flags(words)["--save-dir"].rsplit("/checkpoints", 1)[0].split("/", 1)[1]: flags(words)
        for words in found
        if "fairseq_cli.train" in words
    }


def flags(words):
    """Reads --name value pairs, the last of a flag that is given twice; without a value True."""
    found = {}
    for word, following in zip(words, [*words[1:], "--"]):
        if word.startswith("--"):
            found[word] = True if following.startswith("--") else following
    return found
