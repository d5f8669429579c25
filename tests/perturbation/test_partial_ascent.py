"""An ascent that sees a part of the batch (``ascent_fraction``)."""

import copy
from typing import Any, Callable, List, Optional

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fairseq_sam.perturbation import ForwardPass, SharpnessAwareLoss, method_settings
from fairseq_sam.perturbation.outputs import OutputsBypassed
from tests.perturbation.small_net import (
    SmallNet,
    assert_all_close,
    assert_all_equal,
    batch,
    forward_pass,
    gradient_at,
    gradients_of,
    summed_loss,
    values,
    watching,
)
from tests.perturbation.test_delta_sam import losses_of, per_sentence
from tests.perturbation.test_functional import by_hand, cross_entropy

METHODS = ["sam", "asam", "layer_sam", "vasso", "friendly_sam"]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("num_steps", [1, 3])
@pytest.mark.parametrize("share", [None, 0.1])
def test_the_perturbation_is_that_of_the_part_and_the_gradient_that_of_all(
    method: str, num_steps: int, share: Optional[float]
):
    net, twin, x = SmallNet(), SmallNet(), batch()
    part = x[::3]
    parts = {"num_steps": num_steps, "share": share}
    seen: List[List[Tensor]] = []
    ours = method_settings(method, ascent_fraction=1 / 3, **parts)
    outcome = SharpnessAwareLoss(list(net.parameters()), ours).backward(
        watching(forward_pass(net, x), list(net.parameters()), seen), part=forward_pass(net, part)
    )
    alone: List[List[Tensor]] = []
    SharpnessAwareLoss(list(twin.parameters()), method_settings(method, **parts)).backward(
        watching(forward_pass(twin, part), list(twin.parameters()), alone)
    )
    assert len(seen) == 1
    assert_all_equal(seen[0], alone[-1])
    assert_all_close(gradients_of(net.parameters()), gradient_at(net, x)(seen[0]), rtol=1e-12)
    assert outcome.clean is None
    assert outcome.perturbed.sample_size == len(x)


def test_masks_buffers_and_random_states_are_those_of_the_pass_on_all():
    net, twin, x = (*(SmallNet(dropout=0.4, batch_norm=True) for _ in range(2)), batch())
    for model in (net, twin):
        torch.manual_seed(3)
        if model is net:
            settings = method_settings("sam", rho=1e-12, ascent_fraction=0.5)
            loss = SharpnessAwareLoss(list(net.parameters()), settings, modules=[net])
            loss.backward(forward_pass(net, x), part=forward_pass(net, x[::2]))
            state = torch.get_rng_state()
        else:
            summed_loss(twin, x).backward()
    assert torch.equal(state, torch.get_rng_state())
    assert_all_close(gradients_of(net.parameters()), gradients_of(twin.parameters()), rtol=1e-9)
    assert_all_close(list(net.buffers()), list(twin.buffers()), rtol=1e-9)
    assert int(net.norm.num_batches_tracked) == 1


@pytest.mark.parametrize("weighting", ["published", "draft"])
def test_weights_of_sentences_are_those_of_the_part(weighting: str):
    net, twin, x = SmallNet(), SmallNet(), batch()
    part, results = x[::2], []
    for model, fraction in ((net, 0.5), (twin, 1.0)):
        seen: List[List[Tensor]] = []
        torch.manual_seed(5)
        settings = method_settings("delta_sam", weighting=weighting, ascent_fraction=fraction)
        whole = x if fraction < 1 else part
        SharpnessAwareLoss(list(model.parameters()), settings).backward(
            watching(forward_pass(model, whole), list(model.parameters()), seen),
            per_sentence=per_sentence(model, part),
            probe=lambda model=model: losses_of(model, part),
            part=forward_pass(model, part),
        )
        results.append(seen[-1])
    assert_all_equal(results[0], results[1])


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_the_functional_risk_takes_u_of_all_from_a_pass_without_graph(dropout: float):
    net, x = SmallNet(dropout=dropout), batch()
    twin, with_graph = copy.deepcopy(net), []

    def forward() -> ForwardPass:
        return ForwardPass(cross_entropy(net(x)), len(x))

    def of_part() -> ForwardPass:
        return ForwardPass(cross_entropy(net(x[::3])), 2)

    net.hidden.register_forward_hook(lambda *_: with_graph.append(torch.is_grad_enabled()))
    seen: List[List[Tensor]] = []
    settings = method_settings("functional_sam", share=0.1, ascent_fraction=1 / 3)
    loss = SharpnessAwareLoss(list(net.parameters()), settings, modules=[net])
    state = torch.get_rng_state()
    outcome = loss.backward(watching(forward, list(net.parameters()), seen), part=of_part)
    torch.set_rng_state(state)
    assert_all_equal(seen[0], values(twin.parameters()))
    assert with_graph == [False, True, True]
    expected = by_hand(twin, x, seen[-1], cross_entropy)
    assert_all_close(gradients_of(net.parameters()), expected, rtol=1e-12)
    torch.set_rng_state(state)
    assert float(outcome.clean.loss) == float(cross_entropy(twin(x)).detach())
    assert torch.is_grad_enabled()


