"""One training in this process, through fairseq's public surface, and what it left behind."""

import argparse
import contextlib
import functools
import importlib.util
import math
import os
import pickle
import random
import re
import sys
from pathlib import Path
from typing import Any, Callable, Dict, List, NamedTuple, Sequence, Tuple

import fairseq
import numpy as np
import torch
from torch import Tensor, nn

from tests.fairseq_runs import split
from tests.yardstick import made_data

EXAMPLES = Path(
    os.environ.get("FAIRSEQ_EXAMPLES") or Path(fairseq.__file__).resolve().parents[1] / "examples"
)
"""fairseq's examples, which only a checkout has."""

TRAINING = (
    "--cpu --seed 7 --num-workers 0 --required-batch-size-multiple 1 --disable-validation "
    "--batch-size 4 --lr 0.01 "
    # A larger epsilon than usual: Adam's step is a continuous function of gradients that are
    # nothing but rounding noise, such as a key bias's.
    "--adam-eps 1e-3"
)
ANY_RUN = ("data", "--arch", "transformer")

EPOCHS, UPDATES_PER_EPOCH = 2, 2

LOG_TOLERANCE = {"rel_tol": 1e-5, "abs_tol": 1e-6}
"""Logged sums are float32. Weights that are exactly 0 do move by a radius of 1e-12."""

WEIGHT_TOLERANCE = {"rtol": 1e-5, "atol": 1e-6}
"""A ten-thousandth of what one update of Adam moves a weight."""


class Case(NamedTuple):
    """One configuration of fairseq.

    Attributes:
        name: what the test is called.
        flags: task, architecture and criterion.
        data: makes the data in a folder of its own; see :mod:`made_data`.
        user_dir: of an example of fairseq, below its folder of examples.
        may_refuse: whether the plugin may end the run with one line instead.
        broken: a pattern of the error with which plain Adam ends on some versions of fairseq or of
            what it needs: then there is nothing to compare with.
        slow: whether it is left out by default: it takes long, or other cases are much like it.
        uninitialised: a pattern of weights that fairseq allocates and forgets to fill.
    """

    name: str
    flags: str
    data: Callable[[Path], Path]
    user_dir: str = ""
    may_refuse: bool = False
    broken: str = ""
    slow: bool = False
    uninitialised: str = ""


class Result(NamedTuple):
    """What a run logged, and what it left.

    Attributes:
        logs: every average that was logged, of each update, not rounded.
        weights: of model and criterion.
        first_weights: the same after the first epoch.
        buffers: of model and criterion.
        attributes: numbers and tensors that modules of either keep otherwise.
        random_state: torch's, numpy's and Python's.
    """

    logs: List[Dict[str, float]]
    weights: Dict[str, Tensor]
    first_weights: Dict[str, Tensor]
    buffers: Dict[str, Tensor]
    attributes: Dict[str, Any]
    random_state: Tuple[Any, Any, Any]

    def values(self, key: str) -> List[float]:
        """Returns what was logged under a key, in order; updates without it are left out."""
        return [log[key] for log in self.logs if key in log]


def import_example(user_dir: str) -> None:
    """Does what ``--user-dir`` does, which fairseq's own parser does only for ``sys.argv``.

    Args:
        user_dir: below fairseq's examples; or one module, where the whole needs other packages.
    """
    from fairseq.utils import import_user_module

    path = EXAMPLES / user_dir
    if path.suffix != ".py":
        import_user_module(argparse.Namespace(user_dir=str(path)))
    elif path.stem not in sys.modules:
        spec = importlib.util.spec_from_file_location(path.stem, path)
        assert spec is not None
        assert spec.loader is not None
        sys.modules[path.stem] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[path.stem])


@functools.lru_cache(maxsize=None)
def _configuration(*arguments: str) -> bytes:
    from fairseq import options
    from fairseq.dataclass.utils import convert_namespace_to_omegaconf

    parser = options.get_training_parser()
    cfg = convert_namespace_to_omegaconf(options.parse_args_and_arch(parser, list(arguments)))
    return pickle.dumps(cfg)


