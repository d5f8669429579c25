"""Buffers, attributes and weights that a pass changes: each pass starts as the first one did."""

import copy
import warnings
from collections import Counter as Counts
from types import SimpleNamespace
from typing import Any, Callable, Dict, List, Type

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fairseq_sam.perturbation import ForwardPass, SharpnessAwareLoss, method_settings
from fairseq_sam.perturbation.replay import Holders, Replay
from tests.perturbation import reference
from tests.perturbation.small_net import (
    assert_all_close,
    assert_all_equal,
    batch,
    forward_pass,
    gradients_of,
    summed_loss,
    values,
)
from tests.perturbation.test_interruptions import RaisesInBackward

every_risk = pytest.mark.parametrize("risk", ["perturbed", "mean"])
every_step = pytest.mark.parametrize("num_steps", [1, 2, 3])


class Counter(nn.Module):
    """A buffer that is changed in place; what comes out depends on it, as below."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("count", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.count += 1
        return x * (1 + 0.1 * self.count)


class Centroids(nn.Module):
    """A buffer that forward binds anew, as k-means quantisers do."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("means", torch.linspace(-1, 1, 12).reshape(3, 4))

    def forward(self, x: Tensor) -> Tensor:
        nearest = torch.cdist(x.detach(), self.means).argmin(dim=1)
        code = self.means[nearest]
        share = torch.nn.functional.one_hot(nearest, 3).to(x) / len(x)
        self.means = 0.7 * self.means + share.T @ x.detach()
        return x + code


class Calls(nn.Module):
    """A plain attribute that counts."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return x / self.calls


class Memory(nn.Module):
    """Remembers the batch before, from the second batch on."""

    def __init__(self) -> None:
        super().__init__()
        self._mems: Any = None

    def forward(self, x: Tensor) -> Tensor:
        before, self._mems = self._mems, x.detach()
        return x if before is None else x + 0.5 * before


class LateAttribute(nn.Module):
    """An attribute that there is not before the first pass."""

    def forward(self, x: Tensor) -> Tensor:
        self.seen = getattr(self, "seen", 0) + 1
        return x / self.seen


class Queue(nn.Module):
    """Tensors in a container that forward writes into."""

    def __init__(self, kind: Callable[[List[Tensor]], Any]) -> None:
        super().__init__()
        self.queue = kind([torch.zeros(4), torch.ones(4)])

    def forward(self, x: Tensor) -> Tensor:
        queue = list(self.queue.values() if isinstance(self.queue, dict) else self.queue)
        out = x + queue[0] * queue[1]
        queue[0].copy_(queue[1])
        queue[1].add_(x.detach().mean(dim=0))
        return out


class Notes(nn.Module):
    """Lists and numbers deep in a dictionary, and an array."""

    def __init__(self) -> None:
        super().__init__()
        self.notes: Any = {"calls": [0], "by layer": ({"sum": 1.0},)}
        self.shares = np.ones(4)

    def forward(self, x: Tensor) -> Tensor:
        self.notes["calls"].append(len(self.notes["calls"]))
        self.notes["by layer"][0]["sum"] += 1
        self.shares *= 0.5
        scale = len(self.notes["calls"]) / self.notes["by layer"][0]["sum"] + self.shares.sum()
        return x * scale


class FirstInFirstOut(nn.Module):
    """Forgets the entry that came first, of three."""

    def __init__(self) -> None:
        super().__init__()
        self.shares: Dict[int, float] = {0: 1.0, 1: 2.0, 2: 3.0}

    def forward(self, x: Tensor) -> Tensor:
        share = self.shares.pop(next(iter(self.shares)))
        self.shares[max(self.shares) + 1] = share + 0.5
        return x * share


def double_(module: nn.Module, _: Any) -> None:
    """As --quant-noise-pq: writes the weight before each forward pass, and leaves it written."""
    module.weight.data = 1.5 * module.weight


def hooked() -> nn.Module:
    layer = nn.Linear(4, 4)
    layer.register_forward_pre_hook(double_)
    return layer


class Decaying(nn.Linear):
    """A weight that forward writes, of which no hook tells."""

    def forward(self, x: Tensor) -> Tensor:
        self.weight.data.mul_(0.9)
        return super().forward(x)


class Shortened(nn.Module):
    """A lookup that shortens the rows which are too long."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(3, 4, max_norm=0.5)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.table(torch.arange(len(x)) % 3)


