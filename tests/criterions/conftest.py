"""Tiny fairseq models with real padding, and criterions built through fairseq's registry."""

from argparse import Namespace
from types import SimpleNamespace
from typing import Any, Callable, Dict, List, NamedTuple

import pytest
import torch
from fairseq.criterions import CRITERION_DATACLASS_REGISTRY, CRITERION_REGISTRY
from fairseq.data import Dictionary
from fairseq.data.data_utils import collate_tokens
from fairseq.models.lstm_lm import LSTMLanguageModel
from fairseq.models.lstm_lm import base_architecture as lstm_lm_architecture
from fairseq.models.roberta import RobertaModel
from fairseq.models.roberta.model import base_architecture as roberta_architecture
from fairseq.models.transformer import TransformerModel
from fairseq.models.transformer import base_architecture as transformer_architecture
from fairseq.models.transformer_lm import TransformerLanguageModel, base_lm_architecture

import fairseq_sam.criterions  # noqa: F401  (registers)

LENGTHS = [7, 3, 5, 2]


class Case(NamedTuple):
    """A model with data: ``collate(indices)`` makes a batch of just these sentences."""

    task: Any
    model: Any
    collate: Callable[[List[int]], Dict[str, Any]]

    def batch(self) -> Dict[str, Any]:
        return self.collate(list(range(len(LENGTHS))))


def _dictionary() -> Dictionary:
    dictionary = Dictionary()
    for index in range(25):
        dictionary.add_symbol(f"w{index}")
    dictionary.add_symbol("<mask>")
    return dictionary


def _task() -> SimpleNamespace:
    words, labels = _dictionary(), Dictionary()
    for index in range(3):
        labels.add_symbol(str(index))
    return SimpleNamespace(
        source_dictionary=words, target_dictionary=words, dictionary=words, label_dictionary=labels
    )


def _sentences(task: Any, seed: int, extra: int = 0) -> List[torch.Tensor]:
    """Random sentences, with an end of sentence each."""
    generator = torch.Generator().manual_seed(seed)
    words, eos = task.source_dictionary, torch.tensor([task.source_dictionary.eos()])
    return [
        torch.cat([torch.randint(words.nspecial, 29, (n + extra,), generator=generator), eos])
        for n in LENGTHS
    ]


def _args(**overrides: Any) -> Namespace:
    sizes = {"embed_dim": 8, "ffn_embed_dim": 12, "layers": 2, "attention_heads": 2}
    sides = {
        f"{side}_{name}": value for side in ("encoder", "decoder") for name, value in sizes.items()
    }
    settings = dict(
        sides, dropout=0.0, attention_dropout=0.0, max_positions=32, tokens_per_sample=32
    )
    return Namespace(**{**settings, **overrides})


def _pad(task: Any, rows: List[torch.Tensor], **kwargs: Any) -> torch.Tensor:
    pad, eos = task.source_dictionary.pad(), task.source_dictionary.eos()
    return collate_tokens(rows, pad, eos, **kwargs)


def _count(rows: List[torch.Tensor]) -> int:
    return sum(row.numel() for row in rows)


def _translation() -> Case:
    task = _task()
    args = _args()
    transformer_architecture(args)
    model = TransformerModel.build_model(args, task)
    source, target = _sentences(task, 1, extra=1), _sentences(task, 2)

    def collate(indices: List[int]) -> Dict[str, Any]:
        sources, targets = [source[i] for i in indices], [target[i] for i in indices]
        net_input = {
            "src_tokens": _pad(task, sources, left_pad=True),
            "src_lengths": torch.tensor([len(row) for row in sources]),
            "prev_output_tokens": _pad(task, targets, move_eos_to_beginning=True),
        }
        return {
            "net_input": net_input,
            "target": _pad(task, targets),
            "ntokens": _count(targets),
            "nsentences": len(indices),
        }

    return Case(task, model, collate)


def _language_model(build: Callable[[Any], Any]) -> Case:
    task = _task()
    model = build(task)
    blocks = _sentences(task, 3)

    def collate(indices: List[int]) -> Dict[str, Any]:
        rows = [blocks[i] for i in indices]
        net_input = {
            "src_tokens": _pad(task, rows, move_eos_to_beginning=True),
            "src_lengths": torch.tensor([len(row) for row in rows]),
        }
        return {
            "net_input": net_input,
            "target": _pad(task, rows),
            "ntokens": _count(rows),
            "nsentences": len(indices),
        }

    return Case(task, model, collate)


