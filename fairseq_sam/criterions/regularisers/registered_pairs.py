"""Registers ``<regulariser>_<criterion>`` for every pair of the two."""

from dataclasses import dataclass
from typing import Any, Callable, Dict, List, NoReturn, Optional, Tuple, Type

import torch
import torch.nn.functional as F
from fairseq.criterions import (
    CRITERION_DATACLASS_REGISTRY,
    CRITERION_REGISTRY,
    register_criterion,
)
from fairseq.logging import metrics
from fairseq.modules import LayerDropModuleList
from omegaconf import DictConfig
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from fairseq_sam.criterions import stand_ins  # noqa: F401  (what is regularised is registered)
from fairseq_sam.criterions.float64 import preserve_float64
from fairseq_sam.criterions.per_sentence import PerSentenceCriterion, PerSentenceLosses
from fairseq_sam.criterions.recording import RecordedModel
from fairseq_sam.criterions.registration import PREFIX, add_stand_in
from fairseq_sam.criterions.regularisers import regulariser_flags
from fairseq_sam.criterions.regularisers.divergence import squared_difference, symmetric_kl
from fairseq_sam.criterions.regularisers.embeddings import NotPerturbable
from fairseq_sam.criterions.regularisers.regularised_losses import (
    ASCENDING,
    METHODS,
    REDRAWING,
    Passes,
)
from fairseq_sam.flags.checked_fields import check
from fairseq_sam.training.moving_average import MovingAverage, moving_average

LN2 = 0.6931471805599453


def _token_divergence(
    criterion: Any, first: RecordedModel, second: RecordedModel, sample: Dict[str, Any]
) -> Tensor:
    """Of two outputs of a model that predicts tokens."""
    both = [m.get_normalized_probs(m.net_output, log_probs=True) for m in (first, second)]
    target = first.get_targets(sample, first.net_output)
    mask = target.ne(criterion.padding_idx)
    mask[:, : getattr(criterion, "ignore_prefix_size", 0)] = False
    return symmetric_kl(both[0], both[1], mask)


def _label_divergence(
    criterion: Any, first: RecordedModel, second: RecordedModel, sample: Dict[str, Any]
) -> Tensor:
    """Of two outputs of a model that predicts a label or a number."""
    logits = [m.net_output[0] for m in (first, second)]
    if criterion.regression_target:
        return squared_difference(*[each.float() for each in logits])
    both = [F.log_softmax(each, dim=-1, dtype=torch.float32) for each in logits]
    return symmetric_kl(*both)


_Divergence = Callable[[Any, RecordedModel, RecordedModel, Dict[str, Any]], Tensor]

DIVERGENCES: Dict[str, _Divergence] = {
    "cross_entropy": _token_divergence,
    "label_smoothed_cross_entropy": _token_divergence,
    "sentence_prediction": _label_divergence,
}
"""What the regularisers go with, by the stock criterion's name."""

_CONFIGS: Dict[str, Any] = {
    "free_lb": regulariser_flags.FreeLBConfig,
    "r3f": regulariser_flags.R3FConfig,
    "r_drop": regulariser_flags.RDropConfig,
    "smart": regulariser_flags.SmartConfig,
}


