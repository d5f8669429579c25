"""The documentation keeps its word: links lead somewhere, examples run, tables are the code's."""

import doctest
import importlib
import importlib.util
import os
import pkgutil
import re
import shutil
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any, Dict, Iterator, List, NamedTuple, Tuple

import pytest

import fairseq_sam
from fairseq_sam import perturbation
from tests.fairseq_runs import ROOT, SMALL

IGNORED = {".pytest_cache", ".git", ".venv", "runs", "build", "dist", "outputs", "multirun"}


def pages() -> List[Path]:
    found = [
        Path(folder, name)
        for folder, folders, names in os.walk(ROOT)
        for name in names
        if name.endswith(".md") and not IGNORED & set(Path(folder).relative_to(ROOT).parts)
    ]
    return sorted(found)


def named(path: Path) -> str:
    return str(path.relative_to(ROOT))


PAGES = pages()
FENCED = re.compile(r"^ *(```|~~~).*?^ *\1 *$", re.MULTILINE | re.DOTALL)
LINK = re.compile(
    r"\]\(\s*<?([^)\s>]+)>?(?:\s+\"[^\"]*\")?\s*\)|\b(?:src|srcset|href)=\"([^\"]+)\""
)


def prose(path: Path) -> str:
    """Returns a page without its code."""
    text = FENCED.sub("", path.read_text(encoding="utf-8"))
    return re.sub(r"`[^`\n]*`", "``", text)


def links(path: Path) -> List[str]:
    return [match[1] or match[2] for match in LINK.finditer(prose(path))]


