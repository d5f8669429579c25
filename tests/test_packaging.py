"""What setup.py promises: its requirements, its extras, and the one place of the version."""

import re
import runpy
from pathlib import Path

import pytest
import setuptools
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def metadata(monkeypatch):
    """The arguments that setup.py gives to ``setup``."""
    received = {}
    monkeypatch.setattr(setuptools, "setup", received.update)
    monkeypatch.chdir(ROOT)
    runpy.run_path(str(ROOT / "setup.py"))
    return received


def names(requirements):
    return {Requirement(requirement).name.lower() for requirement in requirements}


def test_requirements_leave_an_installed_fairseq_alone(metadata):
    for extra in [None, "quickstart", "benchmark", "test", "dev"]:
        wanted = (
            metadata["install_requires"] if extra is None else metadata["extras_require"][extra]
        )
        assert not names(wanted) & {"fairseq", "fairseq-fixed"}


@pytest.mark.parametrize(
    ("python", "expected"),
    [
        ("3.8", "fairseq==0.12.2"),
        ("3.9", "fairseq==0.12.2"),
        ("3.10", "fairseq==0.12.2"),
        ("3.11", "fairseq-fixed==0.12.3.1"),
        ("3.12", "fairseq-fixed==0.12.3.1"),
        ("3.13", "fairseq-fixed==0.12.3.1"),
    ],
)
def test_fairseq_extra_chooses_one_distribution_for_each_python(metadata, python, expected):
    requirements = [Requirement(line) for line in metadata["extras_require"]["fairseq"]]
    chosen = [r for r in requirements if r.marker.evaluate({"python_version": python})]
    assert [f"{r.name}{r.specifier}" for r in chosen] == [expected]


def test_supported_versions(metadata):
    assert metadata["python_requires"] == ">=3.8"
    torch = next(r for r in map(Requirement, metadata["install_requires"]) if r.name == "torch")
    assert "1.13.0" in torch.specifier
    assert "1.12.1" not in torch.specifier
    assert "2.15.0" in torch.specifier


def test_version_is_single_sourced(metadata):
    version = runpy.run_path(str(ROOT / "fairseq_sam" / "version.py"))["__version__"]
    assert metadata["version"] == version
    assert re.fullmatch(r"\d+\.\d+\.\d+", version)


def test_every_folder_of_the_package_is_packaged(metadata):
    folders = {path.parent for path in (ROOT / "fairseq_sam").rglob("*.py")}
    expected = {".".join(folder.relative_to(ROOT).parts) for folder in folders}
    assert set(metadata["packages"]) == expected


def test_console_script_exists(metadata):
    (script,) = metadata["entry_points"]["console_scripts"]
    assert script == "fairseq-sam = fairseq_sam.commands:main"
    from fairseq_sam.commands import main

    assert callable(main)


@pytest.mark.parametrize("python", ["3.8", "3.9", "3.10", "3.11", "3.12", "3.13"])
def test_constraints_pin_every_direct_dependency_once(metadata, python):
    lines = (ROOT / "scripts" / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = [Requirement(line) for line in lines if line and not line.startswith("#")]
    environment = {"python_version": python}
    applicable = [p for p in pins if p.marker is None or p.marker.evaluate(environment)]
    pinned = {p.name.lower(): next(iter(p.specifier)).version for p in applicable}
    assert len(pinned) == len(applicable)
    wanted = [*metadata["install_requires"], *metadata["extras_require"]["dev"]]
    for requirement in map(Requirement, wanted):
        name = requirement.name.lower()
        if name == "packaging":
            continue
        assert pinned[name] in requirement.specifier, name
