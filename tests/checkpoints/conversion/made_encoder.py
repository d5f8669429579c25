"""Made encoders in Hugging Face's layout, and their forward pass written out plainly."""

import json
import math
from pathlib import Path
from typing import Any, Dict, List, NamedTuple, Optional

import torch
import torch.nn.functional as F
from torch import Tensor

WORDS = ["a", "man", "play", "##s", "the", "guitar", "##ist", "un", "##known", "."]
BERT_SPECIALS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
BERT_PIECES = ["[PAD]", "[unused0]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
ROBERTA_PIECES = ["<s>", "<pad>", "</s>", "<unk>", "a", "Ġman", "Ġplays", "Ġthe", "<mask>"]

CONFIG = {
    "model_type": "bert",
    "hidden_act": "gelu",
    "hidden_size": 12,
    "intermediate_size": 20,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "max_position_embeddings": 16,
    "layer_norm_eps": 1e-12,
    "type_vocab_size": 2,
}
ROBERTA = {"model_type": "roberta", "layer_norm_eps": 1e-5, "type_vocab_size": 1}

Weights = Dict[str, Tensor]


class MadeEncoder(NamedTuple):
    folder: Path
    config: Dict[str, Any]
    weights: Weights
    pieces: List[str]


def make_weights(config: Dict[str, Any], vocabulary: int, seed: int = 3) -> Weights:
    """Random weights, far from the usual small ones so that a mistake is seen."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return 0.3 * torch.randn(shape, generator=generator)

    dim, inner = config["hidden_size"], config["intermediate_size"]
    weights: Weights = {
        "embeddings.word_embeddings.weight": draw(vocabulary, dim),
        "embeddings.position_embeddings.weight": draw(config["max_position_embeddings"], dim),
        "embeddings.token_type_embeddings.weight": draw(config["type_vocab_size"], dim),
    }
    linear = {"pooler.dense": (dim, dim)}
    norms = ["embeddings.LayerNorm"]
    for layer in range(config["num_hidden_layers"]):
        at = f"encoder.layer.{layer}."
        for name in ("self.query", "self.key", "self.value", "output.dense"):
            linear[f"{at}attention.{name}"] = (dim, dim)
        linear[f"{at}intermediate.dense"] = (inner, dim)
        linear[f"{at}output.dense"] = (dim, inner)
        norms += [f"{at}attention.output.LayerNorm", f"{at}output.LayerNorm"]
    for name, (rows, columns) in linear.items():
        weights[f"{name}.weight"], weights[f"{name}.bias"] = draw(rows, columns), draw(rows)
    for name in norms:
        weights[f"{name}.weight"], weights[f"{name}.bias"] = 1 + draw(dim), draw(dim)
    return weights


def add_lm_head(weights: Weights, vocabulary: int, dim: int) -> None:
    generator = torch.Generator().manual_seed(5)
    for name in ("transform.dense", "transform.LayerNorm"):
        shape = (dim, dim) if name.endswith("dense") else (dim,)
        weights[f"cls.predictions.{name}.weight"] = torch.randn(shape, generator=generator)
        weights[f"cls.predictions.{name}.bias"] = torch.randn(dim, generator=generator)
    weights["cls.predictions.bias"] = torch.randn(vocabulary, generator=generator)


def write_encoder(
    folder: Path,
    pieces: Optional[List[str]] = None,
    prefix: str = "",
    lm_head: bool = False,
    **settings: Any,
) -> MadeEncoder:
    """Writes an encoder with ``pytorch_model.bin``."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {**CONFIG, **settings}
    is_bert = config["model_type"] == "bert"
    pieces = pieces or (BERT_PIECES if is_bert else ROBERTA_PIECES)
    weights = make_weights(config, len(pieces))
    if lm_head:
        add_lm_head(weights, len(pieces), config["hidden_size"])
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    stored = {prefix + name: value for name, value in weights.items()}
    torch.save(stored, folder / "pytorch_model.bin")
    if is_bert:
        (folder / "vocab.txt").write_text("\n".join(pieces) + "\n", encoding="utf-8")
    else:
        table = {piece: row for row, piece in enumerate(pieces)}
        (folder / "vocab.json").write_text(json.dumps(table), encoding="utf-8")
        (folder / "merges.txt").write_text("#version: 0.2\n", encoding="utf-8")
    return MadeEncoder(folder, config, weights, pieces)


def hidden_states(
    made: MadeEncoder, rows: List[int], segments: List[int], first_position: int = 0
) -> List[Tensor]:
    """Hidden states of one sentence in float64, embedding first; Devlin et al. 2019, written out.

    Args:
        made: the encoder.
        rows: the sentence's pieces by their rows.
        segments: the segment of each.
        first_position: the row of the first position.

    Returns:
        One tensor [tokens, dim] for the embedding and for each layer.
    """
    w = {name: value.double() for name, value in made.weights.items()}
    config, dim = made.config, made.config["hidden_size"]
    heads, head_dim = config["num_attention_heads"], dim // config["num_attention_heads"]

    def norm(name: str, x: Tensor) -> Tensor:
        mean = x.mean(-1, keepdim=True)
        variance = ((x - mean) ** 2).mean(-1, keepdim=True)
        scaled = (x - mean) / torch.sqrt(variance + config["layer_norm_eps"])
        return scaled * w[f"{name}.weight"] + w[f"{name}.bias"]

    def linear(name: str, x: Tensor) -> Tensor:
        return x @ w[f"{name}.weight"].t() + w[f"{name}.bias"]

    positions = torch.arange(len(rows)) + first_position
    x = w["embeddings.word_embeddings.weight"][rows]
    x = x + w["embeddings.position_embeddings.weight"][positions]
    x = x + w["embeddings.token_type_embeddings.weight"][segments]
    x = norm("embeddings.LayerNorm", x)
    states = [x]
    for layer in range(config["num_hidden_layers"]):
        at = f"encoder.layer.{layer}"
        mixed = []
        for head in range(heads):
            part = slice(head * head_dim, (head + 1) * head_dim)
            q, k, v = (linear(f"{at}.attention.self.{n}", x)[:, part] for n in _PROJECTIONS)
            mixed.append(F.softmax(q @ k.t() / math.sqrt(head_dim), dim=-1) @ v)
        attended = linear(f"{at}.attention.output.dense", torch.cat(mixed, dim=-1))
        x = norm(f"{at}.attention.output.LayerNorm", x + attended)
        inner = linear(f"{at}.intermediate.dense", x)
        inner = 0.5 * inner * (1 + torch.erf(inner / math.sqrt(2)))
        x = norm(f"{at}.output.LayerNorm", x + linear(f"{at}.output.dense", inner))
        states.append(x)
    return states


_PROJECTIONS = ("query", "key", "value")