KINDS: Dict[str, Callable[[], nn.Module]] = {
    "buffer": Counter,
    "re-bound buffer": Centroids,
    "attribute": Calls,
    "memory": Memory,
    "late attribute": LateAttribute,
    "list of tensors": lambda: Queue(list),
    "tuple of tensors": lambda: Queue(tuple),
    "dictionary of tensors": lambda: Queue(lambda each: dict(enumerate(each))),
    "deep in containers, and an array": Notes,
    "the order of a dictionary": FirstInFirstOut,
    "spectral norm": lambda: nn.utils.parametrizations.spectral_norm(nn.Linear(4, 4)),
    "old spectral norm": lambda: nn.utils.spectral_norm(nn.Linear(4, 4)),
    "weights written by a hook": hooked,
    "weights written by forward": lambda: Decaying(4, 4),
    "rows shortened by a lookup": Shortened,
}
every_kind = pytest.mark.parametrize("kind", list(KINDS))


def network(kind: str, used: bool = True) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(5, 4), nn.Tanh(), KINDS[kind](), nn.Linear(4, 3)).double()
    if used:
        with torch.no_grad():
            net(inputs(seed=7))
    return net


def inputs(seed: int = 1) -> Tensor:
    return batch(seed)[:, 0]


def state_of(net: nn.Module) -> Dict[str, Any]:
    """Copies of all buffers and of what the attributes hold: numbers, tensors, arrays or None."""
    state: Dict[str, Any] = {}
    for name, module in net.named_modules():
        own = [key for key in vars(module) if key not in vars(nn.Module())]
        held = {**module._buffers, **{key: vars(module)[key] for key in own}}
        note_values(held, name, state)
    return state


def note_values(value: Any, name: str, state: Dict[str, Any]) -> None:
    if isinstance(value, Tensor):
        state[name] = value.detach().clone()
    elif isinstance(value, np.ndarray):
        state[name] = torch.tensor(value)
    elif value is None or isinstance(value, (int, float)):
        state[name] = value
    elif isinstance(value, (list, tuple, dict)):
        if isinstance(value, dict):
            state[f"{name} in order"] = tuple(value)
        entries = value.items() if isinstance(value, dict) else enumerate(value)
        for key, entry in entries:
            note_values(entry, f"{name}.{key}", state)


def assert_same_state(ours: Dict[str, Any], theirs: Dict[str, Any]) -> None:
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        if isinstance(value, Tensor):
            assert torch.equal(ours[name], value), name
        else:
            assert ours[name] == value, name


def noting_state(
    forward: Callable[[], ForwardPass], net: nn.Module, seen: List[Dict[str, Any]]
) -> Callable[[], ForwardPass]:
    def noting() -> ForwardPass:
        seen.append(state_of(net))
        return forward()

    return noting


def gradient_of_copies(net: nn.Module, x: Tensor) -> Callable[[List[Tensor]], List[Any]]:
    """Returns the function from weights to gradients, each from a copy of the net as it is."""
    net = copy.deepcopy(net)

    def gradients(weights: List[Tensor]) -> List[Any]:
        each = copy.deepcopy(net)
        with torch.no_grad():
            for parameter, weight in zip(each.parameters(), weights):
                parameter.copy_(weight)
        summed_loss(each, x).backward()
        return gradients_of(list(each.parameters()))

    return gradients


@every_kind
@every_risk
@every_step
@pytest.mark.parametrize("used", [True, False])
def test_every_pass_starts_from_the_same_state(used: bool, num_steps: int, risk: str, kind: str):
    """The gradient is that of a network which has a copy for each pass."""
    net, x = network(kind, used), inputs()
    plain = copy.deepcopy(net)
    parameters = list(net.parameters())
    parts = {"norm": "l2", "scale": "weight", "granularity": "layer", "risk": risk}
    parts.update(rho=0.3, num_steps=num_steps)
    expected, path = reference.sharpness_aware_gradient(
        gradient_of_copies(net, x), parameters, **parts
    )
    seen: List[Dict[str, Any]] = []
    start = state_of(net)
    sharpness_aware = SharpnessAwareLoss(parameters, method_settings("sam", **parts), modules=[net])
    outcome = sharpness_aware.backward(noting_state(forward_pass(net, x), net, seen))
    assert len(seen) == num_steps + 1
    for each in seen:
        assert_same_state(each, start)
    assert float(outcome.norm) == pytest.approx(float(reference.flat(path[-1]).norm()), rel=1e-10)
    assert_all_close(gradients_of(parameters), expected)

    assert float(outcome.clean.loss) == summed_loss(plain, x).item()
    assert_same_state(state_of(net), state_of(plain))
    assert_all_equal(values(parameters), values(plain.parameters()))