def _transformer_lm(**overrides: Any) -> Callable[[], Case]:
    def build(task: Any) -> Any:
        args = _args(**overrides)
        base_lm_architecture(args)
        return TransformerLanguageModel.build_model(args, task)

    return lambda: _language_model(build)


def _lstm_lm() -> Case:
    def build(task: Any) -> Any:
        args = _args(
            decoder_hidden_size=8, decoder_out_embed_dim=8, decoder_attention="0", criterion=""
        )
        lstm_lm_architecture(args)
        return LSTMLanguageModel.build_model(args, task)

    return _language_model(build)


def _roberta(task: Any, **overrides: Any) -> Any:
    args = _args(pooler_dropout=0.0, activation_dropout=0.0, **overrides)
    roberta_architecture(args)
    return RobertaModel.build_model(args, task)


def _sentence_prediction(
    num_targets: int = 3, float_targets: bool = False, **overrides: Any
) -> Case:
    task = _task()
    model = _roberta(task, **overrides)
    for head in ("sentence_classification_head", "my_head"):
        model.register_classification_head(head, num_classes=num_targets)
    texts = _sentences(task, 4)
    labels = torch.tensor([2, 0, 1, 2])
    if float_targets:
        # In float64, as the models: mixed types have no gradient.
        generator = torch.Generator().manual_seed(5)
        labels = torch.randn(4, num_targets, generator=generator, dtype=torch.float64)

    def collate(indices: List[int]) -> Dict[str, Any]:
        rows = [texts[i] for i in indices]
        net_input = {
            "src_tokens": _pad(task, rows),
            "src_lengths": torch.tensor([len(row) for row in rows]),
        }
        return {
            "net_input": net_input,
            "target": labels[indices],
            "ntokens": _count(rows),
            "nsentences": len(indices),
        }

    return Case(task, model, collate)


def _masked_lm(positions: List[List[int]]) -> Case:
    """``positions`` are masked in each sentence."""
    task = _task()
    model = _roberta(task)
    texts = _sentences(task, 6)

    def collate(indices: List[int]) -> Dict[str, Any]:
        rows, targets = [], []
        for i in indices:
            row, target = texts[i].clone(), torch.full_like(texts[i], task.source_dictionary.pad())
            target[positions[i]] = row[positions[i]]
            row[positions[i]] = task.source_dictionary.index("<mask>")
            rows.append(row)
            targets.append(target)
        net_input = {
            "src_tokens": _pad(task, rows),
            "src_lengths": torch.tensor([len(row) for row in rows]),
        }
        return {
            "net_input": net_input,
            "target": _pad(task, targets),
            "ntokens": _count(rows),
            "nsentences": len(indices),
        }

    return Case(task, model, collate)


CASES: Dict[str, Callable[[], Case]] = {
    "translation": _translation,
    "transformer_lm": _transformer_lm(),
    "adaptive_lm": _transformer_lm(adaptive_softmax_cutoff="10,20"),
    "lstm_lm": _lstm_lm,
    "classification": _sentence_prediction,
    "pruned_classification": lambda: _sentence_prediction(
        mha_reg_scale_factor=0.1, ffn_reg_scale_factor=0.2
    ),
    "regression": lambda: _sentence_prediction(1, float_targets=True),
    "regression_2": lambda: _sentence_prediction(2, float_targets=True),
    "masked_lm": lambda: _masked_lm([[1, 4], [0], [], [1]]),
    "masked_lm_nothing": lambda: _masked_lm([[], [], [], []]),
    "masked_lm_everything": lambda: _masked_lm([list(range(n + 1)) for n in LENGTHS]),
}


@pytest.fixture
def make_case() -> Callable[..., Case]:
    """``make_case(name, dtype)``: the same weights on every call; no dropout, evaluation mode."""

    def make(name: str, dtype: torch.dtype = torch.float64) -> Case:
        torch.manual_seed(0)
        case = CASES[name]()
        case.model.to(dtype).eval()
        return case

    return make


@pytest.fixture
def make_criterion() -> Callable[..., Any]:
    """``make_criterion(name, task, **flags)``: built the way fairseq does."""

    def make(name: str, task: Any, **flags: Any) -> Any:
        cfg = CRITERION_DATACLASS_REGISTRY[name]()
        for flag, value in {"sentence_avg": False, "tpu": False, **flags}.items():
            if hasattr(cfg, flag):
                setattr(cfg, flag, value)
        return CRITERION_REGISTRY[name].build_criterion(cfg, task)

    return make
