"""What a table of a paper is made of. A recipe is a class in a file of its own, read from the top.

A recipe's commands and flags are text with ``{names}`` in it (see
:func:`~fairseq_sam.experiments.command_lines.words`). Always there are ``root`` (of this project),
``out``, ``data`` (where the corpus is), ``prepared``, ``bin`` (binarised data), ``python``,
``seed``, and within a score ``run`` (its folder) and ``baseline`` (flags that name the output of
the run to compare with); what :meth:`Recipe.choose` returns is added to them.
"""

from __future__ import annotations

import argparse
from typing import (
    TYPE_CHECKING,
    Any,
    ClassVar,
    Dict,
    Iterable,
    Iterator,
    List,
    Mapping,
    Sequence,
    Tuple,
)

from fairseq_sam.experiments.command_lines import Command, Download, Step, commands, words
from fairseq_sam.experiments.errors import ExperimentError, MisuseError
from fairseq_sam.reporting.scores import Published

if TYPE_CHECKING:
    from fairseq_sam.experiments.experiment import Experiment

__all__ = [
    "Command",
    "Download",
    "ExperimentError",
    "MisuseError",
    "Published",
    "Recipe",
    "Step",
    "columns",
    "commands",
    "paper",
    "words",
]

BASELINE = "baseline"

SMART = "--smart-mu 1 --store-ema --ema-decay 0.999"
"""Both parts of SMART, with its paper's μ and λ; β is 0.99 there in the first tenth of training."""


