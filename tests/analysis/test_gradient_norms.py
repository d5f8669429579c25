"""Gradient norms and scales against the same written out, and the key-bias trap."""

import math
from typing import Any, Dict, List, Tuple

import pytest
import torch
from torch import Tensor, nn

from fairseq_sam.analysis.dataset_loss import DatasetLoss
from fairseq_sam.analysis.gradient_norms import GradientNorms, TensorNorms, by_layer
from fairseq_sam.perturbation import SharpnessAwareLoss, method_settings
from fairseq_sam.perturbation.ascent import MEMORYLESS
from fairseq_sam.training.parameters import layer_of
from tests.analysis.test_curvature import TextCNN, fairseq_problem, plain_problem


def measured(dataset: DatasetLoss) -> List[TensorNorms]:
    norms = GradientNorms(dataset)
    assert sum(1 for _ in norms.measure()) == len(dataset.samples)
    return norms.tensors()


def batch_gradients(dataset: DatasetLoss) -> Tuple[List[List[Any]], List[float]]:
    gradients, sizes = [], []
    for loss, size in dataset.losses():
        gradients.append(torch.autograd.grad(loss, dataset.weights, allow_unused=True))
        sizes.append(size)
    return gradients, sizes


def test_norms_are_those_written_out() -> None:
    torch.manual_seed(0)
    dataset = plain_problem(TextCNN())
    gradients, sizes = batch_gradients(dataset)
    tensors = {tensor.name: tensor for tensor in measured(dataset)}
    assert len(sizes) == 2
    assert sizes[0] != sizes[1]
    assert list(tensors) == dataset.names[1:]
    for index, name in enumerate(dataset.names):
        if name == "unused":
            continue
        squares = [float((g[index] / n).square().sum()) for g, n in zip(gradients, sizes)]
        total = sum(g[index] for g in gradients) / sum(sizes)
        assert tensors[name].batch_norm == pytest.approx(math.sqrt(sum(squares) / 2), rel=1e-12)
        assert tensors[name].mean_norm == pytest.approx(float(total.norm()), rel=1e-12)
        assert tensors[name].size == total.numel()


def test_scales_are_their_formulas() -> None:
    torch.manual_seed(0)
    tensors = measured(plain_problem(TextCNN()))
    num_weights = sum(tensor.size for tensor in tensors)
    for tensor in tensors:
        w, g, size = tensor.weight_norm, tensor.batch_norm, tensor.size
        wanted = {
            "none": 1.0,
            "weight": w,
            "weight-over-gradient": w / g,
            "gradient-strength": math.sqrt(size) / (g * math.sqrt(num_weights)),
            "inverse-gradient": 1 / g,
            "weight-strength": w / math.sqrt(size),
        }
        assert set(wanted) == set(MEMORYLESS), "the formula of a new scale is to stand here too"
        assert tensor.scales == pytest.approx(wanted)
        assert tensor.unfloored == pytest.approx(wanted)
        assert not tensor.is_noise


def test_key_bias_is_told_from_the_rest() -> None:
    dataset = fairseq_problem("translation", "label_smoothed_cross_entropy")
    dataset.model.float()
    tensors = measured(dataset)
    noise = [tensor for tensor in tensors if tensor.is_noise]
    assert [tensor.name for tensor in noise] == [
        tensor.name for tensor in tensors if tensor.name.endswith("k_proj.bias")
    ]
    assert len(noise) == 6
    largest = max(tensor.scales["gradient-strength"] for tensor in tensors)
    for tensor in noise:
        assert tensor.scales["gradient-strength"] == 0
        assert tensor.unfloored["gradient-strength"] > 1e3 * largest
        assert tensor.scales["weight"] == tensor.unfloored["weight"] > 0


