"""Faults in fairseq's moving average of the weights, ``--store-ema``."""

import functools
import logging
from types import SimpleNamespace
from typing import Any, Dict, Optional

import torch
from torch import Tensor, nn

from .patching import Repair, uses_name

logger = logging.getLogger(__name__)


def _load_needs_average() -> bool:
    from fairseq.trainer import Trainer

    return uses_name(Trainer.load_checkpoint, "restore")


def _begin_average_at_loaded_model() -> None:
    """Lets a run with ``--store-ema`` begin from a checkpoint without a moving average.

    fairseq means to begin the average at the loaded model, of which it has let go by then:
    fine-tuning ends with "KeyError: 'model'".
    """
    from fairseq import checkpoint_utils
    from fairseq.models.ema.ema import EMA
    from fairseq.trainer import Trainer

    original, restore_weights = Trainer.load_checkpoint, EMA.restore

    @functools.wraps(original)
    def load_checkpoint(self: Any, *args: Any, **kwargs: Any) -> Any:
        if not self.cfg.ema.store_ema:
            return original(self, *args, **kwargs)
        read = checkpoint_utils.load_checkpoint_to_cpu

        def with_average(*args: Any, **kwargs: Any) -> Any:
            state = read(*args, **kwargs)
            extra_state = state.get("extra_state")
            if extra_state is not None and "ema" not in extra_state:
                logger.info("the checkpoint has no moving average: it begins at the model")
                extra_state["ema"] = {}
            return state

        checkpoint_utils.load_checkpoint_to_cpu = with_average
        try:
            return original(self, *args, **kwargs)
        finally:
            checkpoint_utils.load_checkpoint_to_cpu = read

    @functools.wraps(restore_weights)
    def restore(self: Any, state_dict: Dict[str, Tensor], *args: Any, **kwargs: Any) -> Any:
        if state_dict:  # else the average stays what it was built as, a copy of the model
            return restore_weights(self, state_dict, *args, **kwargs)

    Trainer.load_checkpoint, EMA.restore = load_checkpoint, restore


class _Tied(nn.Module):
    def __init__(self, value: float) -> None:
        super().__init__()
        self.first = self.second = nn.Parameter(torch.tensor(value))


def _averages_shared_weights_twice() -> bool:
    from fairseq.models.ema.ema import EMA

    config = dict.fromkeys(("ema_seed_model", "ema_fp32"), None)
    average = EMA(_Tied(0.0), SimpleNamespace(ema_decay=0.5, **config))
    average._step_internal(_Tied(1.0))
    return float(average.get_model().first) != 0.5


def _aliases(state: Dict[str, Tensor]) -> Dict[str, str]:
    """Returns the further names of tensors with several, and the first name of each."""
    aliases: Dict[str, str] = {}
    first: Dict[Any, str] = {}
    for key, value in state.items():
        place = (value.data_ptr(), value.shape, value.stride()) if value.numel() else key
        if first.setdefault(place, key) != key:
            aliases[key] = first[place]
    return aliases


class _WithoutAliases:
    """A model whose state names each tensor once."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model

    def state_dict(self) -> Dict[str, Tensor]:
        """The model's, without further names of a tensor that it has already."""
        state = self._model.state_dict()
        aliases = _aliases(state)
        return {key: value for key, value in state.items() if key not in aliases}


def _average_shared_weights_once() -> None:
    """Lets weights with several names (tied embeddings) move to the average once an update.

    fairseq goes by names, so that their decay is ``--ema-decay`` squared.  The copies in full
    precision (``--ema-fp32``), which a checkpoint holds too, are shared by the names likewise.
    """
    from fairseq.models.ema.ema import EMA

    original, build = EMA._step_internal, EMA.build_fp32_params

    @functools.wraps(original)
    def _step_internal(self: Any, new_model: nn.Module, updates: Any = None) -> Any:
        return original(self, _WithoutAliases(new_model), updates)

    @functools.wraps(build)
    def build_fp32_params(self: Any, state_dict: Optional[Dict[str, Tensor]] = None) -> None:
        state = self.model.state_dict() if state_dict is None else state_dict
        aliases = _aliases(self.model.state_dict())
        build(self, {key: state[key] for key in state if aliases.get(key, key) == key})
        for key, first in aliases.items():
            if first in self.fp32_params:
                self.fp32_params[key] = self.fp32_params[first]

    EMA._step_internal, EMA.build_fp32_params = _step_internal, build_fp32_params


class _Versioned(_Tied):
    """Looks at what it is restored from, as a model does that knows checkpoints of old."""

    seems_old = False

    def __init__(self) -> None:
        super().__init__(0.0)
        self.register_buffer("version", torch.tensor([3.0]))

    def load_state_dict(self, state_dict: Any, *args: Any, **kwargs: Any) -> Any:
        self.seems_old = "version" not in state_dict
        return super().load_state_dict(state_dict, *args, **kwargs)


def _average_loses_version() -> bool:
    from fairseq.models.ema.ema import EMA

    config = dict.fromkeys(("ema_seed_model", "ema_fp32"), None)
    average = EMA(_Versioned(), SimpleNamespace(ema_decay=0.5, **config))
    average._step_internal(_Versioned())
    return bool(average.get_model().seems_old)


def _average_keeps_version() -> None:
    """Lets the average keep its final layer norms.

    fairseq leaves the buffers called ``version`` out of what the average is restored from, and
    takes a state without them for one of an old Transformer, which had no norm after its last
    layer.  The average's own stay, so that one that was saved without its norms is repaired, too.
    """
    from fairseq.models.ema.ema import EMA

    original = EMA.restore

    @functools.wraps(original)
    def restore(self: Any, state_dict: Dict[str, Tensor], *args: Any, **kwargs: Any) -> Any:
        own = self.model.state_dict().items()
        versions = {key: value for key, value in own if key.rpartition(".")[2] == "version"}
        return original(self, {**state_dict, **versions}, *args, **kwargs)

    EMA.restore = restore


REPAIRS = (
    Repair(
        "--store-ema cannot begin from a plain checkpoint",
        _load_needs_average,
        _begin_average_at_loaded_model,
    ),
    Repair(
        "--store-ema moves shared weights twice",
        _averages_shared_weights_twice,
        _average_shared_weights_once,
    ),
    Repair(
        "--store-ema loses the final layer norms",
        _average_loses_version,
        _average_keeps_version,
    ),
)
