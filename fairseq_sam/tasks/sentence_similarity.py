"""``--task sentence_similarity``: sentences without labels, for learning their embeddings."""

import contextlib
import os
from dataclasses import dataclass, field
from typing import Any, Optional

import numpy as np
from fairseq.data import (
    AppendTokenDataset,
    Dictionary,
    IdDataset,
    NestedDictionaryDataset,
    NumelDataset,
    NumSamplesDataset,
    PrependTokenDataset,
    RightPadDataset,
    SortDataset,
    StripTokenDataset,
    TruncateDataset,
    data_utils,
)
from fairseq.tasks import FairseqTask, register_task
from omegaconf import II, MISSING, OmegaConf, open_dict

from fairseq_sam.flags.checked_fields import CheckedConfig, check, checked
from fairseq_sam.flags.number_types import count, whole_number


@dataclass
class SentenceSimilarityConfig(CheckedConfig):
    """Flags of the task."""

    data: str = field(
        default=MISSING, metadata={"help": "directory that fairseq-preprocess --only-source wrote"}
    )
    max_positions: int = checked(count, 512, "positions of the model, special tokens included")
    max_sentence_tokens: Optional[int] = checked(
        whole_number(3),
        None,
        "cut sentences to so many tokens, special ones included (default: --max-positions)",
    )
    seed: int = II("common.seed")


@register_task("sentence_similarity", dataclass=SentenceSimilarityConfig)
class SentenceSimilarityTask(FairseqTask):
    """One sentence a line, as ``<s> … </s>``, in mini-batches without a target."""

    def __init__(self, cfg: SentenceSimilarityConfig, dictionary: Dictionary) -> None:
        super().__init__(cfg)
        self.dictionary = dictionary
        self.mask_idx = dictionary.add_symbol("<mask>")

    @classmethod
    def setup_task(cls, cfg: SentenceSimilarityConfig, **kwargs: Any) -> "SentenceSimilarityTask":
        """Reads ``dict.txt``."""
        check(cfg, SentenceSimilarityConfig)
        longest = cfg.max_sentence_tokens
        if longest is not None and longest > cfg.max_positions:
            raise SystemExit(
                f"error: argument --max-sentence-tokens: {longest} is not allowed: it must be "
                f"--max-positions, {cfg.max_positions}, at most"
            )
        return cls(cfg, Dictionary.load(os.path.join(cfg.data, "dict.txt")))

    def load_dataset(self, split: str, combine: bool = False, **kwargs: Any) -> Any:
        """Loads a split, in an order that is random but the same in every run with one seed."""
        path = os.path.join(self.cfg.data, split)
        text = data_utils.load_indexed_dataset(path, self.dictionary, combine=combine)
        if text is None:
            raise FileNotFoundError(f"Dataset not found: {split} ({path})")
        longest = self.cfg.max_sentence_tokens or self.cfg.max_positions
        text = TruncateDataset(StripTokenDataset(text, self.dictionary.eos()), longest - 2)
        text = AppendTokenDataset(text, self.dictionary.eos())
        text = PrependTokenDataset(text, self.dictionary.bos())
        columns = {
            "id": IdDataset(),
            "net_input": {
                "src_tokens": RightPadDataset(text, pad_idx=self.dictionary.pad()),
                "src_lengths": NumelDataset(text, reduce=False),
            },
            "nsentences": NumSamplesDataset(),
            "ntokens": NumelDataset(text, reduce=True),
        }
        with data_utils.numpy_seed(self.cfg.seed):
            order = np.random.permutation(len(text))
        dataset = NestedDictionaryDataset(columns, sizes=[text.sizes])
        self.datasets[split] = SortDataset(dataset, sort_order=[order])
        return self.datasets[split]

    def build_model(self, cfg: Any, from_checkpoint: bool = False) -> Any:
        """Builds an encoder with as many positions as the task has."""
        with open_dict(cfg) if OmegaConf.is_config(cfg) else contextlib.nullcontext():
            cfg.max_positions = self.cfg.max_positions
        return super().build_model(cfg, from_checkpoint)

    def max_positions(self) -> int:
        """Returns the longest sentence that the model takes."""
        return self.cfg.max_positions

    @property
    def source_dictionary(self) -> Dictionary:
        """The dictionary, with ``<mask>`` last."""
        return self.dictionary

    @property
    def target_dictionary(self) -> Dictionary:
        """The same one."""
        return self.dictionary
