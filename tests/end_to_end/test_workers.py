"""Several workers: each perturbs by its own gradient, and all hold the same weights."""

import subprocess
import sys

import pytest
import torch

from fairseq_sam.perturbation import METHODS
from tests.end_to_end.worker_pair import FLAGS, WorkerPair
from tests.fairseq_runs import TRAINING, TRANSLATION, USER_DIR, split


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    pair = WorkerPair(tmp_path_factory.mktemp("workers"))
    yield pair
    pair.stop()


@pytest.fixture
def two_workers(corpus, pair, tmp_path):
    """``two_workers(flags…)``: a run of two gloo processes, and the weights of each."""
    numbers = iter(range(100))

    def train(*flags):
        common = split(corpus, TRANSLATION, TRAINING, FLAGS, "--disable-validation", *flags)
        folder = tmp_path / f"workers{next(numbers)}"
        result = pair.train(*common, "--user-dir", USER_DIR, save_dir=folder)
        return result.run, result.weights

    return train


def assert_equal_on_both(weights):
    for key, weight in weights[0].items():
        assert torch.equal(weights[1][key], weight), key


@pytest.mark.parametrize(
    "flags",
    [
        pytest.param("--optimizer ga_sam --sam-rho 0.02 --sam-steps 2", marks=pytest.mark.slow),
        pytest.param(
            "--optimizer sam --criterion smart_cross_entropy --smart-mu 1 --store-ema",
            marks=pytest.mark.slow,
        ),
        pytest.param("--optimizer sam --update-freq 2 --clip-norm 0.5", marks=pytest.mark.slow),
        pytest.param(
            "--optimizer ga_sam --fp16 --fp16-no-flatten-grads --fp16-init-scale 1",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_after_20_updates_both_hold_the_same_weights(two_workers, flags):
    run, weights = two_workers(flags, "--max-update 20")
    assert run.updates() == 20
    assert run.values("perturbation_on") == [1.0] * 20
    assert_equal_on_both(weights)


@pytest.mark.parametrize(
    "method",
    [
        "sam",
        "functional_sam",
        pytest.param("ga_sam", marks=pytest.mark.slow),
        pytest.param("momentum_sam --momentum 0.9", marks=pytest.mark.slow),
    ],
)
def test_two_workers_are_two_micro_batches(two_workers, fairseq_train, method):
    """Batches of 10 of 48: in the last update the second worker has none."""
    flags = f"--base-optimizer sgd --optimizer {method} --sam-rho 0.05 --dropout 0"
    flags = f"{flags} --batch-size 10 --lr 0.5 --max-epoch 2 --save-interval 1"
    run, weights = two_workers(flags)
    alone = fairseq_train(flags, "--update-freq 2")
    assert run.updates() == alone.updates() == 6
    assert_equal_on_both(weights)
    for key, weight in alone.weights().items():
        torch.testing.assert_close(weights[0][key], weight, rtol=1e-4, atol=1e-5)
    has_sharpness = METHODS[method.partition(" ")[0]].needs_pass
    for key in ("loss", "perturbation_norm", *(("sharpness",) if has_sharpness else ())):
        assert run.values(key) == pytest.approx(alone.values(key), abs=2e-3), key


@pytest.mark.parametrize(
    "flags",
    [
        "--optimizer ga_sam --sam-steps 2",
        pytest.param(
            "--optimizer delta_sam --criterion per_sentence_cross_entropy", marks=pytest.mark.slow
        ),
        pytest.param("--optimizer ga_sam --sam-steps 2 --update-freq 2", marks=pytest.mark.slow),
        pytest.param("--optimizer sam --update-freq 2", marks=pytest.mark.slow),
    ],
)
def test_two_workers_resume_in_the_middle_of_an_epoch(two_workers, pair, flags):
    """Three updates an epoch, or two: the fifth ends none."""
    flags = f"{flags} --max-update 8 --save-interval-updates 5"
    whole, weights = two_workers(flags)
    (saved,) = whole.save_dir.glob("checkpoint_*_5.pt")
    pair.stop()  # new processes
    resumed, resumed_weights = two_workers(flags, "--restore-file", saved)
    assert "Loaded checkpoint" in resumed.output
    assert len(resumed.values("loss")) == 3
    assert_equal_on_both(resumed_weights)
    for key, weight in weights[0].items():
        assert torch.equal(resumed_weights[0][key], weight), key
    resumed.assert_same_training(whole)


DISTRIBUTED_DATA_PARALLEL = """
import sys, torch
from torch.nn.parallel import DistributedDataParallel
from fairseq_sam.perturbation import ForwardPass, SharpnessAwareLoss, method_settings

rank, folder, method = int(sys.argv[1]), sys.argv[2], sys.argv[3]
torch.distributed.init_process_group(
    "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2
)

def gradients(data, wrap):
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 1))
    model.double()
    weights = list(model.parameters())
    loss = SharpnessAwareLoss(weights, method_settings(method, rho=0.1, num_steps=2))
    wrapped = DistributedDataParallel(model) if wrap else model
    before = [w.detach().clone() for w in weights]
    for batch in data.split(5):  # the gradients of two micro-batches add up
        options = dict(no_sync=wrapped.no_sync) if wrap else {}
        loss.backward(lambda: ForwardPass(wrapped(batch).square().sum(), 5), **options)
    assert all(torch.equal(w, b) for w, b in zip(weights, before))
    return torch.cat([w.grad.flatten() for w in weights])

torch.manual_seed(1)
data = torch.randn(2, 10, 3, dtype=torch.float64)
together = gradients(data[rank], wrap=True)
alone = [gradients(part, wrap=False) for part in data]
torch.testing.assert_close(together, (alone[0] + alone[1]) / 2)
gathered = [torch.empty_like(together) for _ in range(2)]
torch.distributed.all_gather(gathered, together)
assert torch.equal(gathered[0], gathered[1])
"""


@pytest.mark.parametrize("method", [pytest.param("sam", marks=pytest.mark.slow), "ga_sam"])
def test_torchs_own_data_parallel_averages_sharpness_aware_gradients(tmp_path, method):
    """fairseq's default backend, which fairseq cannot run on a CPU."""
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", DISTRIBUTED_DATA_PARALLEL, str(rank), str(tmp_path), method],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=str(USER_DIR.parent),
        )
        for rank in range(2)
    ]
    outputs = [worker.communicate(timeout=120)[0] for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0], "\n".join(outputs)