def configuration(*arguments: str) -> Any:
    """Returns what fairseq makes of a command line, one's own copy.

    Making one takes longer than a run, and so does copying one otherwise than by pickling.
    """
    return pickle.loads(_configuration(*arguments))


def build_trainer(arguments: Sequence[str], optimizer: str) -> Any:
    """Returns fairseq's trainer for a command line, as ``fairseq-train`` builds it.

    Args:
        arguments: all but the optimizer's.
        optimizer: the optimizer's flags, which make the same configuration in any run.
    """
    from fairseq import tasks
    from fairseq.dataclass.utils import omegaconf_no_object_check
    from fairseq.trainer import Trainer

    cfg = configuration(*arguments, "--optimizer", "adam")
    with omegaconf_no_object_check():  # that of an optimizer without a dataclass is a Namespace
        cfg.optimizer = configuration(*ANY_RUN, *split(TRAINING, optimizer)).optimizer
    random.seed(cfg.common.seed)
    np.random.seed(cfg.common.seed)
    torch.manual_seed(cfg.common.seed)
    task = tasks.setup_task(cfg.task)
    model = task.build_model(cfg.model)
    return Trainer(cfg, task, model, task.build_criterion(cfg.criterion))


def train(case: Case, data: Path, optimizer: str, *flags: Any, epochs: int = EPOCHS) -> Result:
    """Trains for two updates an epoch.

    Args:
        case: what.
        data: what its data maker made.
        optimizer: flags of the optimizer.
        *flags: further ones.
        epochs: how many.
    """
    from fairseq.data import iterators

    place = () if case.data is made_data.nothing else (data,)
    save_dir = data.parent / f"{data.name}-checkpoints"  # of crash.pt, after some errors
    save_dir.mkdir(exist_ok=True)
    own_flags = case.flags.replace("{data}", str(data))
    arguments = split(*place, own_flags, TRAINING, "--save-dir", save_dir, *flags)
    trainer = build_trainer(arguments, optimizer)
    for name, weight in trainer.model.named_parameters():
        if case.uninitialised and re.search(case.uninitialised, name):
            nn.init.constant_(weight, 0.1)
    update_freq = trainer.cfg.optimization.update_freq[0]
    logs = []
    for epoch in range(1, epochs + 1):
        load = epoch == 1 or trainer.task.has_sharded_data("train")
        iterator = trainer.get_train_iterator(epoch=epoch, load_dataset=load)
        batches = iterator.next_epoch_itr(shuffle=False)
        # All at once: fairseq's loader thread would draw from the global random states meanwhile.
        updates = list(iterators.GroupedIterator(batches, update_freq))[:UPDATES_PER_EPOCH]
        assert len(updates) == UPDATES_PER_EPOCH, "too little made data"
        trainer.begin_epoch(epoch)
        logs += [_logged(trainer, samples) for samples in updates]
        if epoch == 1:
            first_weights = _copies(_parts(trainer), nn.Module.named_parameters)
    assert trainer.get_num_updates() == epochs * UPDATES_PER_EPOCH
    return _result(trainer, logs, first_weights)


def save_untrained(flags: str, data: Path, path: Path) -> None:
    """Writes a checkpoint of a model as it is before training."""
    arguments = split(data, flags.replace("{data}", str(data)), TRAINING)
    trainer = build_trainer(arguments, "--optimizer adam")
    trainer.consolidate_optimizer()
    trainer.save_checkpoint(str(path), {"train_iterator": {"epoch": 1}})
    state = torch.load(path, weights_only=False)
    state.pop("task_state", None)  # dictionaries, which the safe loader does not take
    torch.save(state, path)


def _logged(trainer: Any, samples: List[Any]) -> Dict[str, float]:
    from fairseq.logging import meters, metrics

    with metrics.aggregate(new_root=True) as aggregator:
        trainer.train_step(samples)
    averages = {
        key: aggregator[key].avg
        for key in aggregator
        if isinstance(aggregator[key], meters.AverageMeter) and aggregator[key].avg is not None
    }
    return {
        key: float(each) for key, each in averages.items() if torch.as_tensor(each).numel() == 1
    }


