"""The gradient of a whole update of fairseq's trainer, against loops over the equations.

The reference has the model's weights in one vector, knows nothing of the package, and evaluates the
gradient of the loss with a copy of the model by the task's own training step. In float64.
"""

import copy
import logging
from typing import Any, Callable, List, NamedTuple, Optional

import pytest
import torch
from torch import Tensor

import fairseq_sam
from fairseq_sam.criterions.float64 import preserve_float64
from fairseq_sam.perturbation import sentence_weights
from tests.fairseq_runs import split
from tests.perturbation import reference, sentence_reference
from tests.yardstick import (
    made_components,  # noqa: F401  registers them
    made_data,
)
from tests.yardstick.cases import SMALL
from tests.yardstick.runs import TRAINING, build_trainer

fairseq_sam.register()

PER_SENTENCE = "--criterion per_sentence_cross_entropy"
RHO, ETA, BETA, PROBE = 0.01, 1e-3, 3.0, 0.02


class Method(NamedTuple):
    """What the flags mean, said once more."""

    flags: str
    norm: str = "l2"
    scale: str = "none"
    granularity: Optional[str] = None
    risk: str = "perturbed"
    steps: int = 1
    weighting: Optional[str] = None
    per_instance: bool = False


DELTA = f"delta_sam --delta-sam-probe-radius {PROBE} {PER_SENTENCE}"

METHODS = {
    "sam": Method("sam"),
    "sam_mean": Method("sam --sam-risk mean --sam-steps 2", risk="mean", steps=2),
    "asam": Method("asam", scale="weight", granularity="element"),
    "layer_sam": Method("layer_sam", scale="weight-over-gradient", granularity="layer"),
    "multi_step_defense": Method(
        "multi_step_defense --sam-steps 2", norm="linf", risk="mean", steps=2
    ),
    "ga_sam": Method("ga_sam", "linf", "gradient-strength", "layer", "mean"),
    "ga_sam_filter": Method(
        "ga_sam --sam-steps 2 --sam-granularity filter --sam-risk perturbed --sam-norm l2",
        "l2", "gradient-strength", "filter", "perturbed", 2,
    ),
    "delta_sam": Method(f"{DELTA} --delta-sam-eta {ETA}", weighting="published"),
    "delta_sam_draft": Method(
        f"{DELTA} --delta-sam-variant draft --delta-sam-beta {BETA} --sam-risk mean --sam-steps 2",
        risk="mean", steps=2, weighting="draft",
    ),
    "per_instance_sam": Method("per_instance_sam", per_instance=True),
}  # fmt: skip

TASKS = ["translation", "yardstick_weighs", "yardstick_several_calls", "yardstick_sums_calls"]

CASES = [
    pytest.param(
        method, task, update_freq, marks=[] if task == TASKS[(n + i) % 4] else [pytest.mark.slow]
    )
    for n, method in enumerate(METHODS)
    for task in TASKS
    for i, update_freq in enumerate((1, 3))
]


class Backward:
    """All that a training step asks of an optimizer."""

    def backward(self, loss: Tensor) -> None:
        loss.backward()


class Plain:
    """The task's own training step on a copy of the model, at any weights.

    Args:
        trainer: has the model.
        sample: a micro-batch, or a sentence.
        state: torch's random state that each pass begins with.
    """

    def __init__(self, trainer: Any, sample: Any, state: Tensor) -> None:
        self.trainer, self.sample, self.state = trainer, sample, state
        self.model = copy.deepcopy(trainer.model)
        self.size = 0

    def _at(self, weights: List[Tensor]) -> None:
        torch.set_rng_state(self.state)
        with torch.no_grad():
            for parameter, weight in zip(self.model.parameters(), weights):
                parameter.copy_(weight)
                parameter.grad = None

    def gradient(
        self, weights: List[Tensor], criterion: Optional[Callable[..., Any]] = None
    ) -> reference.Gradients:
        self._at(weights)
        task = self.trainer.task
        _, self.size, _ = type(task).train_step(
            task,
            copy.deepcopy(self.sample),
            self.model,
            criterion or self.trainer.criterion,
            Backward(),
            0,
        )
        return [None if p.grad is None else p.grad.clone() for p in self.model.parameters()]

    def losses(self, weights: List[Tensor]) -> List[Tensor]:
        """Returns the losses of the sentences, in each call of the criterion."""
        calls: List[Tensor] = []

        def remember(model: Any, sample: Any) -> Any:
            losses, size, log = self._sentences(model, sample)
            calls.append(losses.detach())
            return losses.sum(), size, log

        self.gradient(weights, remember)
        return calls

    def weighed(self, sentence_weights: List[List[float]]) -> Callable[[List[Tensor]], Any]:
        def gradient(weights: List[Tensor]) -> reference.Gradients:
            calls: List[int] = []

            def criterion(model: Any, sample: Any) -> Any:
                losses, size, log = self._sentences(model, sample)
                values = torch.tensor(sentence_weights[len(calls)], dtype=torch.float64)
                calls.append(1)
                return (losses * values).sum(), size, log

            return self.gradient(weights, criterion)

        return gradient

    def _sentences(self, model: Any, sample: Any) -> Any:
        lprobs = model.get_normalized_probs(model(**sample["net_input"]), log_probs=True)
        target = sample["target"]
        words = -lprobs.gather(-1, target.unsqueeze(-1)).squeeze(-1) * target.ne(1)
        size = sample["ntokens"]
        return words.sum(1), size, {"loss": 0}