def anchors(path: Path) -> List[str]:
    """Returns the anchors of a page's headings, as GitHub makes them."""
    found: List[str] = []
    text = FENCED.sub("", path.read_text(encoding="utf-8"))
    for title in re.findall(r"^#{1,6} +(.+?) *#*$", text, re.MULTILINE):
        title = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", title).replace("`", "")
        slug = re.sub(r"[^\w\- ]", "", title.strip().lower()).replace(" ", "-")
        number = sum(re.fullmatch(rf"{re.escape(slug)}(-\d+)?", each) is not None for each in found)
        found.append(f"{slug}-{number}" if number else slug)
    return found


class TestLinks:
    @pytest.mark.parametrize("page", PAGES, ids=named)
    def test_every_link_leads_somewhere(self, page: Path) -> None:
        for link in links(page):
            if re.match(r"[a-z]+:", link):
                assert re.match(r"(https?://[\w.-]+(/\S*)?|mailto:\S+)$", link), link
                continue
            name, _, anchor = link.partition("#")
            target = (page.parent / name).resolve() if name else page
            assert target.exists(), f"{named(page)}: {link}"
            assert ROOT in [target, *target.parents], f"{named(page)}: {link} is outside"
            if anchor:
                assert anchor in anchors(target), f"{named(page)}: {link}"

    def test_pages_that_code_and_scripts_name(self) -> None:
        folders = [ROOT / name for name in ("fairseq_sam", "scripts", "tests", "docs")]
        sources = [path for folder in folders for path in folder.rglob("*") if path.is_file()]
        for path in sources:
            if path.suffix not in (".py", ".sh", ".txt", ".md"):
                continue
            text = path.read_text(encoding="utf-8")
            for name in re.findall(r"\b(docs/[\w/]+\.(?:md|png|svg|py))\b", text):
                assert (ROOT / name).exists(), f"{named(path)}: {name}"

    def test_files_that_pages_name(self) -> None:
        pattern = r"`((?:fairseq_sam|scripts|tests)/[\w/]+(?:\.(?:py|sh|txt))?)`"
        for page in PAGES:
            for name in re.findall(pattern, page.read_text(encoding="utf-8")):
                assert (ROOT / name).exists(), f"{named(page)}: {name}"

    def test_every_page_can_be_found(self) -> None:
        """From the README, by links."""
        found, new = set(), [ROOT / "README.md"]
        while new:
            page = new.pop()
            if page in found:
                continue
            found.add(page)
            targets = [(page.parent / link.split("#")[0]).resolve() for link in links(page)]
            new += [path for path in targets if path.suffix == ".md" and path.is_file()]
        assert set(PAGES) <= found

    def test_nothing_is_cited_that_a_reader_cannot_find(self) -> None:
        for folder in (ROOT / name for name in ("fairseq_sam", "scripts", "docs")):
            for path in folder.rglob("*.*"):
                if path.suffix in (".py", ".sh", ".md"):
                    text = path.read_text(encoding="utf-8")
                    assert not re.search(r"\bSPEC\b(?!=)|\b(SPEC|BEYOND|DESIGN)\.md\b", text), path


class Block(NamedTuple):
    """A block of code that is marked ``<!-- run -->`` or ``<!-- run: slow -->``."""

    page: Path
    line: int
    is_slow: bool
    language: str
    code: str


MARKED = re.compile(
    r"^<!-- run(: slow)? -->\n```(bash|python)\n(.*?)^```$", re.MULTILINE | re.DOTALL
)


def blocks() -> Iterator[Any]:
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        marks = re.findall(r"^<!-- run", text, re.MULTILINE)
        assert len(marks) == len(MARKED.findall(text)), page
        for match in MARKED.finditer(text):
            line = text.count("\n", 0, match.start()) + 2
            block = Block(page, line, match[1] is not None, match[2], match[3])
            slow = [pytest.mark.slow] if block.is_slow else []
            yield pytest.param(block, id=f"{named(page)}:{line}", marks=slow)


COMMANDS = {
    "fairseq-train": "from fairseq_cli.train import cli_main as main",
    "fairseq-hydra-train": "from fairseq_cli.hydra_train import cli_main as main",
    "fairseq-sam": "from fairseq_sam.commands import main",
}
FEW = {
    "fairseq-train": "--cpu --max-update 2 --num-workers 0 --disable-validation "
    f"{SMALL.format('encoder')} {SMALL.format('decoder')}",
    "fairseq-hydra-train": "common.cpu=true dataset.num_workers=0 dataset.disable_validation=true "
    "optimization.max_update=2 task.tokens_per_sample=12 model.decoder_embed_dim=8 "
    "model.decoder_ffn_embed_dim=8 model.decoder_layers=1 model.decoder_attention_heads=2",
}
"""What examples get in addition, so that they end soon and need no GPU."""


@pytest.fixture(scope="module")
def binaries(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the commands that the documentation calls."""
    folder = tmp_path_factory.mktemp("bin")
    for name, statement in COMMANDS.items():
        program = f'{statement}; import sys; sys.argv[0] = "{name}"; sys.exit(main())'
        command = folder / name
        command.write_text(
            f'#!/bin/sh\nexec "{sys.executable}" -c \'{program}\' "$@" {FEW.get(name, "")}\n'
        )
        command.chmod(command.stat().st_mode | stat.S_IXUSR)
    (folder / "python").symlink_to(sys.executable)
    return folder


class TestExamples:
    @pytest.mark.parametrize("block", blocks())
    def test_it_runs(self, block: Block, binaries: Path, corpus: Path, tmp_path: Path) -> None:
        shell = shutil.which("bash")
        if block.language == "bash" and shell is None:
            pytest.skip("there is no bash")
        data = corpus
        if "language_modeling" in block.code:  # one side of the corpus, as if it were alone
            data = tmp_path / "lm"
            shutil.copytree(corpus, data)
            for path in list(data.iterdir()):
                path.rename(data / re.sub(r"\.de-en\.en|\.en(?=\.txt$)", "", path.name))
        program = [sys.executable, "-c", block.code]
        if block.language == "bash":
            program = [str(shell), "-euo", "pipefail", "-c", block.code]
        environment = {
            **os.environ,
            "PATH": f"{binaries}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
            "DATA": str(data),
        }
        done = subprocess.run(
            program,
            cwd=tmp_path,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, done.stdout[-3000:]
        if "--optimizer" in block.code:
            assert "perturbation_on" in done.stdout

    def test_there_are_some_of_each_kind(self) -> None:
        found = [each.values[0] for each in blocks()]
        assert {block.language for block in found} == {"bash", "python"}
        assert {block.is_slow for block in found} == {True, False}

    def test_shell_examples_parse(self, tmp_path: Path) -> None:
        shell = shutil.which("bash")
        if shell is None:
            pytest.skip("there is no bash")
        for page in PAGES:
            text = page.read_text(encoding="utf-8")
            for code in re.findall(r"^```bash\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
                done = subprocess.run([shell, "-n", "-c", code], stderr=subprocess.PIPE, text=True)
                assert done.returncode == 0, f"{named(page)}: {done.stderr}\n{code}"


