"""A training by fairseq's trainer in which something goes wrong at a chosen point of a step."""

import contextlib
import copy
import functools
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, NamedTuple, Optional

import numpy as np
import torch
from fairseq.tasks import register_task
from fairseq.tasks.translation import TranslationConfig, TranslationTask
from torch import Tensor, nn

from fairseq_sam.perturbation import sentence_weights
from fairseq_sam.perturbation.sentence_weights import SentenceProbes
from fairseq_sam.perturbation.weights import PerturbedWeights
from fairseq_sam.tasks.sentence_similarity import SentenceSimilarityConfig, SentenceSimilarityTask
from fairseq_sam.training import optimizer_state
from fairseq_sam.training.configuration import carrier_of
from tests.fairseq_runs import split
from tests.yardstick import made_data
from tests.yardstick.cases import ENCODER, SMALL
from tests.yardstick.made_components import WIDTH, Changed, made_model
from tests.yardstick.runs import TRAINING, build_trainer

MESSAGE = "stop here"


class _OutOfMemory(RuntimeError):
    """As torch raises it, of a class of its own."""

    def __init__(self) -> None:
        super().__init__("CUDA out of memory. Tried to allocate 20.00 MiB")


ERRORS: List[Callable[[], BaseException]] = [
    _OutOfMemory,
    lambda: RuntimeError("CUDA out of memory."),
    lambda: RuntimeError(MESSAGE),
    lambda: ValueError(MESSAGE),
    lambda: MemoryError(MESSAGE),
    lambda: FloatingPointError(MESSAGE),
    lambda: OverflowError(MESSAGE),
    lambda: AssertionError(),
    lambda: StopIteration(MESSAGE),
    lambda: GeneratorExit(MESSAGE),
    lambda: KeyboardInterrupt(),
    lambda: SystemExit(3),
]

VALUES = [float("nan"), float("inf")]


class Fault(NamedTuple):
    """What goes wrong.

    Attributes:
        at: the point, counted from the beginning of the step.
        error: makes what is raised; None for a value that is not finite.
        value: what the numbers at this point are multiplied by.
    """

    at: int
    error: Optional[Callable[[], BaseException]] = None
    value: float = 1.0


class Injector:
    """Counts the points of a step, and makes the fault happen at one of them.

    Attributes:
        takes_values: for each point whether numbers pass there.
        fired: whether the fault has happened.
        within: what :attr:`look` said then.
    """

    def __init__(self) -> None:
        self.look: Callable[[], Any] = lambda: None
        self.begin()

    def begin(self, fault: Optional[Fault] = None) -> None:
        self.takes_values: List[bool] = []
        self.fault, self.fired, self.within = fault, False, None

    def point(self, value: Any = None) -> Any:
        """Returns the numbers that pass, or others in their place; or raises."""
        number = len(self.takes_values)
        self.takes_values.append(isinstance(value, Tensor) and value.is_floating_point())
        if self.fault is None or self.fired or number != self.fault.at:
            return value
        self.fired, self.within = True, self.look()
        if self.fault.error is not None:
            raise self.fault.error()
        return value * self.fault.value


INJECTOR = Injector()


