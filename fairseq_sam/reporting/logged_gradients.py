"""The norms of gradients that a run logged: of the whole, and with --sam-log-gradients by layer."""

from typing import Dict, List, NamedTuple, Sequence

from fairseq_sam.reporting.train_log import EpochLog

WHOLE = "gnorm"
LAYER_PREFIX = "gnorm_"


class LoggedNorms(NamedTuple):
    """L2 norms of the loss's gradient per unit, before clipping, averaged over an epoch's updates.

    Attributes:
        epoch: counted from 1.
        whole: of the whole gradient.
        layers: name of a layer to the norm of its part; may be empty.
    """

    epoch: int
    whole: float
    layers: Dict[str, float]


def logged_norms(epochs: Sequence[EpochLog]) -> List[LoggedNorms]:
    """Returns the norms of the epochs that have some."""
    return [
        LoggedNorms(
            epoch.epoch,
            epoch.train[WHOLE],
            {
                name[len(LAYER_PREFIX) :]: norm
                for name, norm in epoch.train.items()
                if name.startswith(LAYER_PREFIX)
            },
        )
        for epoch in epochs
        if WHOLE in epoch.train
    ]


def layers_of(logged: Sequence[LoggedNorms]) -> List[str]:
    """Returns the layers in the order in which they were logged."""
    return list({layer: None for epoch in logged for layer in epoch.layers})