@every_kind
@every_risk
@every_step
def test_updates_in_a_row_leave_what_plain_passes_leave(num_steps: int, risk: str, kind: str):
    net = network(kind)
    plain = copy.deepcopy(net)
    parameters = list(net.parameters())
    settings = method_settings("ga_sam", rho=1e-3, num_steps=num_steps, risk=risk)
    sharpness_aware = SharpnessAwareLoss(parameters, settings, modules=[net])
    for update in range(3):
        x = inputs(seed=update)
        outcome = sharpness_aware.backward(forward_pass(net, x))
        assert float(outcome.clean.loss) == summed_loss(plain, x).item()
        assert_same_state(state_of(net), state_of(plain))
        assert_all_equal(values(parameters), values(plain.parameters()))


@every_kind
@pytest.mark.parametrize("starts_at_rest", [True, False])
def test_without_a_pass_at_w_updates_leave_what_plain_passes_leave(starts_at_rest: bool, kind: str):
    """Momentum's step has no pass at w that could find what passes write into."""
    net = network(kind)
    plain = copy.deepcopy(net)
    parameters = list(net.parameters())
    with torch.random.fork_rng():
        torch.manual_seed(3)
        momentum = [torch.randn_like(weight) for weight in parameters]
    settings = method_settings("momentum_sam", rho=0.3)
    sharpness_aware = SharpnessAwareLoss(parameters, settings, modules=[net])
    for update in range(3):
        x = inputs(seed=update)
        known = [None] * len(momentum) if starts_at_rest and update == 0 else momentum
        outcome = sharpness_aware.backward(forward_pass(net, x), momentum=known)
        summed_loss(plain, x)
        assert_all_equal(values(parameters), values(plain.parameters()))
        assert (float(outcome.norm) > 0) == (known is momentum)


@every_kind
def test_mini_batches_that_share_an_ascent_leave_what_plain_passes_leave(kind: str):
    net = network(kind)
    plain = copy.deepcopy(net)
    parameters = list(net.parameters())
    settings = method_settings("sam", rho=0.3, ascent_share=0.5)
    sharpness_aware = SharpnessAwareLoss(parameters, settings, modules=[net])
    for update in range(6):
        x = inputs(seed=update)
        outcome = sharpness_aware.backward(forward_pass(net, x), update_size=2)
        summed_loss(plain, x)
        assert_all_equal(values(parameters), values(plain.parameters()))
        assert float(outcome.norm) > 0
        if update % 2:
            for parameter in parameters:
                parameter.grad = None


@every_kind
def test_looking_at_the_outputs_first_leaves_what_a_plain_pass_leaves(kind: str):
    net = network(kind)
    plain = copy.deepcopy(net)
    parameters = list(net.parameters())
    settings = method_settings("functional_sam", rho=1e-3, ascent_fraction=0.5)
    sharpness_aware = SharpnessAwareLoss(parameters, settings, modules=[net])
    for update in range(3):
        x = inputs(seed=update)
        outcome = sharpness_aware.backward(forward_pass(net, x), part=forward_pass(net, x))
        assert float(outcome.clean.loss) == summed_loss(plain, x).item()
        assert_same_state(state_of(net), state_of(plain))
        assert_all_equal(values(parameters), values(plain.parameters()))


