"""One view at w beside torch's DistributedDataParallel, on two gloo processes."""

import datetime
from typing import Any, List

import pytest
import torch
import torch.distributed
import torch.multiprocessing
from torch import Tensor, nn

from fairseq_sam.perturbation import ForwardPass, SharpnessAwareLoss, method_settings
from tests.perturbation.small_net import assert_all_close, assert_all_equal, values
from tests.perturbation.test_distributed import WORLD, Net, worker_batch
from tests.perturbation.test_unperturbed import part_loss

METHODS = {"sam": {"rho": 0.2}, "ga_sam": {"rho": 0.05, "num_steps": 2}}


def gradients(model: nn.Module, module: Net, rank: int, method: str) -> List[Tensor]:
    """Calls the second view's model wrapped, and the first view's bare, as the seam does."""
    loss = SharpnessAwareLoss(list(module.parameters()), method_settings(method, **METHODS[method]))
    x = worker_batch(0, rank)
    no_sync = {"no_sync": model.no_sync} if model is not module else {}

    def forward() -> ForwardPass:
        return ForwardPass(part_loss(loss.call_unperturbed(module, x=x), model(x)), len(x))

    loss.backward(forward, **no_sync)
    return [p.grad.clone() for p in module.parameters() if p.grad is not None]


def work(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo",
        init_method=f"file://{folder}/store",
        rank=rank,
        world_size=WORLD,
        timeout=datetime.timedelta(seconds=60),
    )
    for method in METHODS:
        module = Net()
        before = values(list(module.parameters()))
        found = gradients(nn.parallel.DistributedDataParallel(module), module, rank, method)
        assert_all_equal(values(list(module.parameters())), before)
        torch.save(found, f"{folder}/{method}-{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("distributed")
    torch.multiprocessing.spawn(work, (str(folder),), nprocs=WORLD)
    return folder


@pytest.mark.parametrize("method", sorted(METHODS))
def test_gradients_are_the_workers_mean(folder: Any, method: str) -> None:
    found = [torch.load(folder / f"{method}-{rank}.pt") for rank in range(WORLD)]
    alone = [gradients(net, net, rank, method) for rank, net in enumerate((Net(), Net()))]
    expected = [(one + other) / 2 for one, other in zip(*alone)]
    assert len(expected) == len(list(Net().parameters()))
    assert_all_equal(found[0], found[1])
    assert_all_close(found[0], expected)
