"""What cannot be perturbed, and is refused with the reason."""

import functools

from torch import nn


def refuse_checkpointing(model: nn.Module) -> None:
    """Refuses a model of which a part is to be called without the perturbation.

    Raises:
        SystemExit: with one line, where the model recomputes its activations in the backward pass.
            By then its weights are perturbed, and the gradient would be wrong.
    """
    for module in model.modules():
        forward = module.__dict__.get("forward")
        if isinstance(forward, functools.partial) and "checkpoint" in forward.func.__name__:
            raise SystemExit(
                "error: argument --checkpoint-activations: it does not go with --mirror-perturb "
                "one, where one view is computed without the perturbation"
            )
