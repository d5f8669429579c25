"""Products with the Hessian against dense float64 matrices and closed forms."""

import doctest
import subprocess
import sys
from typing import Any, Dict, Tuple

import numpy as np
import pytest
import torch
from fairseq.criterions import CRITERION_DATACLASS_REGISTRY, CRITERION_REGISTRY
from torch import Tensor, nn

from fairseq_sam.analysis.curvature import Hessian, flatten, twice_differentiable, unflatten
from fairseq_sam.analysis.dataset_loss import DatasetLoss
from fairseq_sam.criterions.float64 import preserve_float64
from tests.criterions.conftest import CASES


class TextCNN(nn.Module):
    """A convolution over embeddings, tanh, a mean over time, classes."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(9, 4)
        self.conv = nn.Conv1d(4, 5, 2)
        self.out = nn.Linear(5, 3)
        self.unused = nn.Parameter(torch.ones(2))

    def forward(self, tokens: Tensor) -> Tensor:
        hidden = torch.tanh(self.conv(self.embed(tokens).transpose(1, 2)))
        return self.out(nn.functional.dropout(hidden.mean(2), 0.3, self.training))


class FusedAttention(nn.Module):
    """Scaled dot-product attention by torch's fused kernels, where it has them."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(9, 4)
        self.projections = nn.Linear(4, 12)
        self.out = nn.Linear(4, 3)

    def forward(self, tokens: Tensor) -> Tensor:
        q, k, v = self.projections(self.embed(tokens)).unsqueeze(1).chunk(3, dim=-1)
        attend = getattr(nn.functional, "scaled_dot_product_attention", None)
        if attend is None:
            pytest.skip("this torch has no fused attention")
        return self.out(attend(q, k, v).squeeze(1).mean(1))


class Classify(nn.Module):
    """Cross entropy, summed over a mini-batch as fairseq's criterions are."""

    def forward(self, model: nn.Module, sample: Dict[str, Any]) -> Tuple[Tensor, int, dict]:
        logits = model(sample["tokens"])
        loss = nn.functional.cross_entropy(logits, sample["target"], reduction="sum")
        return loss, len(logits), {}


def labelled(size: int = 5) -> Dict[str, Any]:
    generator = torch.Generator().manual_seed(3)
    return {
        "tokens": torch.randint(9, (size, 6), generator=generator),
        "target": torch.arange(size) % 3,
    }


def fairseq_problem(case_name: str, criterion_name: str) -> DatasetLoss:
    """A tiny fairseq model with its weights spread out, so that nothing is nearly 0."""
    torch.manual_seed(0)
    case = CASES[case_name]()
    case.model.double()
    for weight in case.model.parameters():
        weight.data.add_(0.1 * torch.randn_like(weight))
    cfg = CRITERION_DATACLASS_REGISTRY[criterion_name]()
    settings = {"sentence_avg": False, "tpu": False, "label_smoothing": 0.1}
    for flag, value in settings.items():
        if hasattr(cfg, flag):
            setattr(cfg, flag, value)
    criterion = CRITERION_REGISTRY[criterion_name].build_criterion(cfg, case.task)
    return DatasetLoss(case.model, criterion, [case.collate([0, 2]), case.collate([1, 3])])


def plain_problem(model: nn.Module) -> DatasetLoss:
    sample = labelled()
    samples = [{key: value[part] for key, value in sample.items()}
               for part in (slice(0, 3), slice(3, 5))]  # fmt: skip
    return DatasetLoss(model.double(), Classify(), samples)


@twice_differentiable()
def dense_rows(dataset: DatasetLoss, rows: Any) -> np.ndarray:
    """Some rows of ∇²L by a loop over the entries of the whole gradient."""
    weights = dataset.weights
    total, size = torch.zeros((), dtype=torch.float64), 0.0
    for loss, sample_size in dataset.losses():
        total, size = total + loss, size + sample_size
    gradients = torch.autograd.grad(total / size, weights, create_graph=True, allow_unused=True)
    flat = torch.cat([(0.0 * w if g is None else g).flatten() for w, g in zip(weights, gradients)])
    found = []
    for row in rows:
        seconds = torch.autograd.grad(flat[row], weights, retain_graph=True, allow_unused=True)
        parts = [torch.zeros_like(w) if s is None else s for w, s in zip(weights, seconds)]
        found.append(torch.cat([part.flatten() for part in parts]).numpy())
    return np.stack(found)


def test_text_cnn_against_the_dense_hessian() -> None:
    torch.manual_seed(0)
    dataset = plain_problem(TextCNN())
    hessian = Hessian(dataset)
    wanted = dense_rows(dataset, range(hessian.size))
    ours = np.stack([hessian(unit) for unit in np.eye(hessian.size)])
    assert hessian.dtype == np.float64
    assert np.abs(wanted).max() > 0.01
    assert np.abs(ours - wanted).max() < 1e-12
    assert dataset.names[0] == "unused"
    assert not ours[:2].any()