class RegularisedCriterion(PerSentenceCriterion):
    """Mixin in front of a per-sentence criterion: regularised in training, itself otherwise.

    The logged ``loss`` is what is trained on; ``penalty`` is the regulariser's share of it (bits,
    per unit of the loss), ``nll_loss`` and what else the criterion logs are the first pass's.
    """

    regulariser: str
    stock_name: str
    cfg: Any
    average: Optional[MovingAverage] = None

    @classmethod
    def build_criterion(cls, cfg: Any, task: Any) -> Any:
        """Builds the criterion, after a look at its flags."""
        check(cfg, _CONFIGS[cls.regulariser])
        run = cfg._get_parent() if isinstance(cfg, DictConfig) else None
        if getattr(cfg, "smart_mu", 0.0) > 0 and run is not None and not run.ema.store_ema:
            _refuse_without_average(cfg)
        criterion = super().build_criterion(cfg, task)
        criterion.cfg = cfg
        if getattr(cfg, "smart_mu", 0.0) > 0:
            criterion.average = moving_average(task)
        return criterion

    def forward(self, model: Any, sample: Dict[str, Any], reduce: bool = True) -> Any:
        """As the stock criterion's; in training, of the regularised loss."""
        if isinstance(model, RecordedModel) or not self.training:
            return super().forward(model, sample, reduce)
        losses, sample_size, logging_output = self.per_sentence_losses(model, sample)
        return losses.sum(), sample_size, logging_output

    def per_sentence_losses(
        self, model: Any, sample: Dict[str, Any], dtype: Optional[torch.dtype] = None
    ) -> PerSentenceLosses:
        """As :meth:`PerSentenceCriterion.per_sentence_losses`; in training, regularised.

        With and without gradients alike: δ-SAM compares the losses of both kinds of pass.

        Raises:
            SystemExit: with one line; the regulariser cannot perturb this model's embeddings, or
                its passes would use different layers where torch does not allow it.
        """
        if not self.training:
            return super().per_sentence_losses(model, sample, dtype)
        if self.regulariser in REDRAWING and _is_torchs_parallel(model) and _drops_layers(model):
            self._refuse("LayerDrop on several workers needs --ddp-backend legacy_ddp")
        seen: List[PerSentenceLosses] = []

        def run(recorded: RecordedModel) -> Tensor:
            seen.append(self.one_pass(recorded, sample, dtype))
            return seen[-1].losses

        def divergence(first: RecordedModel, second: RecordedModel) -> Tensor:
            with preserve_float64(model):
                found = DIVERGENCES[self.stock_name](self, first, second, sample)
            return found[: len(seen[0].losses)]  # without the rows of --pad-to-fixed-bsz

        def at_average() -> RecordedModel:
            return self._pass_at_average(model, sample)

        recorded = torch.is_grad_enabled()
        with torch.set_grad_enabled(recorded or self.regulariser in ASCENDING):
            try:
                losses, penalty = METHODS[self.regulariser](
                    Passes(model, run, divergence, at_average), self.cfg
                )
            except NotPerturbable as error:
                self._refuse(str(error))
        losses = losses if recorded else losses.detach()
        logging_output = dict(seen[0].logging_output)
        logging_output.update(loss=losses.detach().sum(), penalty=penalty.sum())
        return PerSentenceLosses(losses, seen[0].sample_size, logging_output)

    def _refuse(self, reason: str) -> NoReturn:
        name = f"{self.regulariser}_{self.stock_name}"
        raise SystemExit(f"error: argument --criterion: {name}: {reason}")

    def _pass_at_average(self, model: Any, sample: Dict[str, Any]) -> RecordedModel:
        if self.average is None or self.average.model is None:
            _refuse_without_average(self.cfg)
        average = self.average.of(model)
        if average is None:
            self._refuse("--smart-mu: what the task calls it with is no part of the averaged model")
        with torch.no_grad():
            return self.answer(average.eval(), sample)

    @classmethod
    def reduce_metrics(cls, logging_outputs: List[Dict[str, Any]]) -> None:
        """Logs the stock criterion's metrics and the penalty."""
        super().reduce_metrics(logging_outputs)
        size = sum(log.get("sample_size", 0) for log in logging_outputs)
        if size and any("penalty" in log for log in logging_outputs):
            total = sum(log.get("penalty", 0) for log in logging_outputs)
            metrics.log_scalar("penalty", total / size / LN2, size, round=3)


def _is_torchs_parallel(model: Any) -> bool:
    """Whether the gradients are reduced by torch, which wants each once in a backward pass."""
    return any(
        isinstance(each, DistributedDataParallel) for each in (model, getattr(model, "module", 0))
    )


def _drops_layers(model: nn.Module) -> bool:
    """Whether there is LayerDrop, fairseq's list of layers or, in models of sound, written out."""
    return any(
        (isinstance(module, LayerDropModuleList) and module.p > 0)
        or getattr(module, "layerdrop", 0) > 0
        for module in model.modules()
    )


def _refuse_without_average(cfg: Any) -> NoReturn:
    raise SystemExit(
        f"error: argument --smart-mu: {cfg.smart_mu} is not allowed: anything but 0 needs the "
        "moving average of the weights that --store-ema keeps"
    )


def _register(regulariser: str, stock_name: str) -> Tuple[str, Type[RegularisedCriterion]]:
    base = CRITERION_REGISTRY[PREFIX + stock_name]
    name = f"{regulariser}_{stock_name}"
    config: Any = dataclass(
        type(
            f"{name}_config",
            (_CONFIGS[regulariser], CRITERION_DATACLASS_REGISTRY[stock_name]),
            {"__module__": __name__},
        )
    )
    cls = type(
        f"{name}_criterion",
        (RegularisedCriterion, base),
        {"regulariser": regulariser, "stock_name": stock_name, "__module__": __name__},
    )
    register_criterion(name, dataclass=config)(cls)
    cls.__name__ = base.__name__  # so that a run can be continued with it, and without it
    add_stand_in(name, PREFIX + stock_name)
    return name, cls


REGISTERED = dict(_register(method, stock) for method in METHODS for stock in DIVERGENCES)
"""The registered classes by name."""