class _BehindAGate(nn.Module):
    """A layer that is all but shut off, beside the bias of keys, whose gradient is noise."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.behind = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8)
        self.out = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        attention = torch.softmax(self.q(x) @ self.k(x).transpose(1, 2), -1)
        hidden = x + attention @ x + 1e-6 * torch.tanh(self.behind(x))
        out: Tensor = self.out(hidden.mean(1))
        return out


class _SummedLoss(nn.Module):
    def forward(self, model: nn.Module, sample: Dict[str, Any]) -> Tuple[Tensor, int, dict]:
        loss = nn.functional.cross_entropy(model(sample["x"]), sample["y"], reduction="sum")
        return loss, len(sample["y"]), {}


def test_scales_and_noise_are_those_of_training() -> None:
    torch.manual_seed(0)
    model = _BehindAGate()
    sample = {"x": torch.randn(16, 5, 8), "y": torch.randint(3, (16,))}
    dataset = DatasetLoss(model, _SummedLoss(), [sample])
    tensors = {tensor.name: tensor for tensor in measured(dataset)}
    settings = method_settings("ga_sam", rho=1e-6, num_steps=2)
    trained = SharpnessAwareLoss(dataset.weights, settings, modules=[model]).weights
    trained.ascend(dataset.gradient()[1])
    in_training = dict(zip(dataset.names, trained._scale[0].tolist()))
    assert {name for name, tensor in tensors.items() if tensor.is_noise} == {"k.bias"}
    assert {name for name, scale in in_training.items() if scale == 0} == {"k.bias"}
    for name, tensor in tensors.items():
        assert tensor.scales["gradient-strength"] == pytest.approx(in_training[name], rel=1e-4)


def test_layers_add_up() -> None:
    tensors = measured(fairseq_problem("translation", "label_smoothed_cross_entropy"))
    layers = by_layer(tensors)
    names = [layer.name for layer in layers]
    assert {"encoder.layers.0", "encoder.layers.1", "decoder.layers.1"} <= set(names)
    assert len(set(names)) == len(names)
    assert sum(layer.size for layer in layers) == sum(tensor.size for tensor in tensors)
    for name in ("batch_norm", "mean_norm"):
        whole = sum(getattr(layer, name) ** 2 for layer in layers)
        assert whole == pytest.approx(sum(getattr(tensor, name) ** 2 for tensor in tensors))
    first = layers[0]
    assert first.strength == pytest.approx(first.batch_norm / math.sqrt(first.size))


def test_gradients_of_others_stay() -> None:
    dataset = plain_problem(TextCNN())
    dataset.weights[1].grad = torch.ones_like(dataset.weights[1])
    measured(dataset)
    assert dataset.weights[1].grad.min() == 1
    assert dataset.weights[2].grad is None


def test_infinite_gradients_are_an_error() -> None:
    dataset = plain_problem(TextCNN())
    with torch.no_grad():
        dataset.weights[-1][0] = float("nan")
    with pytest.raises(FloatingPointError, match=r"gradient of .* is not finite"):
        measured(dataset)


def test_a_loss_without_gradients() -> None:
    class Constant(nn.Module):
        def forward(self, model: nn.Module, sample: Dict[str, Any]) -> Tuple[Tensor, int, dict]:
            return 0.0 * model.weight.sum(), 1, {}

    tensors = measured(DatasetLoss(nn.Linear(2, 2), Constant(), [{}]))
    assert [tensor.batch_norm for tensor in tensors] == [0.0]
    assert tensors[0].scales["inverse-gradient"] == 0.0


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("decoder.layers.11.fc1.bias", "decoder.layers.11"),
        ("encoder.sentence_encoder.layers.2.fc1.bias", "encoder.sentence_encoder.layers.2"),
        ("encoder.lstm.weight_ih_l0", "encoder.lstm"),
        ("classification_heads.my_head.dense.weight", "classification_heads.my_head.dense"),
        ("bias", "bias"),
    ],
)
def test_layer_of(name: str, layer: str) -> None:
    assert layer_of(name) == layer
