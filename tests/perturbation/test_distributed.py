"""torch's DistributedDataParallel on two gloo processes."""

import contextlib
import datetime
from typing import Any, Callable, List, Sequence

import pytest
import torch
import torch.distributed
import torch.multiprocessing
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from fairseq_sam.perturbation import ForwardPass, SharpnessAwareLoss, method_settings
from tests.perturbation import reference
from tests.perturbation.small_net import assert_all_close, assert_all_equal, batch, values

WORLD = 2
UPDATES = 20
LEARNING_RATE = 0.02
KINDS = {
    "sam": {"method": "sam", "rho": 0.2},
    "ga_sam": {"method": "ga_sam", "rho": 0.05, "num_steps": 2},
}

RUNS = {
    # kind, updates, micro-batches an update, reentrant activation checkpoints
    "sam-long": ("sam", UPDATES, 1, False),
    "ga_sam-long": ("ga_sam", UPDATES, 1, False),
    "sam-accumulating": ("sam", 1, 2, False),
    "ga_sam-accumulating": ("ga_sam", 1, 2, False),
    "sam-checkpointed": ("sam", 1, 1, True),
    "ga_sam-checkpointed": ("ga_sam", 1, 1, True),
}


class Net(nn.Module):
    """All its weights are used: DistributedDataParallel wants a gradient for each."""

    def __init__(self, checkpointed: bool = False) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.conv = nn.Conv1d(2, 3, 2)
            self.hidden = nn.Linear(3, 4)
            self.out = nn.Linear(4, 3)
        self.checkpointed = checkpointed
        self.double()

    def features(self, x: Tensor) -> Tensor:
        return torch.tanh(self.hidden(torch.tanh(self.conv(x)).mean(dim=2)))

    def forward(self, x: Tensor) -> Tensor:
        if self.checkpointed:
            x = checkpoint(self.features, x.requires_grad_(), use_reentrant=True)
        else:
            x = self.features(x)
        return self.out(x)


def summed_loss(net: nn.Module, x: Tensor) -> Tensor:
    target = torch.arange(len(x)) % 3
    return nn.functional.cross_entropy(net(x), target, reduction="sum")


def worker_batch(update: int, rank: int) -> Tensor:
    return batch(seed=10 * update + rank, size=4 + rank)


def train(model: nn.Module, rank: int, kind: str, updates: int, accumulate: int) -> Any:
    """Returns the gradients of the first update and the weights after the last."""
    parameters = list(model.parameters())
    optimizer = torch.optim.SGD(parameters, lr=LEARNING_RATE)
    sharpness_aware = SharpnessAwareLoss(parameters, method_settings(**KINDS[kind]))
    first: List[Tensor] = []
    for update in range(updates):
        optimizer.zero_grad(set_to_none=True)
        for micro in range(accumulate):
            x = worker_batch(update * accumulate + micro, rank)
            last = micro == accumulate - 1
            with contextlib.nullcontext() if last else model.no_sync():
                sharpness_aware.backward(
                    lambda x=x: ForwardPass(summed_loss(model, x), len(x)), no_sync=model.no_sync
                )
        first = first or [p.grad.clone() for p in parameters]
        optimizer.step()
    return {"first": first, "last": values(parameters)}


def work(rank: int, folder: str) -> None:
    """One worker of every run; starting processes is what takes time."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo",
        init_method=f"file://{folder}/store",
        rank=rank,
        world_size=WORLD,
        timeout=datetime.timedelta(seconds=60),
    )
    for name, (kind, updates, accumulate, checkpointed) in RUNS.items():
        model = nn.parallel.DistributedDataParallel(Net(checkpointed))
        try:
            result = train(model, rank, kind, updates, accumulate)
        except RuntimeError as error:
            result = {"error": str(error)}
        torch.save(result, f"{folder}/{name}-{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], List[Any]]:
    """``results(run)``: what each worker has in the end."""
    folder = tmp_path_factory.mktemp("distributed")
    torch.multiprocessing.spawn(work, (str(folder),), nprocs=WORLD)

    def read(name: str) -> List[Any]:
        found = [torch.load(folder / f"{name}-{rank}.pt") for rank in range(WORLD)]
        assert [each.get("error") for each in found] == [None] * WORLD
        return found

    return read


def gradient_of_one_worker(kind: str, weights: List[Tensor], x: Tensor) -> List[Any]:
    """The sharpness-aware gradient of one worker's own batch, by the slow loop."""
    net = Net()
    parameters = list(net.parameters())

    def gradient_at(weights: List[Tensor]) -> List[Any]:
        with torch.no_grad():
            for p, w in zip(parameters, weights):
                p.copy_(w)
        return list(torch.autograd.grad(summed_loss(net, x), parameters))

    settings = method_settings(**KINDS[kind])
    gradients, _ = reference.sharpness_aware_gradient(
        gradient_at,
        weights,
        settings.rho,
        settings.norm,
        settings.scale,
        settings.granularity,
        settings.risk,
        settings.num_steps,
        divisor=len(x),
    )
    return gradients


def mean_of_workers(kind: str, weights: List[Tensor], micro_batches: Sequence[int]) -> List[Any]:
    """m-sharpness: each worker's micro-batches are perturbed by themselves, then summed."""
    found = [
        gradient_of_one_worker(kind, weights, worker_batch(micro, rank))
        for rank in range(WORLD)
        for micro in micro_batches
    ]
    return [sum(each) / WORLD for each in zip(*found)]


@pytest.mark.parametrize("kind", list(KINDS))
def test_workers_agree_after_20_updates_along_the_mean_of_their_gradients(
    kind: str, results: Callable[[str], List[Any]]
):
    one, other = results(f"{kind}-long")
    assert_all_equal(one["first"], other["first"])
    assert_all_equal(one["last"], other["last"])
    weights = values(list(Net().parameters()))
    assert_all_close(one["first"], mean_of_workers(kind, weights, [0]))
    for update in range(UPDATES):
        gradients = mean_of_workers(kind, weights, [update])
        weights = [w - LEARNING_RATE * g for w, g in zip(weights, gradients)]
    assert_all_close(one["last"], weights, rtol=1e-8)


@pytest.mark.parametrize("kind", list(KINDS))
def test_micro_batches_accumulate_before_the_workers_exchange(
    kind: str, results: Callable[[str], List[Any]]
):
    one, other = results(f"{kind}-accumulating")
    assert_all_equal(one["first"], other["first"])
    weights = values(list(Net().parameters()))
    assert_all_close(one["first"], mean_of_workers(kind, weights, [0, 1]))


@pytest.mark.parametrize("kind", list(KINDS))
def test_reentrant_checkpoints_work_as_they_do_without_us(
    kind: str, results: Callable[[str], List[Any]]
):
    one, other = results(f"{kind}-checkpointed")
    assert_all_equal(one["first"], other["first"])
    weights = values(list(Net().parameters()))
    assert_all_close(one["first"], mean_of_workers(kind, weights, [0]))
