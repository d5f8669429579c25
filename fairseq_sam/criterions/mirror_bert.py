"""``mirror_bert``: sentence embeddings without labels (Mirror-BERT, Liu et al. 2021)."""

import contextlib
import math
from argparse import Namespace
from dataclasses import dataclass, field
from typing import Any, Callable, Dict, Iterator, List, Optional, Tuple

import torch
from fairseq.criterions import register_criterion
from fairseq.dataclass import ChoiceEnum
from fairseq.logging import metrics
from torch import Tensor, nn

from fairseq_sam.criterions.contrastive import (
    POOLINGS,
    info_nce,
    mask_random_spans,
    pair_similarities,
    pool,
)
from fairseq_sam.criterions.float64 import preserve_float64
from fairseq_sam.criterions.per_sentence import PerSentenceCriterion, PerSentenceLosses
from fairseq_sam.flags.checked_fields import CheckedConfig, check, checked
from fairseq_sam.flags.number_types import at_least_zero, positive, whole_number

_Embed = Callable[..., Any]


@dataclass
class MirrorBertConfig(CheckedConfig):
    """Flags of ``--criterion mirror_bert``."""

    mirror_temperature: float = checked(positive, 0.04, "temperature of InfoNCE, above 0")
    mirror_pooling: ChoiceEnum(POOLINGS) = field(  # type: ignore[valid-type]
        default="mean",
        metadata={"help": "sentence embedding: mean of all tokens, or the first token's"},
    )
    mirror_span: int = checked(
        whole_number(0),
        2,
        "tokens masked in the second view, side by side; sentences of fewer than three times as "
        "many stay whole; 0 for none",
    )
    mirror_noise: float = checked(
        at_least_zero,
        0.0,
        "uniform noise within plus and minus this on the second view's word embeddings",
    )
    mirror_perturb: ChoiceEnum(["one", "both"]) = field(  # type: ignore[valid-type]
        default="one",
        metadata={"help": "views that a sharpness-aware optimizer's perturbation reaches"},
    )


