"""What the search takes from, adds to and refuses of the arguments of fairseq-train."""

from pathlib import Path

import pytest

from fairseq_sam.experiments.errors import MisuseError
from fairseq_sam.experiments.search.training_command import read_training_command

METHODS = ("sam", "ga_sam")
GOOD = ["data", "--optimizer", "ga_sam", "--max-epoch", "3"]


def read(*arguments, **options):
    return read_training_command(arguments, METHODS, Path("/plugin"), **options)


class TestReads:
    def test_defaults(self):
        command = read(*GOOD)
        assert (command.metric, command.maximise, command.subset) == ("loss", False, "valid")
        assert not command.on_cpu
        assert command.arguments == (*GOOD, "--user-dir", "/plugin")

    def test_what_is_given_in_either_form(self):
        command = read(
            "data", "--optimizer=sam", "--max-update", "10", "--cpu", "--user-dir", "mine",
            "--best-checkpoint-metric", "ppl", "--best-checkpoint-metric=bleu",
            "--maximize-best-checkpoint-metric", "--valid-subset", "dev,other",
        )  # fmt: skip
        assert (command.metric, command.maximise, command.subset) == ("bleu", True, "dev")
        assert command.on_cpu
        assert "/plugin" not in command.arguments

    def test_of_a_run(self):
        command = read(*GOOD)
        arguments = command.of_run(2e-4, None, Path("out/rho"))
        assert arguments[: len(GOOD)] == GOOD
        assert "--seed" not in arguments
        assert float(arguments[arguments.index("--sam-rho") + 1]) == 2e-4
        assert arguments[-2:] == ["--save-dir", "out/rho"]
        assert read(*GOOD, "--log-format", "none").of_run(0.0, None, Path("x"))[-5:-2] == [
            *("--log-format", "json", "--no-progress-bar"),
        ]
        assert "--seed 5" in " ".join(command.of_run(2e-4, 5, Path("out/rho")))


class TestRefuses:
    @pytest.mark.parametrize(
        "flag",
        [
            *("--sam-rho", "--save-dir", "--restore-file", "--log-file", "--tensorboard-logdir"),
            *("--reset-optimizer", "--disable-validation"),
        ],
    )
    @pytest.mark.parametrize("form", ["{} x", "{}=x"])
    def test_what_it_sets_itself(self, flag, form):
        with pytest.raises(MisuseError, match=f"^argument {flag} ") as caught:
            read(*GOOD, *form.format(flag).split())
        assert "\n" not in str(caught.value)

    @pytest.mark.parametrize("optimizer", ["adam", "sgd"])
    def test_optimizers_without_a_radius(self, optimizer):
        with pytest.raises(MisuseError, match=f"--optimizer .*'{optimizer}'.*ga_sam, sam"):
            read("data", "--optimizer", optimizer, "--max-epoch", "1")

    def test_no_optimizer(self):
        with pytest.raises(MisuseError, match=r"--optimizer .* is missing"):
            read("data", "--max-epoch", "1")

    def test_no_end(self):
        with pytest.raises(MisuseError, match="--max-epoch, --max-update"):
            read("data", "--optimizer", "sam")

    def test_two_sources_of_seeds(self):
        assert read(*GOOD, "--seed", "1").arguments[-4:-2] == ("--seed", "1")
        with pytest.raises(MisuseError, match=r"--seed .*--seeds"):
            read(*GOOD, "--seed", "1", seeds_given=True)