@every_kind
@every_risk
@pytest.mark.parametrize("weighting", ["published", "draft"])
def test_probes_leave_no_trace(weighting: str, risk: str, kind: str):
    net, x = network(kind), inputs()
    plain, seen = copy.deepcopy(net), []
    start = state_of(net)

    def per_sentence() -> ForwardPass:
        losses = nn.functional.cross_entropy(net(x), torch.arange(len(x)) % 3, reduction="none")
        return ForwardPass(losses.sum(), len(x), None, losses)

    settings = method_settings("delta_sam", weighting=weighting, rho=0.1, risk=risk, num_steps=2)
    sharpness_aware = SharpnessAwareLoss(list(net.parameters()), settings, modules=[net])
    sharpness_aware.backward(
        noting_state(forward_pass(net, x), net, seen),
        per_sentence=noting_state(per_sentence, net, seen),
    )
    assert len(seen) == (5 if weighting == "published" else 4)
    for each in seen:
        assert_same_state(each, start)
    summed_loss(plain, x)
    assert_same_state(state_of(net), state_of(plain))
    assert_all_equal(values(net.parameters()), values(plain.parameters()))


@every_kind
@every_risk
@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError])
@pytest.mark.parametrize("where", ["forward", "backward"])
@pytest.mark.parametrize("at_pass", [0, 1, 2])
def test_a_pass_that_raises_leaves_the_state_in_place(
    at_pass: int, where: str, error: Type[BaseException], risk: str, kind: str
):
    """Before the first pass has ended that is the state before it, and then the state after it."""
    net, x = network(kind), inputs()
    expected = copy.deepcopy(net)
    for _ in range(2 if at_pass > 0 else 1):  # a whole step, and this one
        summed_loss(expected, x)
    parameters, calls = list(net.parameters()), []

    def forward() -> ForwardPass:
        calls.append(1)
        loss = summed_loss(net, x)
        if len(calls) - 1 == at_pass:
            if where == "forward":
                raise error("stop here")
            loss = RaisesInBackward.apply(loss, error("stop here"))
        return ForwardPass(loss, len(x))

    settings = method_settings("sam", rho=0.3, risk=risk, num_steps=2)
    sharpness_aware = SharpnessAwareLoss(parameters, settings, modules=[net])
    sharpness_aware.backward(forward_pass(net, x))
    with pytest.raises(error, match="stop here"):
        sharpness_aware.backward(forward)
    assert_same_state(state_of(net), state_of(expected))
    assert_all_equal(values(parameters), values(expected.parameters()))


def test_modules_without_weights_of_their_own_count_too():
    """A criterion's counter beside the model's."""
    net, criterion, x = network("buffer"), Counter(), inputs()

    def forward() -> ForwardPass:
        return ForwardPass(criterion(summed_loss(net, x)), len(x))

    settings = method_settings("sam", rho=0.3, num_steps=2)
    SharpnessAwareLoss(list(net.parameters()), settings, modules=[net, criterion]).backward(forward)
    assert (float(net[2].count), float(criterion.count)) == (2, 1)


class Seen(List[bool]):
    """A list that is no part of the state that the passes of a step share."""


class FirstBuffer(nn.Module):
    """A buffer that there is none of before the first pass."""

    def __init__(self, declared: bool) -> None:
        super().__init__()
        self.found: List[bool] = Seen()
        if declared:
            self.register_buffer("memory", None)

    def forward(self, x: Tensor) -> Tensor:
        found = self._buffers.get("memory") is not None
        self.found.append(found)
        if found:
            x = x + 0.5 * self.memory
        else:
            self.register_buffer("memory", x.detach())
        return x


@pytest.mark.parametrize("declared", [True, False])
def test_a_buffer_that_comes_with_the_first_pass(declared: bool):
    layer, x = FirstBuffer(declared), inputs()
    net = nn.Sequential(nn.Linear(5, 4).double(), layer, nn.Linear(4, 3).double())
    settings = method_settings("sam", rho=0.3, num_steps=2)
    SharpnessAwareLoss(list(net.parameters()), settings, modules=[net]).backward(
        forward_pass(net, x)
    )
    assert layer.found == [False] * 3
    assert torch.equal(layer.memory, net[0](x))


class Alias(nn.Module):
    """A plain attribute that is the weight's memory, as torch's old spectral norm has at first."""

    def __init__(self, form: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([3.0, 4.0]))
        self.alias = form(self.weight.data)


FORMS = {
    "tensor": lambda weight: weight.view(2, 1),
    "array": lambda weight: weight.numpy()[1:],
    "list": lambda weight: [weight.view(2, 1), weight.numpy()],
}


