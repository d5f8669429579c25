"""From Hugging Face's names and row orders to fairseq's; pure torch."""

from typing import Dict, List, NamedTuple

import torch
from torch import Tensor

from fairseq_sam.checkpoints.conversion.source import ConversionError, Source

FAIRSEQ_SPECIALS = ("<s>", "<pad>", "</s>", "<unk>")
MASK = "<mask>"

_SPECIALS = {
    "bert": ("[CLS]", "[PAD]", "[SEP]", "[UNK]", "[MASK]"),
    "roberta": (*FAIRSEQ_SPECIALS, MASK),
}
_FIRST_POSITION = 2  # fairseq numbers positions from padding_idx + 1

_LAYER = {
    "attention.self.query": "self_attn.q_proj",
    "attention.self.key": "self_attn.k_proj",
    "attention.self.value": "self_attn.v_proj",
    "attention.output.dense": "self_attn.out_proj",
    "attention.output.LayerNorm": "self_attn_layer_norm",
    "intermediate.dense": "fc1",
    "output.dense": "fc2",
    "output.LayerNorm": "final_layer_norm",
}
_LM_HEAD = {
    "cls.predictions.transform.dense": "dense",
    "cls.predictions.transform.LayerNorm": "layer_norm",
    "lm_head.dense": "dense",
    "lm_head.layer_norm": "layer_norm",
}
_LM_BIAS = ("cls.predictions.bias", "lm_head.bias")
_LM_MATRIX = ("cls.predictions.decoder.weight", "lm_head.decoder.weight")


class Vocabulary(NamedTuple):
    """A vocabulary in fairseq's order: four specials, the words, ``<mask>``.

    Attributes:
        words: what goes into dict.txt.
        rows: for each entry, specials and mask included, its row in the source [entries].
    """

    words: List[str]
    rows: Tensor


def reorder_vocabulary(pieces: List[str], model_type: str) -> Vocabulary:
    """Puts a vocabulary into fairseq's order.

    fairseq's dictionaries hold neither white space nor words that are called as its specials; such
    a piece keeps its row under the name ``madeupword<row>``, which no text contains.

    Args:
        pieces: in the order of the source's rows.
        model_type: ``bert`` or ``roberta``, which says what the special pieces are called.

    Raises:
        ConversionError: a special piece is missing, or a piece is there twice.
    """
    index = {piece: row for row, piece in enumerate(pieces)}
    specials = _SPECIALS[model_type]
    missing = [piece for piece in specials if piece not in index]
    if missing:
        raise ConversionError(f"the vocabulary has no {', '.join(missing)}")
    if len(index) < len(pieces):
        twice = next(piece for row, piece in enumerate(pieces) if index[piece] != row)
        raise ConversionError(f"the vocabulary has {twice} twice")
    ordinary = [piece for piece in pieces if piece not in specials]
    order = [*specials[:-1], *ordinary, specials[-1]]
    rows = torch.tensor([index[piece] for piece in order])
    reserved = {*FAIRSEQ_SPECIALS, MASK}
    words = [
        piece if piece.split() == [piece] and piece not in reserved else f"madeupword{index[piece]}"
        for piece in ordinary
    ]
    return Vocabulary(words, rows)


def convert_weights(source: Source, vocabulary: Vocabulary) -> Dict[str, Tensor]:
    """Returns a state of fairseq's RoBERTa or, with segments and pooler, of ``--arch bert``.

    Weights are float32. The first segment's embedding, which every token of a RoBERTa gets, is
    added to its positions instead. A BERT with one segment has it twice.

    Args:
        source: what is converted.
        vocabulary: its vocabulary in fairseq's order.

    Raises:
        ConversionError: a weight is missing or does not have as many rows as it should.
    """
    weights = _Weights(source.weights)
    encoder = "encoder.sentence_encoder."
    words = weights["embeddings.word_embeddings.weight"]
    if len(words) < len(source.vocabulary):
        raise ConversionError(
            f"the vocabulary has {len(source.vocabulary)} pieces, the embedding {len(words)} rows"
        )
    state = {f"{encoder}embed_tokens.weight": words[vocabulary.rows]}
    positions = weights["embeddings.position_embeddings.weight"]
    segments = weights["embeddings.token_type_embeddings.weight"]
    if source.config["model_type"] == "bert":
        positions = torch.cat([positions.new_zeros(_FIRST_POSITION, positions.size(1)), positions])
        both = segments if len(segments) > 1 else segments.repeat(2, 1)
        state[f"{encoder}embed_positions.segments.weight"] = both
    else:
        positions = positions + segments[0]
    state[f"{encoder}embed_positions.weight"] = positions
    weights.copy("embeddings.LayerNorm", f"{encoder}layernorm_embedding", state)
    for layer in range(source.config["num_hidden_layers"]):
        for theirs, ours in _LAYER.items():
            weights.copy(
                f"encoder.layer.{layer}.{theirs}", f"{encoder}layers.{layer}.{ours}", state
            )
    _convert_heads(weights, vocabulary, state)
    return state


def _convert_heads(weights: "_Weights", vocabulary: Vocabulary, state: Dict[str, Tensor]) -> None:
    """Takes over the pooler and the language model's head where they are there.

    fairseq's head ends in the words' embedding: one that ends in another matrix is left out.
    """
    if "pooler.dense.weight" in weights:
        weights.copy("pooler.dense", "pooler", state)
    count = len(vocabulary.rows)
    words = weights["embeddings.word_embeddings.weight"][:count]
    if any(
        name in weights and not torch.equal(weights[name][:count], words) for name in _LM_MATRIX
    ):
        return
    for theirs, ours in _LM_HEAD.items():
        if f"{theirs}.weight" in weights:
            weights.copy(theirs, f"encoder.lm_head.{ours}", state)
    for name in _LM_BIAS:
        if name in weights:
            state["encoder.lm_head.bias"] = weights[name][vocabulary.rows]


class _Weights:
    """The source's weights, with an error that names what is missing."""

    def __init__(self, weights: Dict[str, Tensor]) -> None:
        self._weights = weights

    def __contains__(self, name: str) -> bool:
        return name in self._weights

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._weights:
            raise ConversionError(f"there is no weight {name}")
        return self._weights[name].float()

    def copy(self, theirs: str, ours: str, state: Dict[str, Tensor]) -> None:
        for part in ("weight", "bias"):
            state[f"{ours}.{part}"] = self[f"{theirs}.{part}"]