def _parts(trainer: Any) -> Dict[str, nn.Module]:
    return {"model": trainer.model, "criterion": trainer.criterion}


def _result(trainer: Any, logs: List[Dict[str, float]], first_weights: Dict[str, Tensor]) -> Result:
    parts = _parts(trainer)
    return Result(
        logs=logs,
        weights=_copies(parts, nn.Module.named_parameters),
        first_weights=first_weights,
        buffers=_copies(parts, nn.Module.named_buffers),
        attributes={
            f"{part}.{name}.{key}": value
            for part, module in parts.items()
            for name, each in module.named_modules()
            for key, value in vars(each).items()
            if isinstance(value, (int, float, Tensor)) and key != "_version"
        },
        random_state=(torch.get_rng_state(), np.random.get_state(), random.getstate()),
    )


def _copies(parts: Dict[str, nn.Module], named: Callable[..., Any]) -> Dict[str, Tensor]:
    return {
        f"{part}.{name}": value.detach().clone()
        for part, module in parts.items()
        for name, value in named(module)
        if not name.endswith("_float_tensor")  # which says the device, and is never filled
    }


def differences(ours: Result, theirs: Result) -> List[str]:
    """Returns a line for each thing in which a run is not the other; the second is the base."""
    lines = []
    for update, (mine, base) in enumerate(zip(ours.logs, theirs.logs), start=1):
        lines += [
            f"update {update}: {key} {mine.get(key)} for {value}"
            for key, value in base.items()
            if not _same_number(mine.get(key, math.nan), value)
        ]
    for kind in ("weights", "buffers", "attributes"):
        mine, base = getattr(ours, kind), getattr(theirs, kind)
        if set(mine) != set(base):
            lines.append(f"{kind}: {sorted(set(mine) ^ set(base))} in one of them only")
        unequal = [key for key in base if key in mine and not _same(mine[key], base[key])]
        lines += [f"{kind}: {_describe(key, mine[key], base[key])}" for key in unequal[:3]]
        lines += [f"{kind}: and {len(unequal) - 3} more"] if len(unequal) > 3 else []
    for source, mine, base in zip(
        ("torch", "numpy", "Python"), ours.random_state, theirs.random_state
    ):
        if str(_plain(mine)) != str(_plain(base)):
            lines.append(f"random state of {source}")
    return lines


def sharpness_is_zero(result: Result) -> bool:
    """Returns whether sharpness was logged at each update, and was 0 but for rounding."""
    values = result.values("sharpness")
    return len(values) == len(result.logs) and all(abs(value) < 1e-5 for value in values)


def _describe(key: str, mine: Any, base: Any) -> str:
    if torch.is_tensor(mine) and torch.is_tensor(base) and mine.shape == base.shape:
        gap = mine.detach().double() - base.detach().double()
        return f"{key} by up to {float(gap.abs().max()):.2g}"
    return f"{key} {mine} for {base}"


def _plain(state: Any) -> Any:
    if isinstance(state, tuple):
        return [_plain(part) for part in state]
    return state.tolist() if hasattr(state, "tolist") else state


def _same(mine: Any, base: Any) -> bool:
    if not (torch.is_tensor(mine) and torch.is_tensor(base)):
        return type(mine) is type(base) and _same_number(mine, base)
    if mine.shape != base.shape or mine.dtype != base.dtype:
        return False
    return torch.allclose(mine.double(), base.double(), equal_nan=True, **WEIGHT_TOLERANCE)


def _same_number(mine: float, base: float) -> bool:
    if not (math.isfinite(mine) and math.isfinite(base)):
        return str(mine) == str(base)
    return math.isclose(mine, base, **LOG_TOLERANCE)


@contextlib.contextmanager
def refusal(allowed: bool) -> Any:
    """Swallows a refusal, which is a SystemExit with one line, where it is allowed."""
    try:
        yield
    except SystemExit as error:
        message = str(error)
        assert message.startswith("error: "), f"no message: {message!r}"
        assert "\n" not in message
        if not allowed:
            raise
