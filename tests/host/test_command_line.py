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
