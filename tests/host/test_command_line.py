"""Logging, flags and worker processes: fairseq alone, and once repaired."""

import argparse
import logging
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from fairseq import options
from fairseq.distributed import utils as distributed_utils

ROOT = Path(__file__).parents[2]


class TestBf16:
    @staticmethod
    def parse(parse_args_and_arch, *flags):
        parser = argparse.ArgumentParser(allow_abbrev=False)
        for flag in ("--bf16", "--fp16", "--tpu"):
            parser.add_argument(flag, action="store_true")
        parser.set_defaults(batch_size=None, max_tokens=None)
        return parse_args_and_arch(parser, input_args=list(flags))

    def test_does_not_mean_tpu(self, unrepaired):
        args = self.parse(options.parse_args_and_arch, "--bf16")
        assert (args.bf16, args.tpu) == (True, False)
        assert self.parse(unrepaired(options.parse_args_and_arch), "--bf16").tpu

    def test_leaves_the_flag_tpu(self):
        assert self.parse(options.parse_args_and_arch, "--bf16", "--tpu").tpu
        assert self.parse(options.parse_args_and_arch, "--tpu").tpu


class TestValidationWithoutTask:
    def test_parses(self, unrepaired):
        flags = ["data", "--path", "checkpoint.pt", "--batch-size", "3"]
        parse = options.parse_args_and_arch
        assert parse(options.get_validation_parser(), flags).path == "checkpoint.pt"
        given = parse(options.get_validation_parser(), flags, suppress_defaults=True)
        assert not hasattr(given, "task")
        assert given.batch_size == 3
        given = parse(
            options.get_validation_parser(), [*flags, "--task", "masked_lm"], suppress_defaults=True
        )
        assert given.task == "masked_lm"
        while hasattr(parse, "__wrapped__"):
            parse = unrepaired(parse)
        with pytest.raises(KeyError, match="None"):
            parse(options.get_validation_parser(), flags)

    def test_takes_the_checkpoints_task(self, fairseq_train, corpus):
        flags = (
            "--task language_modeling --arch transformer_lm --decoder-layers 1 --batch-size 8 "
            "--decoder-embed-dim 8 --decoder-ffn-embed-dim 8 --decoder-attention-heads 2 "
            "--tokens-per-sample 16 --sample-break-mode none"
        )
        (corpus / "dict.txt").write_bytes((corpus / "dict.en.txt").read_bytes())
        for part in ("train", "valid"):
            for end in ("bin", "idx"):
                content = (corpus / f"{part}.de-en.en.{end}").read_bytes()
                (corpus / f"{part}.{end}").write_bytes(content)
        run = fairseq_train("--optimizer adam --max-update 1", task=(corpus, flags))
        program = "from fairseq_cli.validate import cli_main; cli_main()"
        done = subprocess.run(
            [
                *(sys.executable, "-c", program, str(corpus), "--cpu", "--batch-size", "8"),
                *("--path", str(run.save_dir / "checkpoint_last.pt"), "--valid-subset", "valid"),
                *("--user-dir", str(ROOT / "fairseq_sam"), "--log-format", "simple"),
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert done.returncode == 0, done.stdout
        assert "| valid | " in done.stdout
        assert " ppl " in done.stdout


def test_denoising_takes_a_transformer_and_both_mean_the_same_flag():
    flags = ["--task", "denoising", "--arch", "bart_base", "--max-source-positions", "77"]
    args = options.parse_args_and_arch(options.get_training_parser(), ["data", *flags])
    assert (args.max_source_positions, args.max_target_positions) == (77, 1024)
    assert args.mask_length == "subword"


def test_spawning_without_a_gpu_is_refused(monkeypatch, unrepaired):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    trained = []
    config = SimpleNamespace(
        distributed_training=SimpleNamespace(
            distributed_init_method="tcp://localhost:1",
            distributed_no_spawn=False,
            distributed_rank=0,
            distributed_world_size=2,
        )
    )
    unrepaired(distributed_utils.call_main)(config, trained.append)
    assert trained == []
    with pytest.raises(ValueError, match="--distributed-no-spawn"):
        distributed_utils.call_main(config, trained.append)


class TestLogging:
    @staticmethod
    def root_logger(setup):
        """Returns level and format of a new process's root logger before and after a repair."""
        program = f"""
import logging
root = logging.getLogger()
def show():
    print([(root.level, handler.formatter._fmt) for handler in root.handlers])
{setup}
show()
from fairseq_sam import host
host.repair()
show()
"""
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
        environment.pop("LOGLEVEL", None)
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", program],
            stdout=subprocess.PIPE,
            env=environment,
            check=True,
            text=True,
        )
        return done.stdout.splitlines()[-2:]

    def test_of_a_command_is_that_of_fairseq_0_12_2(self):
        before, after = self.root_logger("import fairseq_cli.generate")
        expected = [(logging.INFO, "%(asctime)s | %(levelname)s | %(name)s | %(message)s")]
        assert after == str(expected)
        if before == after:
            pytest.skip("importing this fairseq does not set up another log")
        assert before == str([(logging.DEBUG, logging.BASIC_FORMAT)])

    def test_set_up_by_the_user_is_kept(self):
        before, after = self.root_logger("logging.basicConfig(level=logging.DEBUG)")
        assert after == before == str([(logging.DEBUG, logging.BASIC_FORMAT)])
