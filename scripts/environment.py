"""What the shell library asks of an environment's Python; standard library only.

python environment.py describe                     which environment this interpreter is
python environment.py constraints FILE [--owned]   the constraints that apply to it
python environment.py repair                       forget distributions that pip left half installed
"""

import argparse
import importlib.metadata
import importlib.util
import os
import re
import shutil
import sys
from pathlib import Path


def installed_versions():
    """Return the version of every installed distribution by normalised name."""
    versions = {}
    for distribution in importlib.metadata.distributions():
        name = distribution.metadata["Name"]
        if name:
            versions.setdefault(normalise(name), distribution.version)
    return versions


def normalise(name):
    """Return a distribution's name in the one spelling that compares equal.

    >>> normalise("pytorch_optimizer")
    'pytorch-optimizer'
    """
    return re.sub(r"[-_.]+", "-", name).lower()


def required_name(line):
    """Return the normalised name that a line of a constraints file is about, or None.

    >>> required_name('torch==2.4.1; python_version == "3.8"')
    'torch'
    """
    match = re.match(r"[A-Za-z0-9][A-Za-z0-9._-]*", line)
    return normalise(match.group(0)) if match else None


def torchaudio_for(torch_version):
    """Return the torchaudio release that goes with a torch release.

    >>> torchaudio_for("1.13.1+cu117"), torchaudio_for("2.5.1"), torchaudio_for("2.13.0+cpu")
    ('0.13.1', '2.5.1', '2.11.0')
    """
    major, minor, patch = (int(part) for part in re.findall(r"\d+", torch_version)[:3])
    if major == 1:
        return f"0.{minor}.{patch}"
    if (major, minor) < (2, 11):
        return f"{major}.{minor}.{patch}"
    return "2.11.0"


def applicable_constraints(lines, installed, owned, torch_overridden):
    """Return the constraints for an environment that holds ``installed`` already.

    An environment that the user brought keeps every version it has; one that the scripts made
    follows the file. A torch that is there always stays, with the torchaudio that goes with it.

    Args:
        lines: The lines of the constraints file.
        installed: Version of each installed distribution by normalised name.
        owned: Whether the scripts made the environment.
        torch_overridden: Whether the user chose a torch, so that the file's choice does not count.
    """
    dropped = set() if owned else set(installed)
    extra = []
    if "torch" in installed:
        dropped |= {"torch", "torchaudio"}
        extra.append(f"torch=={installed['torch']}")
        if "torchaudio" not in installed:
            extra.append(f"torchaudio=={torchaudio_for(installed['torch'])}")
    elif torch_overridden:
        dropped |= {"torch", "torchaudio"}
    if not owned and "numpy" in installed:
        extra.append(f"numpy=={installed['numpy']}")
    names = [(required_name(line), line) for line in lines]
    return [line for name, line in names if name and name not in dropped] + extra


def forget_half_installed():
    """Remove the metadata of distributions whose installation was cut off; return their names.

    pip writes RECORD last, so metadata without it belongs to an installation that never ended. With
    the metadata gone pip takes the distribution for absent and writes all of its files again.
    """
    forgotten = []
    for distribution in list(importlib.metadata.distributions()):
        folder = Path(str(getattr(distribution, "_path", "")))
        if (
            folder.suffix == ".dist-info"
            and str(folder).startswith(sys.prefix)
            and not (folder / "RECORD").exists()
        ):
            shutil.rmtree(folder)
            forgotten.append(folder.name)
    return forgotten


def describe():
    """Return version, prefix, and whether this is an environment to use as it is.

    That is a virtual or conda environment, or whatever has a fairseq.
    """
    prefix = Path(sys.prefix)
    virtual = sys.prefix != sys.base_prefix
    conda = (prefix / "conda-meta").is_dir() and not (prefix / "condabin").is_dir()
    usable = virtual or conda or importlib.util.find_spec("fairseq") is not None
    return f"{sys.version_info[0]}.{sys.version_info[1]}", str(prefix), int(usable)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("describe")
    commands.add_parser("repair")
    constraints = commands.add_parser("constraints")
    constraints.add_argument("file", type=Path)
    constraints.add_argument("--owned", action="store_true")
    arguments = parser.parse_args()
    if arguments.command == "describe":
        print(*describe(), sep="\n")
    elif arguments.command == "repair":
        print(*forget_half_installed(), sep="\n")
    else:
        lines = arguments.file.read_text(encoding="utf-8").splitlines()
        overridden = bool(os.environ.get("TORCH_SPEC"))
        chosen = applicable_constraints(lines, installed_versions(), arguments.owned, overridden)
        print(*chosen, sep="\n")


if __name__ == "__main__":
    main()
