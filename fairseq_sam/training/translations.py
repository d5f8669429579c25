"""What a task generates within a training step, generated once (online back-translation)."""

import contextlib
from typing import Any, Callable, Iterator, List, Sequence, Tuple

from torch import Tensor

from fairseq_sam.perturbation import Pass
from fairseq_sam.perturbation.replay import RandomState


class Translations:
    """Lets the passes of a step have the translations that the first one generated, at w.

    fairseq's ``online_backtranslation`` generates the source of its mini-batch in ``train_step``.
    At perturbed weights it would be another mini-batch. The generators are those that the task
    keeps in ``sequence_generators``.

    Args:
        task: the task; most have no such generators.
        tensors: tensors on the devices whose random numbers are drawn, usually the weights.
    """

    def __init__(self, task: Any, tensors: Sequence[Tensor]) -> None:
        self._tensors = tensors
        self._generators = list(getattr(task, "sequence_generators", {}).values())
        self._generated: List[Tuple[Any, RandomState]] = []

    @contextlib.contextmanager
    def of_pass(self, this: Pass) -> Iterator[None]:
        """Context of one pass of the step."""
        calls: List[Any] = []

        def remembering(generate: Callable[..., Any]) -> Callable[..., Any]:
            def remembered(*args: Any, **kwargs: Any) -> Any:
                number = len(calls)
                calls.append(generate)
                if number == len(self._generated):
                    generated = this.at_w(lambda: generate(*args, **kwargs))
                    self._generated.append((generated, RandomState(self._tensors)))
                generated, state = self._generated[number]
                state.restore()
                return generated

            return remembered

        for generator in self._generators:
            generator.generate = remembering(generator.generate)
        try:
            yield
        finally:
            for generator in self._generators:
                del generator.generate
