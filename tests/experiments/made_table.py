"""A table whose trainings take no time: ``python made_table.py OPTIONS``, as a papers' script.

A training adds a line to FOLDER/starts, with what it was given, and waits for --pause seconds; that
of a method whose name ends with "bad" fails. A table that is done by several machines does so too.
"""

import shlex
import sys

from fairseq_sam.experiments import conduct
from fairseq_sam.experiments.command_lines import Command
from fairseq_sam.experiments.experiment import Experiment
from fairseq_sam.experiments.recipe import Recipe


class Made(Recipe):
    name = "made"
    title = "Made"
    about = "Nothing."
    options = """
    --data PATH
    --epochs N
    --pause X[0..]
    """
    sizes = {"pause": ("0", "0")}  # noqa: RUF012
    methods = {  # noqa: RUF012
        "baseline": "--optimizer adam",
        "sam": "--optimizer sam --base-optimizer adam --sam-rho 1",
        "bad": "--optimizer bad --base-optimizer adam",
    }
    default = "baseline,sam"
    seeds = "1,2"
    shared = ""
    preparation = "sh -c 'echo text > {dir}/text'"
    score = "sh -c 'wc -l < {run}/starts > {run}/scores'"
    report = "sh -c 'for run; do cat \"$run/scores\"; done' report {runs} > {out}/report.md"
    published = {}  # noqa: RUF012
    remembered = ("epochs",)


def training(self, folder, seed, flags):
    flags = shlex.join(flags)
    code = "exit 1" if "--optimizer bad" in flags else f"sleep {self.options.pause}"
    start = f'echo "$FAKE" {flags} {self.node} >> {folder}/starts'
    script = f"echo begin; {start}; {code}; echo the end"
    return Command(("sh", "-c", script), log=str(self.train_log(folder)))


if __name__ == "__main__":
    Experiment.training = training
    sys.exit(conduct.main(Made(), f"{sys.executable} {__file__}", sys.argv[1:]))