def _watched(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def watched(*args: Any, **kwargs: Any) -> Any:
        INJECTOR.point()
        result = function(*args, **kwargs)
        INJECTOR.point()
        return result

    return watched


class _FaultyStep:
    """A task with an attribute and a generator, whose step and those of its parts can fail."""

    def train_step(self, *args: Any, **kwargs: Any) -> Any:
        self.steps += 1
        for generator in self.sequence_generators.values():
            generator.generate()
        return _watched(super().train_step)(*args, **kwargs)

    def build_criterion(self, *args: Any, **kwargs: Any) -> Any:
        self.steps = 0
        self.sequence_generators = {"one": Generator(), "other": Generator()}
        return super().build_criterion(*args, **kwargs)


class Generator:
    """Stands in for what online back-translation generates with."""

    def generate(self) -> Tensor:
        INJECTOR.point()
        return torch.rand(3)


@register_task("faulty_translation", dataclass=TranslationConfig)
class FaultyTranslation(_FaultyStep, TranslationTask):
    pass


@register_task("faulty_translation_as_given", dataclass=TranslationConfig)
class FaultyTranslationAsGiven(FaultyTranslation):
    """Generates nothing, so its step can be had of a part of its batch."""

    def build_criterion(self, *args: Any, **kwargs: Any) -> Any:
        criterion = super().build_criterion(*args, **kwargs)
        self.sequence_generators = {}
        return criterion


@register_task("faulty_similarity", dataclass=SentenceSimilarityConfig)
class FaultySimilarity(_FaultyStep, SentenceSimilarityTask):
    pass


@made_model("keeps_state")
class KeepsState(Changed):
    """Statistics, buffers written into and replaced, counters, a memory and all generators."""

    def add_parts(self) -> None:
        self.norm = nn.BatchNorm1d(WIDTH)
        self.register_buffer("calls", torch.zeros((), dtype=torch.long))
        self.register_buffer("replaced", torch.zeros(WIDTH))
        self.updates, self.count, self.memory = 0, 0, None

    def set_num_updates(self, num_updates: int) -> None:
        super().set_num_updates(num_updates)
        INJECTOR.point()
        self.updates += 1

    def change(self, states: Tensor) -> Tensor:
        self.calls += 1
        self.count += 1
        now = states.detach().mean((0, 1))
        self.replaced = 0.5 * self.replaced + now
        before, self.memory = self.memory, now
        states = states + 0.01 * self.replaced + (0 if before is None else 0.01 * before)
        states = states * float(np.random.uniform(0.9, 1.1))
        return self.norm(states.permute(1, 2, 0)).permute(2, 0, 1)


class State:
    """Buffers, and attributes that are numbers or tensors, of a trainer's parts."""

    def __init__(self, trainer: Any) -> None:
        self._modules = [
            each for part in (trainer.model, trainer.criterion) for each in part.modules()
        ]
        self._trainer = trainer
        self._buffers = [
            {name: None if b is None else b.clone() for name, b in module._buffers.items()}
            for module in self._modules
        ]
        self._attributes = [
            {
                name: value.clone() if isinstance(value, Tensor) else value
                for name, value in vars(holder).items()
                if value is None or isinstance(value, (int, float, Tensor))
            }
            for holder in [*self._modules, trainer.task]
        ]

    def restore(self) -> None:
        for module, buffers in zip(self._modules, self._buffers):
            for name, value in buffers.items():
                module._buffers[name] = None if value is None else value.clone()
        for holder, attributes in zip([*self._modules, self._trainer.task], self._attributes):
            vars(holder).update(attributes)

    def with_one_more_update(self) -> "State":
        """Returns the state with what ``set_num_updates`` changes."""
        result = copy.copy(self)
        result._attributes = [
            {**each, "updates": each["updates"] + 1} if "updates" in each else each
            for each in self._attributes
        ]
        return result

    def differences(self, other: "State") -> List[str]:
        """Returns the names of what is not the same."""
        pairs = [*zip(self._buffers, other._buffers), *zip(self._attributes, other._attributes)]
        missing = object()
        return [
            f"{name} {mine.get(name)} for {theirs.get(name)}"
            for mine, theirs in pairs
            for name in {**mine, **theirs}
            if not _equal(mine.get(name, missing), theirs.get(name, missing))
        ]


def _equal(one: Any, other: Any) -> bool:
    if isinstance(one, list):
        return len(one) == len(other) and all(map(_equal, one, other))
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(_equal(one[key], other[key]) for key in one)
    if isinstance(one, Tensor):
        return isinstance(other, Tensor) and one.dtype == other.dtype and torch.equal(one, other)
    return bool(one == other)


TRANSLATION = f"--task faulty_translation -s de -t en --arch yardstick_keeps_state {SMALL}"
SIMILARITY = (
    f"--task faulty_similarity --arch bert {ENCODER} --dropout 0.1 --max-positions 64 "
    "--criterion mirror_bert"
)
PER_SENTENCE = "--criterion per_sentence_cross_entropy"
R_DROP = "--criterion r_drop_cross_entropy"

METHODS = {
    "sam": (TRANSLATION, "sam --sam-rho 0.1"),
    "asam": (TRANSLATION, "asam --sam-rho 0.1"),
    "layer_sam": (TRANSLATION, "layer_sam --sam-rho 1e-3"),
    "ga_sam": (TRANSLATION, "ga_sam --sam-steps 2 --sam-rho 1e-3"),
    "multi_step_defense": (TRANSLATION, "multi_step_defense --sam-steps 2 --sam-rho 1e-3"),
    "delta_sam": (f"{TRANSLATION} {PER_SENTENCE}", "delta_sam --sam-rho 0.1"),
    "delta_sam_draft": (
        f"{TRANSLATION} {PER_SENTENCE}",
        "delta_sam --sam-rho 0.1 --delta-sam-variant draft --sam-risk mean --sam-steps 2",
    ),
    "per_instance_sam": (TRANSLATION, "per_instance_sam --sam-rho 0.1"),
    "functional_sam": (TRANSLATION, "functional_sam --sam-rho 5%"),
    "functional_sam_half": (
        f"{TRANSLATION} --task faulty_translation_as_given",
        "functional_sam --sam-rho 5% --sam-ascent-fraction 0.5",
    ),
    "momentum_sam": (TRANSLATION, "momentum_sam --sam-rho 0.1"),
    "friendly_sam": (TRANSLATION, "friendly_sam --sam-rho 0.1"),
    "mirror_bert": (SIMILARITY, "sam --sam-rho 0.1"),
    "r_drop_delta_sam": (f"{TRANSLATION} {R_DROP}", "delta_sam --sam-rho 0.1 --sam-scale weight"),
}
"""Task and criterion, and the optimizer's flags."""

HALF = "--fp16-no-flatten-grads"  # flattened ones are always on the GPU

PRECISIONS = {
    "fp32": "",
    "fp16": f"--fp16 {HALF} --fp16-init-scale 4",
    "bf16": f"--bf16 {HALF}",
    "memory_efficient_bf16": "--memory-efficient-bf16",
}


def make_data(folder: Path) -> Dict[str, Path]:
    """Returns the data of each task."""
    return {
        TRANSLATION: made_data.text_pairs(folder / "pairs"),
        SIMILARITY: made_data.text(folder / "text"),
    }


class FaultyTraining:
    """One set-up, at a learning rate of 0, and what is true of it whatever happens.

    Args:
        data: of :func:`make_data`.
        method: a key of :data:`METHODS`.
        precision: a key of :data:`PRECISIONS`.
    """

    def __init__(self, data: Dict[str, Path], method: str, precision: str) -> None:
        self.method = method
        flags, optimizer = METHODS[method]
        (folder,) = (made for task, made in data.items() if flags.startswith(task))
        arguments = split(
            *(folder, flags, TRAINING.replace("--lr 0.01", "--lr 0"), PRECISIONS[precision]),
            *("--save-dir", folder / "unused", "--batch-size 3"),
        )
        plain = build_trainer(arguments, "--optimizer adam")
        # The optimizer's flags are parsed by themselves, and with them what its method needs.
        self.trainer = build_trainer(arguments, f"--optimizer {optimizer} {PER_SENTENCE}")
        batches = self.trainer.get_train_iterator(epoch=1).next_epoch_itr(shuffle=False)
        self.samples = [next(batches), next(batches)]  # as with --update-freq 2
        self._watch()
        self.trainer.train_step(self.samples[:1])  # builds the optimizer
        self.trainer.zero_grad()
        self.weights = [weight.detach().clone() for weight in self._parameters()]
        self.optimizer_states = [copy.deepcopy(inner.state) for inner in self._inner()]
        self.hooks = self._count_hooks()
        self.start = State(plain)
        self.start = self._state_of(self.start)
        ends = [self.start, *self._plain_states(plain)]
        self.end = ends[-1]
        # What is done once a step stays done where its first pass fails, as it does without us.
        self.allowed = [*ends, *(end.with_one_more_update() for end in ends[:-1])]
        self.gradients = self.clean_gradients()
        self.points = list(INJECTOR.takes_values)

    def _state_of(self, state: State) -> State:
        """Returns the state of another trainer's parts as one of ours."""
        mine = State(self.trainer)
        mine._buffers, mine._attributes = state._buffers, state._attributes
        return mine

    def _plain_states(self, plain: Any) -> Iterator[State]:
        """Yields the states after one, two, … micro-batches without the method."""
        INJECTOR.begin()
        plain.set_num_updates(0)
        plain._set_seed()
        plain.model.train()
        plain.criterion.train()
        np.random.seed(1)
        plain.zero_grad()
        for number, sample in enumerate(self.samples, 1):
            for part in self._parts_of_step(sample):
                plain.task.train_step(part, plain.model, plain.criterion, plain.optimizer, 0)
                if hasattr(plain.model, "updates"):
                    plain.model.updates = number  # also where there is a step for each sentence
                yield State(plain)

    def _parts_of_step(self, sample: Any) -> List[Any]:
        if self.method != "per_instance_sam":
            return [sample]
        from fairseq_sam.training.samples import split_sentences

        return split_sentences(sample, self.trainer.criterion.padding_idx)

    def _parameters(self) -> List[Tensor]:
        return [*self.trainer.model.parameters(), *self.trainer.criterion.parameters()]

    def _watch(self) -> None:
        """Puts points into modules, the backward pass, the optimizer, and between micro-batches."""
        trainer = self.trainer
        INJECTOR.begin()
        INJECTOR.look = self._look
        for module in [*trainer.model.modules(), trainer.criterion]:
            module.register_forward_hook(self._in_forward)
        cls = type(trainer.optimizer)
        if not hasattr(cls.backward, "__wrapped__"):
            cls.backward = _watched(cls.backward)
        step = trainer.task.train_step

        @functools.wraps(step)
        def noting_gradients(*args: Any, **kwargs: Any) -> Any:
            self.accumulated = self._gradients()
            return step(*args, **kwargs)

        trainer.task.train_step = noting_gradients
        trainer.save_checkpoint = lambda *args, **kwargs: self._assert_weights("in crash.pt")

    def _in_forward(self, module: nn.Module, inputs: Any, output: Any) -> Any:
        if not isinstance(output, Tensor):
            INJECTOR.point()
            return None
        changed = INJECTOR.point(output)
        if changed.requires_grad:
            changed.register_hook(INJECTOR.point)
        return None if changed is output else changed

    def _look(self) -> "tuple[bool, bool]":
        """Returns whether this is the backward pass that trains, and whether the first pass."""
        this = self.trainer.task.sharpness_aware_seam._loss.current
        trains = this is not None and not this.ascends and this.num_backward > 0
        return trains, this is None or this._step._clean is None

    def _gradients(self) -> List[Optional[Tensor]]:
        return [None if p.grad is None else p.grad.clone() for p in self._parameters()]

    def _count_hooks(self) -> int:
        return sum(
            len(hooks)
            for module in [*self.trainer.model.modules(), *self.trainer.criterion.modules()]
            for name, hooks in vars(module).items()
            if name.endswith("_hooks")
        )

    def _inner(self) -> List[Any]:
        return list(optimizer_state._inner(carrier_of(self.trainer.optimizer)))

    def _forget(self) -> None:
        """Puts momentum back, and lets what remembers gradients or counts draws begin anew."""
        for inner, state in zip(self._inner(), self.optimizer_states):
            inner.state.clear()
            inner.state.update({p: copy.deepcopy(each) for p, each in state.items()})
        weights = self.trainer.task.sharpness_aware_seam._loss.weights
        weights._direction._remembered, weights._direction._began = {}, None
        weights.draws._state = -1

    def _step(self, fault: Optional[Fault] = None) -> Optional[BaseException]:
        self.start.restore()
        self._forget()
        self.trainer.zero_grad()
        if getattr(self.trainer.optimizer, "scaler", None) is not None:
            self.trainer.optimizer.scaler.loss_scale = 4.0
        self.trainer.set_num_updates(0)
        np.random.seed(1)
        INJECTOR.begin(fault)
        try:
            self.trainer.train_step(self.samples)
        except BaseException as error:
            return error
        return None

    def clean_gradients(self) -> List[Optional[Tensor]]:
        """Returns the gradients of an update in which nothing goes wrong."""
        error = self._step()
        assert error is None, repr(error)
        return self._gradients()

    def assert_trains_on(self) -> None:
        """Asserts that an update in which nothing goes wrong gives what it gave at first."""
        for mine, expected in zip(self.clean_gradients(), self.gradients):
            assert _equal(mine, expected), "training goes on with other gradients"
        changed = State(self.trainer).differences(self.end)
        assert not changed, f"training goes on with other buffers: {changed}"

    def assert_survives(self, fault: Fault) -> None:
        """Asserts that a fault leaves everything in place."""
        where = f"{self.method}: {fault} of {len(self.points)}"
        error = self._step(fault)
        assert INJECTOR.fired, where
        trains, is_first = INJECTOR.within
        self._assert_weights(where)
        self._assert_nothing_patched(where)
        if fault.error is not None:
            expected = fault.error()
            is_oom = "out of memory" in str(expected)
            assert (error is None) if is_oom else type(error) is type(expected), (where, error)
            if is_oom:
                assert all(g is None or not g.any() for g in self._gradients()), where
            elif not trains and self.method != "per_instance_sam":
                assert _equal(self._gradients(), self.accumulated), f"gradients: {where}"
        # What is not finite reaches the statistics, and has fairseq run the step once more.
        if fault.error is not None or not (is_first or error):
            changed = [State(self.trainer).differences(state) for state in self.allowed]
            assert not all(changed), f"buffers and attributes: {min(changed, key=len)}: {where}"

    def _assert_weights(self, where: str) -> None:
        for weight, original in zip(self._parameters(), self.weights):
            same = weight.dtype == original.dtype and torch.equal(weight, original)
            assert same, f"weights: {where}"

    def _assert_nothing_patched(self, where: str) -> None:
        trainer, seam = self.trainer, self.trainer.task.sharpness_aware_seam
        assert torch.Tensor.backward is BACKWARD, where
        assert "backward" not in vars(trainer.optimizer), where
        assert "backward" not in vars(carrier_of(trainer.optimizer)), where
        assert "set_num_updates" not in vars(trainer.model), where
        for generator in trainer.task.sequence_generators.values():
            assert "generate" not in vars(generator), where
        assert self._count_hooks() == self.hooks, where
        assert seam._loss.current is None, where
        assert not seam._loss.weights.perturbed, where


BACKWARD = torch.Tensor.backward


@contextlib.contextmanager
def faulty_ascent() -> Iterator[None]:
    """Context in which what moves the weights can fail too, though not what puts them back."""
    places = [
        *((PerturbedWeights, name) for name in ("ascend", "_choose_moving", "_compute_scale")),
        *((PerturbedWeights, name) for name in ("_add_steps", "_coefficients", "_add")),
        (SentenceProbes, "weigh"),
        (sentence_weights, "random_direction"),
        (sentence_weights, "weigh"),
    ]
    originals = [getattr(holder, name) for holder, name in places]
    for (holder, name), original in zip(places, originals):
        setattr(holder, name, _watched(original))
    try:
        yield
    finally:
        for (holder, name), original in zip(places, originals):
            setattr(holder, name, original)
