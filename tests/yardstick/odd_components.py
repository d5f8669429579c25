"""Models and tasks that keep their state in less usual places, registered as ``yardstick_…``."""

import collections
import contextlib
import copy
import itertools
import os
import random
import threading
import types

import numpy as np
import torch
from fairseq.tasks import register_task
from fairseq.tasks.translation import TranslationConfig, TranslationTask
from torch import nn
from torch.nn.utils import parametrizations, prune

from tests.yardstick.made_components import PREFIX, WIDTH, Changed, made_model


@made_model("own_torch_generator")
class OwnTorchGenerator(Changed):
    """Noise from a generator of its own, so that nobody else's draws change it."""

    def add_parts(self):
        self.rng = torch.Generator().manual_seed(1)

    def change(self, states):
        return states * torch.rand(WIDTH, generator=self.rng)


@made_model("own_numpy_generator")
class OwnNumpyGenerator(Changed):
    def add_parts(self):
        self.rng = np.random.default_rng(1)

    def change(self, states):
        return states * float(self.rng.uniform(0.5, 1.5))


@made_model("own_python_generator")
class OwnPythonGenerator(Changed):
    def add_parts(self):
        self.rng = random.Random(1)

    def change(self, states):
        return states * self.rng.uniform(0.5, 1.5)


@made_model("iterator")
class Iterator(Changed):
    """Goes through a schedule, a step a pass."""

    def add_parts(self):
        self.schedule = itertools.count(1)

    def change(self, states):
        return states / next(self.schedule)


@made_model("dictionary_counter")
class DictionaryCounter(Changed):
    """Counts its passes within a dictionary."""

    def add_parts(self):
        self.stats = {"passes": 0}

    def change(self, states):
        self.stats["passes"] += 1
        return states / self.stats["passes"]


@made_model("queue")
class Queue(Changed):
    """Compares with the batches before, as MoCo's queue does."""

    def add_parts(self):
        self.queue = collections.deque(maxlen=3)

    def change(self, states):
        before = sum(self.queue, torch.zeros(WIDTH))
        self.queue.append(states.detach().mean((0, 1)))
        return states + before


@made_model("list_memory")
class ListMemory(Changed):
    """Writes what it remembers into a list."""

    def add_parts(self):
        self.memories = [torch.zeros(WIDTH)]

    def change(self, states):
        states = states + self.memories[0]
        self.memories[0] = states.detach().mean((0, 1))
        return states


@made_model("deep_in_containers")
class DeepInContainers(Changed):
    """Writes into a tensor, and counts in a list, within containers; and into an array."""

    def add_parts(self):
        self.notes = {"means": (torch.zeros(WIDTH),), "passes": [[0]]}
        self.shares = np.ones(WIDTH, dtype=np.float32)

    def change(self, states):
        (mean,) = self.notes["means"]
        states = states * torch.tensor(self.shares) - mean
        self.notes["passes"][0][0] += 1
        mean.lerp_(states.detach().mean((0, 1)), 0.5)
        self.shares *= 0.9
        return states / self.notes["passes"][0][0]


@made_model("plain_object")
class PlainObject(Changed):
    """Keeps its statistics in an object that is no module."""

    def add_parts(self):
        self.meter = type("Meter", (), {})()
        self.meter.mean = torch.zeros(WIDTH)

    def change(self, states):
        self.meter.mean = 0.5 * self.meter.mean + states.detach().mean((0, 1))
        return states - self.meter.mean


@made_model("tensor_attribute")
class TensorAttribute(Changed):
    """Writes into a tensor that is an attribute and no buffer."""

    def add_parts(self):
        self.mean = torch.zeros(WIDTH)

    def change(self, states):
        self.mean.lerp_(states.detach().mean((0, 1)), 0.5)
        return states - self.mean


@made_model("writes_later")
class WritesLater(Changed):
    """Writes into a weight from the third update on."""

    def add_parts(self):
        self.layer = nn.Linear(WIDTH, WIDTH)
        self.updates = 0

    def set_num_updates(self, num_updates):
        super().set_num_updates(num_updates)
        self.updates = num_updates

    def change(self, states):
        if self.training and self.updates >= 2:
            self.layer.weight.data.mul_(0.9)
        return self.layer(states)


@made_model("momentum_encoder")
class MomentumEncoder(Changed):
    """A key encoder that follows the query encoder in each pass (MoCo); at first they are one."""

    def add_parts(self):
        self.layer = nn.Linear(WIDTH, WIDTH)
        self.keys = copy.deepcopy(self.layer).requires_grad_(False)

    def change(self, states):
        if self.training:
            with torch.no_grad():
                for key, query in zip(self.keys.parameters(), self.layer.parameters()):
                    key.lerp_(query, 0.5)
        return self.layer(states) - self.keys(states)


@made_model("sets_data")
class SetsData(Changed):
    """Puts another tensor into a weight."""

    def add_parts(self):
        self.layer = nn.Linear(WIDTH, WIDTH)

    def change(self, states):
        if self.training:
            self.layer.weight.data = self.layer.weight.data * 0.9
        return self.layer(states)


