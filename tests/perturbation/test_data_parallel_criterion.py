"""Model and loss, both with weights and both in torch's DistributedDataParallel."""

import contextlib
import datetime
from typing import Any, List

import pytest
import torch
import torch.distributed
import torch.multiprocessing
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from fairseq_sam.perturbation import ForwardPass, Pass, SharpnessAwareLoss, method_settings
from tests.perturbation.small_net import assert_all_close, assert_all_equal, values

WORLD = 2
MICRO_BATCHES = 2
SETTINGS = {
    "sam": method_settings("sam", rho=0.2),
    "sam, mean risk": method_settings("sam", rho=0.2, risk="mean"),
    "ga_sam": method_settings("ga_sam", rho=0.05, num_steps=2),
}


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.hidden, self.out = nn.Linear(3, 4), nn.Linear(4, 3)
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        return self.out(torch.tanh(self.hidden(x)))


class Criterion(nn.Module):
    """A cross-entropy with a weight for each class."""

    def __init__(self) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.tensor([0.3, -0.2, 0.1], dtype=torch.float64))

    def forward(self, model: nn.Module, x: Tensor) -> Tensor:
        target = torch.arange(len(x)) % 3
        return nn.functional.cross_entropy(model(x) + self.bias, target, reduction="sum")


def micro_batches(rank: int) -> List[Tensor]:
    generator = torch.Generator().manual_seed(rank)
    sizes = [4 + rank] * MICRO_BATCHES
    return [torch.randn(n, 3, dtype=torch.float64, generator=generator) for n in sizes]


def gradients(model: Any, criterion: Any, settings: Any, rank: int, by_step: bool) -> List[Tensor]:
    """Returns the gradients of two micro-batches, reduced with the second where wrapped."""
    wrapped = [each for each in (model, criterion) if isinstance(each, DistributedDataParallel)]
    weights = [*model.parameters(), *criterion.parameters()]
    before = values(weights)
    loss = SharpnessAwareLoss(weights, settings, modules=[model, criterion])

    @contextlib.contextmanager
    def no_sync() -> Any:
        with contextlib.ExitStack() as stack:
            for each in wrapped:
                stack.enter_context(each.no_sync())
            yield

    for number, x in enumerate(micro_batches(rank), 1):
        with contextlib.nullcontext() if number == MICRO_BATCHES else no_sync():
            if by_step:

                def step(this: Pass, x: Tensor = x) -> ForwardPass:
                    output = criterion(model, x)
                    this.backward(output)
                    return ForwardPass(output, len(x))

                loss.run(step, backward=torch.Tensor.backward, no_sync=no_sync)
            else:
                loss.backward(lambda x=x: ForwardPass(criterion(model, x), len(x)), no_sync=no_sync)
    assert_all_equal(values(weights), before)
    found = [weight.grad.clone() for weight in weights if weight.grad is not None]
    assert len(found) == len(weights)
    return found


def work(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo",
        init_method=f"file://{folder}/store",
        rank=rank,
        world_size=WORLD,
        timeout=datetime.timedelta(seconds=60),
    )
    results = {}
    for name, settings in SETTINGS.items():
        for by_step in (False, True):
            for bucket_view in (False, True):
                options = {"gradient_as_bucket_view": bucket_view}
                model = DistributedDataParallel(Model(), **options)
                criterion = DistributedDataParallel(Criterion(), **options)
                found = gradients(model, criterion, settings, rank, by_step)
                results[name, by_step, bucket_view] = found
    torch.save(results, f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> List[Any]:
    folder = tmp_path_factory.mktemp("distributed")
    torch.multiprocessing.spawn(work, (str(folder),), nprocs=WORLD)
    return [torch.load(folder / f"{rank}.pt") for rank in range(WORLD)]


@pytest.mark.parametrize("bucket_view", [False, True])
@pytest.mark.parametrize("by_step", [False, True])
@pytest.mark.parametrize("name", list(SETTINGS))
def test_gradients_are_the_workers_mean(
    results: List[Any], name: str, by_step: bool, bucket_view: bool
) -> None:
    found = [result[name, by_step, bucket_view] for result in results]
    alone = [
        gradients(Model(), Criterion(), SETTINGS[name], rank, by_step) for rank in range(WORLD)
    ]
    assert_all_equal(found[0], found[1])
    assert_all_close(found[0], [(one + other) / 2 for one, other in zip(*alone)])
