"""A trained model with its task and criterion, as analyses want it."""

from __future__ import annotations

import argparse
import os
import re
from typing import Any, Dict, NamedTuple, Optional, Tuple

from fairseq_sam import FairseqSamError
from fairseq_sam.criterions import per_sentence_name_of

_SEED = 1
"""Data sets draw masks and the like by the seed of training: all models are to have the same."""


class LoadError(FairseqSamError):
    """Something that cannot be used; the text is one line that names it."""


class TrainedModel(NamedTuple):
    """What a checkpoint holds.

    Attributes:
        model: the model, in float32 and in evaluation mode.
        task: its task, set up for the data at hand.
        cfg: the configuration that it was trained with.
    """

    model: Any
    task: Any
    cfg: Any


def load_trained_model(
    checkpoint: str, data: str, overrides: Optional[Dict[str, Any]] = None
) -> TrainedModel:
    """Loads a checkpoint for use with some data.

    Args:
        checkpoint: fairseq's file.
        data: what fairseq's positional argument is: a directory, or several joined by colons.
        overrides: flags of training to replace, by their names in the configuration.

    Raises:
        LoadError: a file or directory is missing, the checkpoint is damaged, or the two do not fit.
    """
    from fairseq import checkpoint_utils

    from fairseq_sam.checkpoints.checkpoint_files import CheckpointError

    if not os.path.isfile(checkpoint):
        raise LoadError(f"{checkpoint}: no such file")
    for part in data.split(os.pathsep):
        if not os.path.exists(part):
            raise LoadError(f"{part}: no such file or directory")
    try:
        state = checkpoint_utils.load_checkpoint_to_cpu(
            checkpoint, {"seed": _SEED, **(overrides or {}), "data": data}
        )
    except CheckpointError as error:  # which names the file
        raise LoadError(str(error)) from error
    except Exception as error:  # torch raises half a dozen types for a damaged file
        raise LoadError(
            f"{checkpoint}: damaged, or not a fairseq checkpoint ({reason_of(error)})"
        ) from error
    if state.get("args") is None and getattr(state.get("cfg"), "task", None) is None:
        raise LoadError(f"{checkpoint}: damaged, or not a fairseq checkpoint (no configuration)")
    _refuse_unregistered(checkpoint, state.get("cfg"))
    try:
        models, cfg, task = checkpoint_utils.load_model_ensemble_and_task([checkpoint], state=state)
    except Exception as error:  # tasks and models complain in any way
        reason = _misfit(state.get("cfg"), data, error) or reason_of(error)
        raise LoadError(f"{data}: does not fit {checkpoint} ({reason})") from error
    model = models[0].eval()
    for layer in model.modules():
        if hasattr(layer, "can_use_fastpath"):
            layer.can_use_fastpath = False  # fairseq 0.12.2's fused kernel has no gradients
    return TrainedModel(model, task, cfg)


def _refuse_unregistered(checkpoint: str, cfg: Any) -> None:
    """Refuses a model or task of somebody's own --user-dir, which the checkpoint only names."""
    from fairseq.models import ARCH_MODEL_REGISTRY, MODEL_REGISTRY
    from fairseq.tasks import TASK_REGISTRY

    known = {"model": {*ARCH_MODEL_REGISTRY, *MODEL_REGISTRY}, "task": TASK_REGISTRY}
    for part, names in known.items():
        name = getattr(getattr(cfg, part, None), "_name", None)
        if name is not None and name not in names:
            raise LoadError(
                f"{checkpoint}: its {part} {name} is not one of fairseq's: it was trained with "
                f"--user-dir {getattr(getattr(cfg, 'common', None), 'user_dir', None)}; give that "
                "directory as --user-dir (its Python files are run)"
            )