def sentences_of(sample: Any) -> List[Any]:
    """Returns batches of one sentence each, without padding (1)."""
    parts = []
    for row in range(len(sample["id"])):
        source, target = (sample["net_input"]["src_tokens"][row], sample["target"][row])
        previous = sample["net_input"]["prev_output_tokens"][row]
        words = target[target != 1]
        parts.append(
            {
                "id": sample["id"][row : row + 1],
                "nsentences": 1,
                "ntokens": len(words),
                "net_input": {
                    "src_tokens": source[source != 1][None],
                    "src_lengths": sample["net_input"]["src_lengths"][row : row + 1],
                    "prev_output_tokens": previous[: len(words)][None],
                },
                "target": words[None],
            }
        )
    return parts


def gradient_of_method(method: Method, plain: Plain, w: List[Tensor], r: List[Tensor]) -> Any:
    plain.gradient(w)
    divisor = float(plain.size)  # the scales see the mean
    parts = (RHO, method.norm, method.scale, method.granularity, method.risk, method.steps)
    if method.weighting is None:
        return reference.sharpness_aware_gradient(plain.gradient, w, *parts, divisor)[0]
    at = {
        sign: plain.losses([x + sign * PROBE * y for x, y in zip(w, r)])
        for sign in (0.0, 1.0, -1.0)
    }
    weights = []
    for clean, plus, minus in zip(at[0.0], at[1.0], at[-1.0]):
        if method.weighting == "draft":
            weights.append(sentence_reference.mean_one(sentence_reference.draft(clean, plus, BETA)))
            continue
        ratio = RHO / PROBE  # what is measured at h, brought back to ρ
        values = [
            abs(b + c - 2 * a) * ratio**2 / max(abs(b - c) * ratio, ETA)
            for a, b, c in zip(clean.tolist(), plus.tolist(), minus.tolist())
        ]
        weights.append(sentence_reference.mean_one(values))
    weighed = plain.weighed([[float(each) for each in call] for call in weights])
    return sentence_reference.delta_sam_gradient(
        lambda at, use: weighed(at) if use else plain.gradient(at), w, [1.0], *parts, divisor
    )[0]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return made_data.text_pairs(tmp_path_factory.mktemp("whole") / "pairs")


@pytest.fixture(autouse=True)
def quiet():
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


@pytest.mark.parametrize(("name", "task", "update_freq"), CASES)
def test_gradient(data, monkeypatch, name, task, update_freq):
    method = METHODS[name]
    criterion = PER_SENTENCE if method.weighting else "--criterion cross_entropy"
    flags = f"--task {task} -s de -t en --arch transformer {SMALL} {criterion}"
    trainer = build_trainer(
        split(data, flags, TRAINING, "--save-dir", data, "--lr 0"),
        f"--optimizer {method.flags} --sam-rho {RHO}",
    )
    trainer.model.double()
    batches = trainer.get_train_iterator(epoch=1).next_epoch_itr(shuffle=False)
    samples = [next(batches) for _ in range(update_freq)]
    weights = list(trainer.model.parameters())
    w = [weight.detach().clone() for weight in weights]
    direction = [
        torch.randn(x.shape, dtype=x.dtype, generator=torch.Generator().manual_seed(5)) for x in w
    ]
    length = reference.flat(direction).norm()
    direction = [part / length for part in direction]
    # Not all are given: fairseq 0.12.2 holds some weights of encoder layers twice.
    part_of = {id(weight): part for weight, part in zip(weights, direction)}
    monkeypatch.setattr(
        sentence_weights,
        "random_direction",
        lambda given, length, draws: [part_of[id(weight)] * length for weight in given],
    )

    with preserve_float64(trainer.model):
        trainer._set_seed()
        expected, size = None, 0
        for sample in samples:
            for part in sentences_of(sample) if method.per_instance else [sample]:
                plain = Plain(trainer, part, torch.get_rng_state())
                gradients = gradient_of_method(method, plain, w, direction)
                plain.gradient(w)  # leaves the random state as one pass at w does
                size += plain.size
                expected = (
                    gradients
                    if expected is None
                    else [
                        a if b is None else b if a is None else a + b
                        for a, b in zip(expected, gradients)
                    ]
                )
        trainer.train_step(samples)
    for weight, before, gradient in zip(weights, w, expected):
        assert torch.equal(weight.detach(), before)
        gradient = torch.zeros_like(before) if gradient is None else gradient / size
        mine = torch.zeros_like(before) if weight.grad is None else weight.grad
        scale = max(float(gradient.abs().max()), 1e-3)
        torch.testing.assert_close(mine, gradient, rtol=0, atol=1e-8 * scale)
