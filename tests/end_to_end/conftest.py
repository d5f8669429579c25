"""What tests of several workers share."""

from pathlib import Path
from typing import Any, Callable, Iterator

import pytest

from tests.end_to_end.worker_pair import FLAGS, TwoWorkers, WorkerPair
from tests.fairseq_runs import TRAINING, TRANSLATION, split

MADE = Path(__file__).parent / "made_workers"


@pytest.fixture(scope="session")
def worker_pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WorkerPair]:
    pair = WorkerPair(tmp_path_factory.mktemp("workers"))
    yield pair
    pair.stop()


@pytest.fixture
def made_workers(corpus: Path, worker_pair: WorkerPair, tmp_path: Path) -> Callable[..., Any]:
    """``made_workers(flags…)``: a run of two gloo processes with what is in ``made_workers``."""
    numbers = iter(range(100))

    def train(*flags: Any) -> TwoWorkers:
        common = split(corpus, TRANSLATION, TRAINING, FLAGS, "--disable-validation", *flags)
        return worker_pair.train(
            *common, "--user-dir", MADE, save_dir=tmp_path / f"run{next(numbers)}"
        )

    return train