@pytest.mark.parametrize("weighting", ["uniform", "published", "draft"])
def test_under_the_functional_risk_too_a_share_is_one_of_the_parts_loss(weighting: str):
    x, found = batch(), []
    for risk in ("perturbed", "functional"):
        net = SmallNet()
        torch.manual_seed(5)
        settings = method_settings(
            "sam", share=0.1, risk=risk, weighting=weighting, ascent_fraction=0.5
        )
        outcome = SharpnessAwareLoss(list(net.parameters()), settings, modules=[net]).backward(
            lambda net=net: ForwardPass(cross_entropy(net(x)), len(x)),
            per_sentence=per_sentence(net, x[::2]),
            probe=lambda net=net: losses_of(net, x[::2]),
            part=forward_pass(net, x[::2]),
        )
        found.append((float(outcome.rho), float(outcome.norm)))
    assert found[0] == pytest.approx(found[1], rel=1e-12)


class Counting(nn.Module):
    """A layer that counts its passes, and notes the count and a number of numpy's in each."""

    def __init__(self, note: Callable[[Any], None]) -> None:
        super().__init__()
        self.layer, self.note = nn.Linear(5, 3).double(), note
        self.register_buffer("count", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.note((float(self.count), np.random.rand()))
        self.count += 1
        return self.layer(x[:, 0])


def test_all_passes_begin_alike_where_the_functional_risk_comes_before_the_probes():
    seen: List[Any] = []
    net, x = Counting(lambda each: seen.append(each)), batch()
    settings = method_settings("delta_sam", risk="functional", ascent_fraction=0.5)
    SharpnessAwareLoss(list(net.parameters()), settings, modules=[net]).backward(
        forward_pass(net, x),
        per_sentence=per_sentence(net, x[::2]),
        probe=lambda: losses_of(net, x[::2]),
        part=forward_pass(net, x[::2]),
    )
    assert len(seen) == 5
    assert len(set(seen)) == 1


def test_a_loss_past_the_outputs_is_refused_without_a_graph_too():
    net, own, x = SmallNet(), nn.Linear(3, 3).double(), batch()
    weights = [*net.parameters(), *own.parameters()]
    settings = method_settings("functional_sam", ascent_fraction=0.5)
    loss = SharpnessAwareLoss(weights, settings, modules=[net, own])

    def forward(x: Tensor) -> Any:
        return lambda: ForwardPass(cross_entropy(own(net(x))), len(x))

    with pytest.raises(OutputsBypassed):
        loss.backward(forward(x), part=forward(x[::2]))
    assert all(weight.grad is None for weight in weights)


def test_the_part_has_to_be_given():
    net = SmallNet()
    loss = SharpnessAwareLoss(list(net.parameters()), method_settings("sam", ascent_fraction=0.5))
    with pytest.raises(ValueError, match="ascent_fraction"):
        loss.backward(forward_pass(net, batch()))


@pytest.mark.parametrize("parts", [{"risk": "mean"}, {"per_instance": True}])
def test_what_trains_on_the_ascent_is_refused(parts: Any):
    with pytest.raises(ValueError, match="ascent_fraction is"):
        method_settings("sam", ascent_fraction=0.5, **parts)
