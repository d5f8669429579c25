"""What setup.py promises: its requirements, its extras, the one version, and whole archives."""

import email
import json
import re
import runpy
import shutil
import subprocess
import sys
import tarfile
import zipfile
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


OF_THE_PROJECT = {".ci", ".github", ".gitignore", ".pre-commit-config.yaml"}
MADE = {"__pycache__", "build", "dist", "PKG-INFO", "setup.cfg", "fairseq_sam.egg-info", "runs"}


def sources():
    """Returns the files that belong to the project, relative to its root."""
    if (ROOT / ".git").exists() and shutil.which("git"):
        listing = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
        done = subprocess.run(listing, cwd=str(ROOT), stdout=subprocess.PIPE, text=True)
        if done.returncode == 0:  # git may refuse a clone of another user's
            return sorted({name for name in done.stdout.splitlines() if (ROOT / name).is_file()})
    paths = [path.relative_to(ROOT) for path in ROOT.rglob("*") if path.is_file()]
    return sorted(
        path.as_posix()
        for path in paths
        if not MADE & set(path.parts)
        and (not path.parts[0].startswith(".") or path.parts[0] in OF_THE_PROJECT)
    )


def build(kind, folder, target):
    """Builds an archive of the sources in ``folder`` with what is installed, as pip would."""
    hook = f"from setuptools import build_meta; print(build_meta.build_{kind}({str(target)!r}))"
    done = subprocess.run(
        [sys.executable, "-W", "error:Unknown distribution option", "-c", hook],
        cwd=str(folder),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout[-3000:]
    return target / done.stdout.splitlines()[-1]


@pytest.fixture(scope="module")
def sdist(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sources")
    for name in sources():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(str(ROOT / name), str(folder / name))
    return build("sdist", folder, tmp_path_factory.mktemp("sdist"))


@pytest.fixture(scope="module")
def wheel(sdist, tmp_path_factory):
    """Built from the source archive, as for whoever has no wheel."""
    pytest.importorskip("wheel")
    folder = tmp_path_factory.mktemp("unpacked")
    with tarfile.open(sdist) as archive:
        archive.extractall(folder)
    (unpacked,) = folder.iterdir()
    return build("wheel", unpacked, tmp_path_factory.mktemp("wheel"))


class TestArchives:
    def test_the_source_archive_is_whole(self, sdist):
        with tarfile.open(sdist) as archive:
            names = {m.name.partition("/")[2] for m in archive.getmembers() if m.isfile()}
        made = {name for name in names if ".egg-info" in name} | {"PKG-INFO", "setup.cfg"}
        assert sorted(names - made) == sources()

    def test_the_wheel_is_the_package_and_nothing_else(self, wheel):
        with zipfile.ZipFile(wheel) as archive:
            names = {name for name in archive.namelist() if ".dist-info/" not in name}
        assert sorted(names) == [name for name in sources() if name.startswith("fairseq_sam/")]
        assert "fairseq_sam/py.typed" in names

    def test_what_the_wheel_says_of_itself(self, wheel, metadata):
        with zipfile.ZipFile(wheel) as archive:
            folder = f"fairseq_sam-{metadata['version']}.dist-info"
            text = archive.read(f"{folder}/METADATA").decode("utf-8")
            held = archive.namelist()
        says = email.message_from_string(text)
        assert says["Name"].replace("-", "_") == "fairseq_sam"
        assert "MIT" in (says["License-Expression"], says["License"])
        assert any(name.startswith(folder) and name.endswith("LICENSE") for name in held)
        assert says["Keywords"].split(",") == metadata["keywords"]
        assert len(says.get_all("Project-URL")) == len(metadata["project_urls"])
        assert {line.partition(";")[0] for line in says.get_all("Requires-Dist")} >= {
            requirement.replace(" ", "") for requirement in metadata["install_requires"]
        }

    def test_keywords_are_those_of_the_citation(self, metadata):
        text = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
        (listed,) = re.findall(r"^keywords:\n((?:  - .*\n)+)", text, re.MULTILINE)
        assert re.findall(r"- (.*)", listed) == metadata["keywords"]

    def test_every_address_is_in_the_documentation(self, metadata):
        text = "".join(
            (ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "CITATION.cff")
        )
        for address in metadata["project_urls"].values():
            assert address in text


def test_the_changelog_has_the_version_with_its_date(metadata):
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    headings = re.findall(r"^## \[(.+?)\](?: - (\S+))?$", text, re.MULTILINE)
    released = [(name, date) for name, date in headings if name != "Unreleased"]
    assert released[0][0] == metadata["version"]
    assert all(re.fullmatch(r"\d{4}-\d\d-\d\d", date) for _, date in released)
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert f"\ndate-released: {released[0][1]}\n" in citation


def test_figures_of_the_benchmark_are_those_of_a_version():
    for path in (ROOT / "benchmarks" / "results").glob("*"):
        assert re.fullmatch(r"\d+\.\d+\.\d+\.json", path.name)
        figures = json.loads(path.read_text(encoding="utf-8"))
        assert figures["fairseq_sam"] == path.stem
        assert "base" in figures["steps"]