def _misfit(cfg: Any, data: str, error: Exception) -> Optional[str]:
    """Says what other data these are, where dictionaries show it: of other languages or sizes."""
    folder = data.split(os.pathsep)[0]
    task = getattr(cfg, "task", None)
    languages = [getattr(task, f"{side}_lang", None) for side in ("source", "target")]
    if isinstance(error, OSError) and all(languages) and os.path.isdir(folder):
        found = sorted(name for name in os.listdir(folder) if re.fullmatch(r"dict\..+\.txt", name))
        absent = [f"dict.{name}.txt" for name in languages if f"dict.{name}.txt" not in found]
        if absent:
            return (
                f"the model was trained from {languages[0]} to {languages[1]}, and there is no "
                f"{absent[0]} but {', '.join(found) or 'no dictionary at all'}"
            )
    shapes = re.search(
        r"size mismatch for (\S*embed_tokens\S*): .*?\[(\d+), \d+\].*?\[(\d+), \d+\]", str(error)
    )
    if shapes is not None and shapes[2] != shapes[3]:
        return (
            f"its dictionary makes {shapes[3]} embeddings, the model has {shapes[2]} in "
            f"{shapes[1]}: it was trained on other data, or they were binarised with another "
            "dictionary"
        )
    return None


def per_sentence_criterion(trained: TrainedModel, name: Optional[str] = None) -> Tuple[str, Any]:
    """Builds the per-sentence stand-in of the checkpoint's criterion, with the flags it had.

    Args:
        trained: the model.
        name: another criterion, stock or per-sentence; flags that the two have in common keep
            the values they were trained with, others are at their defaults.

    Returns:
        The stand-in's registered name, and the criterion in evaluation mode.

    Raises:
        LoadError: there is no such criterion, or it has no stand-in.
    """
    own = getattr(trained.cfg.criterion, "_name", None)
    wanted = name if name is not None else own
    stand_in = per_sentence_name_of(str(wanted))
    if stand_in is None:
        whose = "" if name is not None else "the checkpoint's "
        raise LoadError(
            f"{whose}criterion {wanted} has no per-sentence losses, and there is no "
            f"per_sentence_{wanted}: choose another with --criterion, or see docs/criterions.md"
        )
    cfg = _criterion_config(trained.cfg, stand_in)
    try:
        criterion = trained.task.build_criterion(cfg)
    except Exception as error:
        raise LoadError(f"criterion {stand_in} cannot be built ({reason_of(error)})") from error
    return stand_in, criterion.eval()


def build_criterion(trained: TrainedModel, name: Optional[str] = None) -> Any:
    """Builds the checkpoint's criterion, or another, in evaluation mode.

    Args:
        trained: the model.
        name: as for :func:`per_sentence_criterion`.

    Raises:
        LoadError: there is no such criterion, or it cannot be built.
    """
    from fairseq.criterions import CRITERION_REGISTRY

    if name is None:
        cfg = trained.cfg.criterion
    elif name in CRITERION_REGISTRY:
        cfg = _criterion_config(trained.cfg, name)
    else:
        raise LoadError(f"criterion {name} does not exist: choose another with --criterion")
    try:
        return trained.task.build_criterion(cfg).eval()
    except Exception as error:
        raise LoadError(
            f"criterion {name or cfg._name} cannot be built ({reason_of(error)})"
        ) from (error)


def _criterion_config(cfg: Any, name: str) -> Any:
    """Returns a criterion's configuration, placed in the whole one, which its defaults refer to."""
    from fairseq.criterions import CRITERION_DATACLASS_REGISTRY
    from omegaconf import OmegaConf, open_dict

    if name not in CRITERION_DATACLASS_REGISTRY:  # it reads a command line
        raise LoadError(f"criterion {name} cannot take another's place: choose another")
    trained_with = cfg.criterion
    if isinstance(trained_with, argparse.Namespace):
        trained_with = vars(trained_with)
    chosen = OmegaConf.structured(CRITERION_DATACLASS_REGISTRY[name])
    for key in chosen:
        if key != "_name" and key in trained_with:
            chosen[key] = trained_with[key]
    with open_dict(chosen):
        chosen._name = name
    with open_dict(cfg):
        cfg.criterion = chosen
    return cfg.criterion


def reason_of(error: Exception) -> str:
    """Returns the first telling line of a message, with the type where the text says little."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = lines[1] if len(lines) > 1 and lines[0].endswith(":") else (lines or [""])[0]
    telling = isinstance(error, (OSError, RuntimeError, ValueError)) and text
    return text if telling else f"{type(error).__name__}: {text}"