@made_model("lazy_batch_norm")
class LazyBatchNorm(Changed):
    """Its buffers have no shape before the first pass."""

    def add_parts(self):
        self.norm = nn.LazyBatchNorm1d(affine=False)

    def change(self, states):
        return self.norm(states.permute(1, 2, 0)).permute(2, 0, 1)


@made_model("expanded_buffer")
class ExpandedBuffer(Changed):
    """One number that looks like many."""

    def add_parts(self):
        self.register_buffer("halves", torch.tensor([0.5]).expand(WIDTH))

    def change(self, states):
        return states * self.halves


@made_model("growing_buffer")
class GrowingBuffer(Changed):
    """A cache of as many positions as the longest batch so far had."""

    def add_parts(self):
        self.register_buffer("cache", torch.zeros(0))

    def change(self, states):
        if len(self.cache) < len(states):
            self.cache.resize_(len(states)).copy_(torch.arange(len(states)))
        return states + 0.01 * self.cache[: len(states), None, None]


@made_model("buffer_made_in_forward")
class BufferMadeInForward(Changed):
    """Registers its running mean in the first pass."""

    def change(self, states):
        now = states.detach().mean((0, 1))
        if "mean" not in self._buffers:
            self.register_buffer("mean", torch.zeros(WIDTH))
        self.mean.add_(now)
        return states - self.mean


@made_model("parametrized")
class Parametrized(Changed):
    def add_parts(self):
        self.one = parametrizations.spectral_norm(nn.Linear(WIDTH, WIDTH))
        self.two = parametrizations.weight_norm(nn.Linear(WIDTH, WIDTH))
        self.three = parametrizations.orthogonal(nn.Linear(WIDTH, WIDTH))

    def change(self, states):
        return self.three(self.two(self.one(states)))


@made_model("pruned")
class Pruned(Changed):
    def add_parts(self):
        self.layer = nn.Linear(WIDTH, WIDTH)
        prune.l1_unstructured(self.layer, "weight", amount=0.5)

    def change(self, states):
        return self.layer(states)


