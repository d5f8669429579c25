"""Two gloo processes that train whatever they are asked to: starting them is what takes time.

The tests' side is :class:`WorkerPair`; ``python -m tests.end_to_end.worker_pair`` is a worker.
"""

import faulthandler
import json
import logging
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Dict, List, NamedTuple, Optional

import torch

from tests.fairseq_runs import ROOT, Run, parse_log, trained

SECONDS = 60
"""No run takes longer, unless its workers wait for each other."""

FLAGS = (
    "--distributed-world-size 2 --distributed-no-spawn --distributed-backend gloo "
    "--ddp-backend legacy_ddp"
)


class TwoWorkers(NamedTuple):
    """A finished run.

    Attributes:
        run: what the first worker logged, and the checkpoints.
        weights: of each worker.
        criterions: the state of each worker's criterion.
        keep_gradients: whether each worker's ``legacy_ddp`` keeps its gradients to itself.
        outputs: what each worker logged beside its records.
    """

    run: Run
    weights: List[Dict[str, torch.Tensor]]
    criterions: List[Dict[str, torch.Tensor]]
    keep_gradients: List[bool]
    outputs: List[str]

    def assert_equal_weights(self) -> None:
        for one, other in (self.weights, self.criterions):
            assert one.keys() == other.keys()
            for key, weight in one.items():
                assert torch.equal(other[key], weight), key


class WorkerPair:
    """Starts the two processes when they are first needed, and anew after a run that failed.

    Args:
        folder: for what they exchange.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._started = 0
        self._count = 0
        self._processes: List[subprocess.Popen[str]] = []

    def train(self, *flags: Any, save_dir: Path) -> TwoWorkers:
        """Runs fairseq-train on both; an assertion fails with what they said if it does."""
        if not self._processes:
            self._start()
        name, self._count = f"run{self._count}", self._count + 1
        rendezvous = f"file://{self._folder}/rendezvous{self._started}"
        request = [*flags, "--save-dir", save_dir, "--distributed-init-method", rendezvous]
        line = json.dumps({"name": name, "arguments": [str(each) for each in request]})
        for process in self._processes:
            assert process.stdin is not None
            process.stdin.write(f"{line}\n")
            process.stdin.flush()
        results = [self._folder / f"{name}-{rank}.pt" for rank in range(2)]
        while not all(result.exists() for result in results):
            if any(process.poll() is not None for process in self._processes):
                self.stop(wait=5)
                logs = [self._log(self._started, rank) for rank in range(2)]
                raise AssertionError("\n".join(log.read_text()[-6000:] for log in logs))
            time.sleep(0.05)
        found = [torch.load(result) for result in results]
        lines = [
            (self._folder / f"{name}-{rank}.log").read_text(encoding="utf-8").splitlines()
            for rank in range(2)
        ]
        return TwoWorkers(
            parse_log(Run(Path(save_dir)), lines[0]),
            [trained(each["model"]) for each in found],
            [each["criterion"] for each in found],
            [each["keeps_gradients"] for each in found],
            [parse_log(Run(Path(save_dir)), each).output for each in lines],
        )

    def stop(self, wait: Optional[float] = None) -> None:
        """Ends the processes.

        Args:
            wait: seconds to wait for them to end by themselves.
        """
        deadline = time.monotonic() + (wait or 0)
        for process in self._processes:
            while process.poll() is None and time.monotonic() < deadline:
                time.sleep(0.05)
            process.kill()
            process.communicate()
        self._processes = []

    def _start(self) -> None:
        self._started += 1
        for rank in range(2):
            with open(self._log(self._started, rank), "w", encoding="utf-8") as log:
                self._processes.append(
                    subprocess.Popen(
                        [sys.executable, "-m", __spec__.name, str(self._folder), str(rank)],
                        stdin=subprocess.PIPE,
                        stdout=log,
                        stderr=subprocess.STDOUT,
                        text=True,
                        cwd=ROOT,
                    )
                )

    def _log(self, started: int, rank: int) -> Path:
        return self._folder / f"worker{started}-{rank}.log"


def work(folder: Path, rank: int) -> None:
    """Trains what is asked for on the standard input, a JSON object a line."""
    from fairseq.trainer import Trainer
    from fairseq_cli.train import cli_main

    trainers, init = [], Trainer.__init__

    def noting_init(self: Any, *args: Any, **kwargs: Any) -> None:
        init(self, *args, **kwargs)
        trainers.append(self)

    Trainer.__init__ = noting_init
    for line in sys.stdin:
        request = json.loads(line)
        log = logging.FileHandler(folder / f"{request['name']}-{rank}.log", encoding="utf-8")
        log.setFormatter(logging.Formatter("%(asctime)s | %(levelname)s | %(name)s | %(message)s"))
        logging.getLogger().addHandler(log)
        faulthandler.dump_traceback_later(SECONDS, exit=True)
        sys.argv = ["fairseq-train", *request["arguments"], "--distributed-rank", str(rank)]
        cli_main()
        faulthandler.cancel_dump_traceback_later()
        logging.getLogger().removeHandler(log)
        log.close()
        trainer = trainers.pop()
        result = {
            "model": trainer.get_model().state_dict(),
            "criterion": trainer.get_criterion().state_dict(),
            "keeps_gradients": getattr(trainer.model, "accumulate_grads", False),
        }
        target = folder / f"{request['name']}-{rank}.pt"
        torch.save(result, f"{target}.part")
        os.replace(f"{target}.part", target)


if __name__ == "__main__":
    work(Path(sys.argv[1]), int(sys.argv[2]))
