"""The network of the analytic trials and its losses on digits (GA-SAM, Appendix C.1)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fairseq_sam.analysis.digits import NUM_CLASSES, Digits, Examples
from fairseq_sam.analysis.shift import Loss, Mixture, weighted_mixture


def small_network(num_inputs: int, seed: int = 1) -> nn.Module:
    """Returns the perceptron of Appendix C.1, inputs-100-100-10, in float64."""
    generator_state = torch.get_rng_state()
    try:
        torch.manual_seed(seed)
        network = nn.Sequential(
            nn.Linear(num_inputs, 100),
            nn.Tanh(),
            nn.Linear(100, 100),
            nn.Tanh(),
            nn.Linear(100, NUM_CLASSES),
        )
    finally:
        torch.set_rng_state(generator_state)
    return network.double()


def digit_loss(network: nn.Module, examples: Examples, weight_decay: float) -> Loss:
    """Returns L: the mean cross-entropy (nats an example) plus weight_decay / 2 · ‖w‖₂²."""
    inputs, labels = examples.inputs.double(), examples.labels

    def loss() -> Tensor:
        squares = torch.stack([w.square().sum() for w in network.parameters()])
        return (
            nn.functional.cross_entropy(network(inputs), labels) + weight_decay / 2 * squares.sum()
        )

    return loss


def drawn_mixture(
    network: nn.Module, digits: Digits, weight_decay: float, generator: torch.Generator
) -> Mixture:
    """Returns η ↦ the loss on a share 1 − η of the training examples and η of the test examples.

    Drawn anew for each η, without replacement; the two parts count 1 − η and η, whatever their
    sizes. At η = 0 and 1 this is the weighted mixture. In between, the draw is itself a shift: if
    training and test set differ by chance only, the expected ‖δ‖₂² is proportional to η/n + η/n*
    (the examples left out, and those put in), so that ‖δ‖₂ grows like √η and not like η.
    """

    def mixture(share: float) -> Loss:
        parts = [
            digit_loss(network, _draw(examples, part, generator), weight_decay)
            for examples, part in ((digits.train, 1 - share), (digits.test, share))
        ]
        return weighted_mixture(*parts)(share)

    return mixture


def _draw(examples: Examples, share: float, generator: torch.Generator) -> Examples:
    count = max(1, round(share * len(examples.labels)))
    if count == len(examples.labels):
        return examples
    chosen = torch.randperm(len(examples.labels), generator=generator)[:count]
    return Examples(examples.inputs[chosen], examples.labels[chosen])