@register_criterion("mirror_bert", dataclass=MirrorBertConfig)
class MirrorBertCriterion(PerSentenceCriterion):
    """InfoNCE between two views of each sentence, whose negatives are the rest of the batch.

    The views differ in dropout and, while training, in what befalls the second one: a masked span,
    noise on its word embeddings, and the perturbation of a sharpness-aware optimizer, whose ascent
    then follows the gradient through that view alone ("h2 only", delta-SAM §5.3; under the mean
    risk it follows the whole gradient). Which of the views these are, the paper leaves open.

    Deviation: Mirror-BERT masks 5 characters before it splits words into pieces; here tokens are
    masked, 2 of them by default, which is about as long. Its sentences of less than 30 characters,
    ours of less than 6 tokens, stay whole.

    The model is an encoder called with ``features_only=True``: RoBERTa, or ``--arch bert``. A
    sentence's loss depends on its batch, and is zero in a batch of one.
    """

    couples_sentences = True

    def __init__(
        self,
        task: Any,
        mirror_temperature: float,
        mirror_pooling: str,
        mirror_span: int,
        mirror_noise: float,
        mirror_perturb: str,
    ) -> None:
        super().__init__(task)
        given = Namespace(
            mirror_temperature=mirror_temperature,
            mirror_span=mirror_span,
            mirror_noise=mirror_noise,
        )
        check(given, MirrorBertConfig)
        self.temperature = mirror_temperature
        self.pooling = str(mirror_pooling)
        self.span, self.noise = mirror_span, mirror_noise
        self.perturb = str(mirror_perturb)
        dictionary = task.source_dictionary
        self.padding_idx = dictionary.pad()
        self.mask_idx = dictionary.index("<mask>")
        self._special = (dictionary.bos(), dictionary.eos(), self.padding_idx)
        if mirror_span > 0 and self.mask_idx == dictionary.unk():
            _stop(
                "--mirror-span: the dictionary has no <mask>; use 0, or --task sentence_similarity"
            )

    def forward(
        self, model: Any, sample: Dict[str, Any], reduce: bool = True
    ) -> Tuple[Tensor, Any, Dict[str, Any]]:
        """Returns the summed loss in nats, the number of sentences, and logs."""
        losses, sample_size, logging_output = self.per_sentence_losses(model, sample)
        return losses.sum() if reduce else losses, sample_size, logging_output

    def per_sentence_losses(
        self, model: Any, sample: Dict[str, Any], dtype: Optional[torch.dtype] = None
    ) -> PerSentenceLosses:
        """As in the base class; the two views take one forward pass, or one each."""
        with preserve_float64(model):
            one, other = self.embeddings(model, sample["net_input"]["src_tokens"])
        if dtype is not None:
            one, other = one.to(dtype), other.to(dtype)
        losses = info_nce(one, other, self.temperature)
        logging_output = {
            "loss": losses.detach().sum(),
            "ncorrect": self._num_found(one, other),
            "ntokens": sample["ntokens"],
            "nsentences": len(losses),
            "sample_size": len(losses),
        }
        return PerSentenceLosses(losses, len(losses), logging_output)

    def embeddings(self, model: Any, tokens: Tensor) -> Tuple[Tensor, Tensor]:
        """Returns the embeddings of both views ``[batch, dim]``."""
        second = tokens
        if self.training and self.span > 0:
            ordinary = torch.stack([tokens.ne(index) for index in self._special]).all(dim=0)
            second = mask_random_spans(tokens, ordinary, self.span, self.mask_idx)
        noise = self.noise if self.training else 0.0
        seam = getattr(self.task, "sharpness_aware_seam", None)
        if self.perturb == "one" and seam is not None and seam.is_perturbing:
            first = self._embed(lambda **inputs: seam.call_unperturbed(model, **inputs), tokens)
            with _noisy_embeddings(model, noise, 0):
                return first, self._embed(model, second)
        with _noisy_embeddings(model, noise, len(tokens)):
            both = self._embed(model, torch.cat([tokens, second]))
        return both[: len(tokens)], both[len(tokens) :]

    def _embed(self, model: _Embed, tokens: Tensor) -> Tensor:
        features = model(src_tokens=tokens, features_only=True)[0]
        return pool(features, tokens.ne(self.padding_idx), self.pooling)

    @torch.no_grad()
    def _num_found(self, one: Tensor, other: Tensor) -> Tensor:
        """Counts first views whose nearest neighbour is the sentence's second view."""
        nearest = pair_similarities(one, other, self.temperature)[: len(one)].argmax(dim=-1)
        return (nearest == torch.arange(len(one), device=one.device) + len(one)).sum()

    @classmethod
    def reduce_metrics(cls, logging_outputs: List[Dict[str, Any]]) -> None:
        """Logs the loss in bits and the share of sentences that find their second view."""
        total = {
            key: sum(log.get(key, 0) for log in logging_outputs)
            for key in ("loss", "ncorrect", "nsentences", "sample_size")
        }
        size = max(total["sample_size"], 1)
        metrics.log_scalar("loss", total["loss"] / size / math.log(2), size, round=3)
        found = 100.0 * total["ncorrect"] / max(total["nsentences"], 1)
        metrics.log_scalar("accuracy", found, total["nsentences"], round=1)

    @staticmethod
    def logging_outputs_can_be_summed() -> bool:
        """They can."""
        return True


@contextlib.contextmanager
def _noisy_embeddings(model: nn.Module, scale: float, first_row: int) -> Iterator[None]:
    """Adds U(−scale, scale) to the word embeddings of all rows from ``first_row`` on.

    (fairseq's RoBERTa takes ``token_embeddings`` but drops them, hence the hook.)
    """
    if scale == 0:
        yield
        return
    words = next(module for name, module in model.named_modules() if name.endswith("embed_tokens"))

    def add_noise(module: nn.Module, inputs: Any, embedded: Tensor) -> Tensor:
        noise = torch.empty_like(embedded[first_row:]).uniform_(-scale, scale)
        return torch.cat([embedded[:first_row], embedded[first_row:] + noise])

    handle = words.register_forward_hook(add_noise)
    try:
        yield
    finally:
        handle.remove()


def _stop(reason: str) -> None:
    raise SystemExit(f"error: argument {reason}")