class _Counts(nn.Module):
    """A layer to compile, with a buffer and an attribute that it changes."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(WIDTH, WIDTH)
        self.register_buffer("calls", torch.zeros(()))
        self.number = 0

    def forward(self, states):
        self.calls += 1
        self.number += 1
        return self.layer(states) / (self.calls + self.number)


@made_model("scripted")
class Scripted(Changed):
    """Has a part that is compiled."""

    def add_parts(self):
        self.layer = torch.jit.script(_Counts())

    def change(self, states):
        return self.layer(states)


@made_model("unusual_attributes")
class UnusualAttributes(Changed):
    """What can be neither copied nor compared."""

    def add_parts(self):
        self.lock, self.local = threading.Lock(), threading.local()
        self.words, self.null = (word for word in "ab"), open(os.devnull)  # noqa: SIM115
        self.stack, self.nan = contextlib.ExitStack(), float("nan")
        self.itself = [self]

    def change(self, states):
        with self.lock:
            return states


class _Tricky(nn.Module):
    """Takes attributes elsewhere."""

    __slots__ = ("kept",)

    def __init__(self):
        super().__init__()
        self.layer, self.kept = nn.Linear(WIDTH, WIDTH), 0

    @property
    def passes(self):
        return self.__dict__.get("_passes", 0)

    @passes.setter
    def passes(self, value):
        self.__dict__["_passes"] = value

    def __getattr__(self, name):
        if name == "anything":
            return 1.0
        return super().__getattr__(name)

    def forward(self, states):
        self.passes += 1
        return self.layer(states) * self.anything / self.passes


@made_model("tricky_attributes")
class TrickyAttributes(Changed):
    def add_parts(self):
        self.layer = _Tricky()

    def change(self, states):
        return self.layer(states)


@made_model("slots")
class Slots(Changed):
    """Counts in a slot, which is in no dictionary."""

    __slots__ = ("passes",)

    def add_parts(self):
        self.passes = 0

    def change(self, states):
        self.passes += 1
        return states / self.passes


@made_model("shared_dictionary")
class SharedDictionary(Changed):
    """Two modules with one dictionary of attributes."""

    def add_parts(self):
        self.one, self.two = _Tricky(), _Tricky()
        self.two.__dict__ = self.one.__dict__

    def change(self, states):
        return self.two(self.one(states))


@made_model("wrapped_part")
class WrappedPart(Changed):
    def add_parts(self):
        self.layer = nn.DataParallel(nn.BatchNorm1d(WIDTH))

    def change(self, states):
        return self.layer(states.permute(1, 2, 0)).permute(2, 0, 1)


def made_task(name):
    return register_task(PREFIX + name, dataclass=TranslationConfig)


@made_task("calls_itself")
class CallsItself(TranslationTask):
    """Takes a batch in two halves, each by the whole training step."""

    def train_step(self, sample, model, criterion, optimizer, update_num, ignore_grad=False):
        if "half" in sample:
            return super().train_step(sample, model, criterion, optimizer, update_num, ignore_grad)
        totals = None
        for half in (slice(0, 2), slice(2, 4)):
            inputs = {key: each[half] for key, each in sample["net_input"].items()}
            part = {**sample, "half": True, "net_input": inputs, "target": sample["target"][half]}
            out = self.train_step(part, model, criterion, optimizer, update_num, ignore_grad)
            if totals is None:
                totals = out
            else:
                log = {k: v + out[2].get(k, 0) for k, v in totals[2].items()}
                totals = totals[0] + out[0], totals[1] + out[1], log
        return totals


@made_task("updates_late")
class UpdatesLate(TranslationTask):
    """Tells the model the number of updates after the loss."""

    def train_step(self, sample, model, criterion, optimizer, update_num, ignore_grad=False):
        model.train()
        loss, sample_size, logging_output = criterion(model, sample)
        model.set_num_updates(update_num)
        optimizer.backward(loss)
        return loss, sample_size, logging_output


@made_model("counts_and_updates")
class CountsAndUpdates(Changed):
    def add_parts(self):
        self.register_buffer("calls", torch.zeros(()))

    def change(self, states):
        self.calls += 1
        return states / self.calls


@made_task("own_optimizer")
class OwnOptimizer(TranslationTask):
    """Trains a module of its own in its training step."""

    def build_criterion(self, cfg, from_checkpoint=False):
        criterion = super().build_criterion(cfg)
        self.critic = nn.Linear(1, 1)
        self.critic_optimizer = torch.optim.SGD(self.critic.parameters(), lr=0.1)
        return criterion

    def train_step(self, sample, model, criterion, optimizer, update_num, ignore_grad=False):
        loss = (self.critic(torch.ones(1)) - 1).square().sum()
        for weight, gradient in zip(
            self.critic.parameters(), torch.autograd.grad(loss, list(self.critic.parameters()))
        ):
            weight.grad = gradient
        self.critic_optimizer.step()
        factor = float(self.critic.weight.detach()) ** 2
        model.train()
        loss, sample_size, logging_output = criterion(model, sample)
        optimizer.backward(loss * factor)
        return loss, sample_size, logging_output


class Batch(dict):
    """A dictionary whose entries are attributes too."""

    def __getattr__(self, name):
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None


@made_task("remembers")
class Remembers(TranslationTask):
    """Weighs the loss by what it holds: a tensor, lists, a generator, an object used once."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.mean = torch.ones(())
        self.sizes = {"seen": [1]}
        self.before = None
        self.numbers = torch.Generator().manual_seed(1)
        self.start = types.SimpleNamespace(weight=2.0)

    def train_step(self, sample, model, criterion, optimizer, update_num, ignore_grad=False):
        model.train()
        loss, sample_size, logging_output = criterion(model, sample)
        weight = self.mean / len(self.sizes["seen"]) + torch.rand((), generator=self.numbers)
        if self.before is not None:
            weight += self.before[0]
        if self.start is not None:
            weight *= self.start.weight
        self.before, self.start = [0.5 * weight], None
        self.sizes["seen"].append(sample_size)
        self.mean.mul_(1.1)
        optimizer.backward(loss * weight)
        return loss, sample_size, logging_output


Row = collections.namedtuple("Row", "tokens words")


@made_task("dictionary_class")
class DictionaryClass(TranslationTask):
    """Its batches are of a class of their own."""

    def train_step(self, sample, model, criterion, optimizer, update_num, ignore_grad=False):
        if not isinstance(sample, Batch):  # made by a data loader
            raise TypeError(f"a batch of this task is a {Batch.__name__}, not {type(sample)}")
        assert sample.target is sample["target"]
        return super().train_step(sample, model, criterion, optimizer, update_num, ignore_grad)

    def get_batch_iterator(self, dataset, *args, **kwargs):
        collater = dataset.collater
        dataset.collater = lambda *a, **k: Batch(collater(*a, **k))
        return super().get_batch_iterator(dataset, *args, **kwargs)


@made_task("named_tuple")
class NamedTuple(TranslationTask):
    """Its batches have a named tuple whose tensor and list the step changes."""

    def train_step(self, sample, model, criterion, optimizer, update_num, ignore_grad=False):
        sample["row"].words.append(1)
        sample["row"].tokens.add_(1)
        model.train()
        loss, sample_size, logging_output = criterion(model, sample)
        optimizer.backward(loss * float(sample["row"].tokens) * len(sample["row"].words))
        return loss, sample_size, logging_output

    def get_batch_iterator(self, dataset, *args, **kwargs):
        collater = dataset.collater
        dataset.collater = lambda *a, **k: {**collater(*a, **k), "row": Row(torch.zeros(1), [])}
        return super().get_batch_iterator(dataset, *args, **kwargs)