@pytest.mark.parametrize("form", list(FORMS))
@pytest.mark.parametrize("method", ["sam", "momentum_sam"])
def test_another_name_of_a_weight_takes_no_perturbation_back(method: str, form: str) -> None:
    model = Alias(FORMS[form])
    settings = method_settings(method, rho=0.5)
    sharpness_aware = SharpnessAwareLoss([model.weight], settings, modules=[model])
    sharpness_aware.backward(
        lambda: ForwardPass(0.5 * model.weight.square().sum()), momentum=[-torch.tensor([3.0, 4.0])]
    )
    assert model.weight.grad is not None
    assert model.weight.grad.tolist() == pytest.approx([3.3, 4.4])
    assert model.weight.tolist() == [3.0, 4.0]


@pytest.mark.parametrize("settings", [{"direction": "momentum"}, {"ascent_fraction": 0.5}])
def test_weights_that_stay_are_told_once(settings: Dict[str, Any], caplog: Any) -> None:
    """What a pass writes cannot be told from a perturbation where no pass at w is the last."""
    net = network("weights written by a hook")
    trained = list(net.parameters())
    loss = SharpnessAwareLoss(trained, method_settings("sam", **settings), modules=[net])
    momentum = [torch.ones_like(weight) for weight in trained]
    for _ in range(2):
        part = forward_pass(net, inputs()[:3])
        loss.backward(forward_pass(net, inputs()), part=part, momentum=momentum)
    told = [record.getMessage() for record in caplog.records]
    assert len(told) == 1
    assert told[0].startswith("2 of 6 trained weights are not perturbed")


class Table(dict):
    """A dictionary that passes do not change, and that holds what holds it."""


def test_what_is_only_held_stays_as_it_is(tmp_path: Any) -> None:
    """A cycle, a count, a file's memory, which cannot be written, and one value expanded."""
    np.ones(3).tofile(tmp_path / "values")
    model = Alias(lambda weight: None)
    parent = Table(child=Table())
    parent["child"]["parent"] = parent
    model.table = [parent]
    model.counts = Counts("aab")
    mapped = np.memmap(tmp_path / "values", mode="r", shape=3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it cannot be written
        model.values = (torch.from_numpy(mapped), mapped, np.broadcast_to(1.0, (2**20, 2**20)))
    settings = method_settings("sam", rho=0.5)
    sharpness_aware = SharpnessAwareLoss([model.weight], settings, modules=[model])
    sharpness_aware.backward(lambda: ForwardPass(0.5 * model.weight.square().sum()))
    assert model.weight.grad is not None
    assert model.weight.grad.tolist() == pytest.approx([3.3, 4.4])
    assert model.counts == {"a": 2, "b": 1}


def test_what_happens_once_stays_for_the_later_passes() -> None:
    """As set_num_updates of a task that calls it within its step."""
    notes, task = Notes(), SimpleNamespace(updates=0, history=[0])

    def update() -> None:
        notes.notes["calls"].append(7)
        notes.notes["by layer"][0]["sum"] = 5.0
        notes.shares[0] = 9.0
        task.updates = 1
        task.history = [*task.history, 1]

    replay = Replay(Holders.among([notes, task]), [])
    for number in range(3):
        with replay.one_pass():
            if number == 0:
                replay.once(update)
            assert notes.notes == {"calls": [0, 7], "by layer": ({"sum": 5.0},)}
            assert notes.shares.tolist() == [9, 1, 1, 1]
            assert (task.updates, task.history) == (1, [0, 1])
            notes(torch.ones(4))
            task.history.append(2)
    replay.finish()
    assert notes.notes == {"calls": [0, 7, 2], "by layer": ({"sum": 6.0},)}
    assert notes.shares.tolist() == [4.5, 0.5, 0.5, 0.5]
    assert (task.updates, task.history) == (1, [0, 1, 2])


def test_a_tasks_tables_are_left_alone() -> None:
    """It would take longer than the step to look through them."""
    task = SimpleNamespace(words=[[0] for _ in range(2000)])
    replay = Replay(Holders.among([task]), [])
    for _ in range(2):
        with replay.one_pass():
            task.words.append([1])
            task.words[0][0] += 1
    replay.finish()
    assert (len(task.words), task.words[0]) == (2002, [2])