MODULES = [
    "fairseq_sam",
    *(m.name for m in pkgutil.walk_packages(fairseq_sam.__path__, "fairseq_sam.")),
]


def with_examples() -> Iterator[Any]:
    for name in MODULES:
        source = importlib.util.find_spec(name).origin  # type: ignore[union-attr]
        if ">>> " in Path(str(source)).read_text(encoding="utf-8"):
            yield name


@pytest.mark.parametrize("name", with_examples())
def test_docstring_examples(name: str) -> None:
    result = doctest.testmod(importlib.import_module(name))
    assert result.attempted > 0
    assert result.failed == 0


def load_tables() -> Any:
    spec = importlib.util.spec_from_file_location("tables", ROOT / "docs" / "tables.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_page_is_in_the_site_s_navigation() -> None:
    navigation = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    for page in (ROOT / "docs").rglob("*.md"):
        assert f": {page.relative_to(ROOT / 'docs').as_posix()}\n" in navigation


class TestTables:
    @pytest.mark.parametrize("name", ["methods", "flags", "combinations"])
    def test_it_is_the_code_s(self, name: str) -> None:
        tables = load_tables()
        found = tables.between(name).findall(tables.PAGE.read_text(encoding="utf-8"))
        assert [body for _, body, _ in found] == [tables.TABLES[name]() + "\n"], (
            "out of date: run python docs/tables.py"
        )

    def test_combinations_are_what_the_command_prints(self, capsys: Any) -> None:
        from fairseq_sam.commands import main

        assert main(["methods", "--combinations"]) == 0
        assert capsys.readouterr().out in (ROOT / "docs" / "methods.md").read_text(encoding="utf-8")

    def test_the_table_of_t_has_every_scale(self) -> None:
        from fairseq_sam.perturbation.ascent import SCALES

        page = (ROOT / "docs" / "how_it_works.md").read_text(encoding="utf-8")
        assert set(re.findall(r"^\| `([a-z-]+)`[^|]*\| [^|]*\| [^|]*\|$", page, re.M)) >= set(
            SCALES
        )

    def test_every_flag_that_is_named_exists(self) -> None:
        tables = load_tables()
        known = set(re.findall(r"^\| `(--[a-z-]+)", tables.flags(), re.MULTILINE))
        for page in PAGES:
            text = page.read_text(encoding="utf-8")
            used = set(re.findall(r"--(?:sam|delta-sam)-[a-z-]*[a-z]\b(?![-…])", text))
            assert used <= known, named(page)

    def test_every_method_has_a_card_and_every_metric_a_line(self) -> None:
        from fairseq_sam.training.metrics import AVERAGED

        cards = (ROOT / "docs" / "methods.md").read_text(encoding="utf-8")
        for method in perturbation.METHODS:
            assert f"`--optimizer {method}`" in cards
        radius = (ROOT / "docs" / "radius.md").read_text(encoding="utf-8")
        for metric in ("sharpness", "perturbation_on", *AVERAGED.values()):
            assert f"| `{metric}` |" in radius

    def test_the_reference_has_the_public_names(self) -> None:
        text = (ROOT / "docs" / "reference.md").read_text(encoding="utf-8")
        names = re.findall(r"^::: fairseq_sam\.perturbation\.(\w+)$", text, re.MULTILINE)
        assert sorted(names) == sorted(perturbation.__all__)
        assert "\n::: fairseq_sam.FairseqSamError\n" in text
        assert "FairseqSamError" in fairseq_sam.__all__


def test_the_readme_is_short() -> None:
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 110


def test_the_citation_has_the_version() -> None:
    text = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert f"\nversion: {fairseq_sam.__version__}\n" in text


def mentions(pattern: str) -> Dict[str, Tuple[str, ...]]:
    found = {}
    for page in PAGES:
        words = tuple(re.findall(pattern, prose(page)))
        if words:
            found[named(page)] = words
    return found


def test_words() -> None:
    """One word for one thing, and none that a reader would take for something else."""
    assert mentions(r"(?i)\brivals?\b") == {}
    assert mentions(r"\bgiven up\b") == {}