def test_text_cnn_against_torch_func() -> None:
    func = pytest.importorskip("torch.func")
    torch.manual_seed(0)
    model = TextCNN()
    dataset = plain_problem(model)
    model.eval()
    sample, names = labelled(), dataset.names

    def mean_loss(*weights: Tensor) -> Tensor:
        logits = func.functional_call(model, dict(zip(names, weights)), (sample["tokens"],))
        return nn.functional.cross_entropy(logits, sample["target"])

    weights = tuple(weight.detach() for weight in dataset.weights)
    blocks = func.hessian(mean_loss, argnums=tuple(range(len(weights))))(*weights)
    vector = np.random.default_rng(0).standard_normal(sum(w.numel() for w in weights))
    parts = unflatten(vector, weights)
    wanted = [
        sum(block.reshape(w.numel(), -1) @ v.flatten() for block, v in zip(row, parts))
        for w, row in zip(weights, blocks)
    ]
    assert Hessian(dataset)(vector) == pytest.approx(torch.cat(wanted).numpy(), abs=1e-12)


def test_fused_attention_has_second_derivatives() -> None:
    torch.manual_seed(0)
    model = FusedAttention()
    dataset = plain_problem(model)
    hessian = Hessian(dataset)
    vector = np.random.default_rng(0).standard_normal(hessian.size)
    step = 1e-4
    gradients = []
    for sign in (1, -1):
        with torch.no_grad():
            for weight, part in zip(dataset.weights, unflatten(vector, dataset.weights)):
                weight += sign * step * part
        gradients.append(flatten(dataset.gradient()[1], hessian.dtype))
        with torch.no_grad():
            for weight, part in zip(dataset.weights, unflatten(vector, dataset.weights)):
                weight -= sign * step * part
    difference = (gradients[0] - gradients[1]) / (2 * step)
    assert hessian(vector) == pytest.approx(difference, abs=1e-6)


@pytest.mark.parametrize(
    ("case_name", "criterion_name"),
    [
        ("translation", "label_smoothed_cross_entropy"),
        ("lstm_lm", "cross_entropy"),
        ("classification", "sentence_prediction"),
        ("masked_lm", "masked_lm"),
    ],
)
def test_fairseq_models_against_rows_of_the_dense_hessian(
    case_name: str, criterion_name: str
) -> None:
    dataset = fairseq_problem(case_name, criterion_name)
    with preserve_float64(dataset.model):
        hessian = Hessian(dataset)
        rng = np.random.default_rng(0)
        rows = rng.choice(hessian.size, 40, replace=False)
        vector = rng.standard_normal(hessian.size)
        ours, wanted = hessian(vector)[rows], dense_rows(dataset, rows) @ vector
    assert np.abs(wanted).max() > 1e-3
    assert ours == pytest.approx(wanted, abs=1e-11)


def test_leaves_everything_as_it_was() -> None:
    model = TextCNN().train()
    dataset = plain_problem(model)
    before = flatten(dataset.weights, np.dtype(np.float64))
    dataset.weights[0].grad = torch.ones_like(dataset.weights[0])
    Hessian(dataset)(np.ones(before.size))
    assert model.training
    assert np.array_equal(flatten(dataset.weights, np.dtype(np.float64)), before)
    assert dataset.weights[0].grad.min() == 1
    assert dataset.weights[1].grad is None


def test_a_loss_that_is_linear_has_none() -> None:
    class Sum(nn.Module):
        def forward(self, model: nn.Module, sample: Dict[str, Any]) -> Tuple[Tensor, int, dict]:
            return model.weight.sum(), 1, {}

    dataset = DatasetLoss(nn.Linear(2, 2), Sum(), [{}])
    product = Hessian(dataset)(np.ones(6, np.float32))
    assert product.dtype == np.float32
    assert not product.any()


def test_infinite_weights_are_an_error() -> None:
    model = TextCNN()
    dataset = plain_problem(model)
    with torch.no_grad():
        model.out.weight[0, 0] = float("nan")
    with pytest.raises(FloatingPointError, match="not finite"):
        Hessian(dataset)(np.ones(Hessian(dataset).size))


def test_flatten_and_unflatten_are_inverse() -> None:
    tensors = [torch.randn(2, 3), torch.randn(()), torch.randn(0, 4), torch.randn(5)]
    vector = flatten(tensors, np.dtype(np.float32))
    assert vector.shape == (12,)
    for tensor, part in zip(tensors, unflatten(vector, tensors)):
        assert torch.equal(tensor, part)


@pytest.mark.parametrize("module", ["measured_spectrum", "gradient_norms"])
def test_imports_nothing_of_fairseq(module: str) -> None:
    code = (
        f"import sys, fairseq_sam.analysis.{module}; "
        "sys.exit(any(name.split('.')[0] == 'fairseq' for name in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-W", "ignore", "-c", code], timeout=120).returncode == 0


def test_examples() -> None:
    from fairseq_sam.analysis import eigenvalues, fisher, spectral_density
    from fairseq_sam.commands import checkpoint_data
    from fairseq_sam.training import parameters

    for module in (eigenvalues, fisher, spectral_density, checkpoint_data, parameters):
        result = doctest.testmod(module)
        assert result.attempted > 0
        assert result.failed == 0