class Recipe:
    """A table: subclasses fill in what is below, and override what is done in another way.

    Attributes:
        name: of the recipe and of the script.
        title: of the report.
        about: what it reproduces and how.
        examples: options to show in the help text.
        options: those that only this recipe has, one a line: flag, value (PATH and DIR must exist,
            N is a whole number, X a number above 0, a|b a choice), two spaces, the help text.
        sizes: what options are that are left out, at full size and with --small.
        settings: flags for the texts, at full size and with --small.
        methods: the flags of each method by its name.
        default: the methods that are trained unless others are asked for.
        seeds: the seeds that are trained unless others are asked for.
        shared: the flags of all trainings.
        preparation: the commands that prepare the data in ``{dir}``.
        score: the commands that score ``{run}``.
        published: the paper's figures by the name in the report, with their source.
        curves: whether there are validations to plot.
        first: the method that others are compared with.
        one_seed: whether there is one seed only, which names no folder.
        on_cpu: whether it is meant for a CPU.
        report: the commands that write ``{out}/report.md``.
        has_epochs: whether --epochs counts the trainings' length.
        remembered: options that tell runs apart; others may change from one command to the next.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    about: ClassVar[str]
    examples: ClassVar[str] = ""
    options: ClassVar[str] = ""
    sizes: ClassVar[Mapping[str, Tuple[Any, Any]]] = {}
    settings: ClassVar[Mapping[str, Tuple[str, str]]] = {}
    methods: Mapping[str, str]
    default: ClassVar[str]
    seeds: ClassVar[str] = "1,2,3,4"
    shared: ClassVar[str]
    preparation: ClassVar[str] = ""
    score: ClassVar[str]
    published: ClassVar[Mapping[str, Published]]
    curves: ClassVar[bool] = True
    remembered: ClassVar[Sequence[str]] = ("data", "small", "epochs", "extra")
    has_epochs: ClassVar[bool] = True
    first: ClassVar[str] = BASELINE
    one_seed: ClassVar[bool] = False
    on_cpu: ClassVar[bool] = False
    report: ClassVar[str] = """{python} -m fairseq_sam.commands report {runs} \\
        --relative-to {out}/runs --group-by '/seed[0-9]+' --paper {table} --title {title} \\
        {flags} --output {out}/report.md"""

    def aliases(self) -> Dict[str, str]:
        """Returns names in --methods that stand for several methods."""
        return {}

    def folder(self, options: argparse.Namespace) -> str:
        """Returns the name of the folder in ``runs`` where everything goes."""
        return self.name.replace("_", "-")

    def passes(self, method: str) -> int:
        """Returns how many times the epochs a method has: per-instance perturbation twice.

        δ-SAM's Appendix A, which gives it "twice the epochs".
        """
        return 2 if method == "per_instance_sam" else 1

    def length(self, x: Experiment, method: str) -> int:
        """Returns how many epochs a method is trained in all."""
        epochs: int = x.options.epochs
        return epochs * self.passes(method)

    def choose(self, x: Experiment) -> Dict[str, Any]:
        """Checks the options and chooses the settings; returns values for the recipe's texts.

        It may set ``x.options.epochs`` and the like where they were not given.

        Raises:
            MisuseError: an option's value is not allowed.
        """
        return {}

    def downloads(self, x: Experiment) -> Iterable[Step]:
        """Returns what to get where --data is not given."""
        return ()

    def prepare(self, x: Experiment, folder: str) -> Iterator[Step]:
        """Yields what makes the data, in a folder that is renamed when all is done."""
        yield from commands(self.preparation, **x.values(dir=folder))

    def pretraining(self, x: Experiment) -> Sequence[Command]:
        """Returns what is trained once before all; see also ``--start-epoch``."""
        return ()

    def flags(self, x: Experiment, seed: int) -> Dict[str, Any]:
        """Returns values that differ from seed to seed."""
        return {}

    def scoring(self, x: Experiment, run: Mapping[str, Any]) -> Iterable[Step]:
        """Returns what scores a run."""
        return commands(self.score, **x.values(**run))

    def heading(self, x: Experiment) -> str:
        """Returns the title of the report."""
        return self.title

    def report_text(self, x: Experiment) -> str:
        """Returns the commands of the report."""
        return self.report

    def table(self, x: Experiment) -> str:
        """Returns the name of the paper's figures to show."""
        return self.name

    def recorded(self, x: Experiment) -> Dict[str, Any]:
        """Returns what runs in one folder must have in common."""
        found = {name: getattr(x.options, name) for name in self.remembered}
        trains = x.options.stage <= 4 if not x.options.job else x.options.job.startswith("train.")
        if trains and "fp16" in x.values():  # which follows from the GPUs at hand
            found["fp16"] = bool(x.values()["fp16"])
        return {f"--{name.replace('_', '-')}": value for name, value in found.items()}

    def reported(self, x: Experiment) -> List[str]:
        """Returns the folders of the runs to report."""
        return [x.path(*run) for run in x.scored()]

    def closing(self, x: Experiment) -> List[str]:
        """Returns what to say at the end."""
        return []

    def report_flags(self, x: Experiment) -> List[str]:
        """Returns more flags for the report."""
        return []


def perturbs(flags: str) -> bool:
    """Tells whether a method's flags are those of an optimizer with a radius."""
    return "--base-optimizer" in flags


def figures(text: str) -> Dict[str, str]:
    """Reads figures by their runs' names.

    >>> figures("baseline 35.41 ± 0.13, sam 35.61 ± 0.18")
    {'baseline': '35.41 ± 0.13', 'sam': '35.61 ± 0.18'}
    """
    parts = (part.split(None, 1) for part in text.replace("\n", " ").split(","))
    return {name: value.strip() for name, value in parts}


def paper(name: str, source: str, metric: str, text: str) -> Dict[str, Published]:
    """Returns figures of one metric, by the name that ``fairseq-sam report --paper`` takes."""
    return {name: Published(source, {metric: figures(text)})}


def columns(names: Sequence[str], rows: Mapping[str, str]) -> Dict[str, Dict[str, str]]:
    """Reads a table with a column for each metric and a row for each run.

    >>> columns(["R-1", "R-2"], {"baseline": "44.16 21.28"})
    {'R-1': {'baseline': '44.16'}, 'R-2': {'baseline': '21.28'}}
    """
    return {
        name: {run: row.split()[column] for run, row in rows.items()}
        for column, name in enumerate(names)
    }
