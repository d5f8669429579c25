"""Writing a converted encoder as a fairseq checkpoint."""

import re
import shlex
from pathlib import Path
from typing import Any, Dict, List, NamedTuple

import torch
from torch import Tensor

from fairseq_sam.checkpoints.checkpoint_files import write_checkpoint
from fairseq_sam.checkpoints.conversion.encoder_weights import convert_weights, reorder_vocabulary
from fairseq_sam.checkpoints.conversion.source import ConversionError, Source, read_source
from fairseq_sam.checkpoints.conversion.tokenizer import write_tokenizer

_ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_new": "gelu_accurate",  # the approximation with tanh, under fairseq's name for it
    "gelu_pytorch_tanh": "gelu_accurate",
    "relu": "relu",
}
_ROBERTA_EPS = 1e-5
_HEAD_SEED = 1
_MADE_HERE = ("encoder.lm_head.", ".version", "._float_tensor")
_SECOND_COPY = re.compile(r"layers\.\d+\.(in_proj|out_proj|fc1|fc2)_(weight|bias)$")
"""Weights that fairseq 0.12.2's encoder layers have twice, and fill when they load the first."""


class Converted(NamedTuple):
    """What was written.

    Attributes:
        flags: fairseq-train's flags that build the same model.
        num_words: entries of the dictionary, specials included.
        new_head: whether the language model's head is a random one, for want of one in the source.
    """

    flags: List[str]
    num_words: int
    new_head: bool


def convert(source_folder: Path, target: Path) -> Converted:
    """Converts an encoder; writes ``dict.txt``, ``tokenizer.json`` and ``flags.txt`` next to it.

    The hidden states are the source's. A language model's head that the source does not have, or
    that does not end in the words' embedding as fairseq's does, is drawn from N(0, 0.02²), as
    BERT's weights are to begin with.

    Args:
        source_folder: with the files of Hugging Face.
        target: the checkpoint; its folder is made if there is none.

    Raises:
        ConversionError: the source cannot be read, or fairseq has no such model.
    """
    source = read_source(source_folder)
    architecture = _architecture(source)
    flags = [text for name, value in architecture.items() for text in (f"--{name}", str(value))]
    vocabulary = reorder_vocabulary(source.vocabulary, source.config["model_type"])
    state = convert_weights(source, vocabulary)
    out = target.parent
    cfg, model = _build(flags, vocabulary.words, out)
    if source.config["model_type"] != "bert":  # what RoBERTa has there was not trained
        state = {name: value for name, value in state.items() if not name.startswith("pooler.")}
    new_head = "encoder.lm_head.dense.weight" not in state
    checkpoint = _checkpoint(cfg, _filled(model, state))
    # From here on nothing is wrong with the source: no folder is left with parts of two models.
    out.mkdir(parents=True, exist_ok=True)
    write_tokenizer(source_folder, out)
    lines = "".join(f"{word} 1\n" for word in vocabulary.words)
    (out / "dict.txt").write_text(lines, encoding="utf-8")
    write_checkpoint(checkpoint, str(target))
    (out / "flags.txt").write_text(shlex.join(flags) + "\n", encoding="utf-8")
    return Converted(flags, len(vocabulary.rows), new_head)


def _architecture(source: Source) -> Dict[str, Any]:
    """Returns fairseq-train's flags.

    BERT is told from RoBERTa by its segments: it always has some. A RoBERTa is fairseq's own, or
    ``--arch bert`` without segments where its eps is another.
    """
    config = source.config
    activation = config.get("hidden_act", "gelu")
    if activation not in _ACTIVATIONS:
        raise ConversionError(
            f"config.json: hidden_act is {activation}; it must be one of {', '.join(_ACTIVATIONS)}"
        )
    if config.get("position_embedding_type", "absolute") != "absolute":
        raise ConversionError(
            f"config.json: position_embedding_type is {config['position_embedding_type']}; it must "
            "be absolute"
        )
    is_bert = config["model_type"] == "bert"
    if not is_bert and config.get("pad_token_id", 1) != 1:  # positions are counted from there
        raise ConversionError(
            f"config.json: pad_token_id is {config['pad_token_id']}; of a roberta it must be 1"
        )
    eps = config.get("layer_norm_eps", 1e-12)
    try:
        flags: Dict[str, Any] = {
            "arch": "bert" if is_bert or eps != _ROBERTA_EPS else "roberta",
            "encoder-layers": config["num_hidden_layers"],
            "encoder-embed-dim": config["hidden_size"],
            "encoder-ffn-embed-dim": config["intermediate_size"],
            "encoder-attention-heads": config["num_attention_heads"],
            "max-positions": config["max_position_embeddings"] - (0 if is_bert else 2),
            "activation-fn": _ACTIVATIONS[activation],
        }
    except KeyError as error:
        raise ConversionError(f"config.json: has no {error.args[0]}") from None
    if flags["arch"] == "bert":
        segments = max(2, config.get("type_vocab_size", 2)) if is_bert else 1
        flags.update({"layer-norm-eps": eps, "num-segments": segments})
    return flags


def _build(flags: List[str], words: List[str], data: Path) -> Any:
    """Returns fairseq's configuration and the model that it builds, with a reproducible head."""
    from fairseq import options
    from fairseq.data import Dictionary
    from fairseq.dataclass.utils import convert_namespace_to_omegaconf
    from fairseq.tasks.masked_lm import MaskedLMTask

    parser = options.get_training_parser()
    positions = flags[flags.index("--max-positions") + 1]
    arguments = [str(data), "--task", "masked_lm", "--criterion", "masked_lm", *flags]
    args = options.parse_args_and_arch(parser, [*arguments, "--tokens-per-sample", positions])
    cfg = convert_namespace_to_omegaconf(args)
    dictionary = Dictionary()
    for word in words:
        dictionary.add_symbol(word)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(_HEAD_SEED)
        return cfg, MaskedLMTask(cfg.task, dictionary).build_model(cfg.model)


def _filled(model: Any, state: Dict[str, Tensor]) -> Dict[str, Tensor]:
    """Returns the model's whole state with the converted weights in it, and the pooler."""
    expected = {k: v for k, v in model.state_dict().items() if not _SECOND_COPY.search(k)}
    extra = {name: value for name, value in state.items() if name.startswith("pooler.")}
    for name, value in state.items():
        if name not in extra and (name not in expected or expected[name].shape != value.shape):
            shape = list(expected[name].shape) if name in expected else "no such weight"
            raise ConversionError(f"{name}: has shape {list(value.shape)}, config.json has {shape}")
    missing = [
        name
        for name in expected
        if name not in state and not any(part in name for part in _MADE_HERE)
    ]
    if missing:
        raise ConversionError(f"there is no weight for {missing[0]}")
    expected.update(state)
    expected["encoder.lm_head.weight"] = state["encoder.sentence_encoder.embed_tokens.weight"]
    return expected


def _checkpoint(cfg: Any, state: Dict[str, Tensor]) -> Dict[str, Any]:
    """Returns what fairseq-train would have written, had it trained for no update."""
    from omegaconf import OmegaConf

    history = {
        "criterion_name": "MaskedLmLoss",
        "optimizer_name": "FairseqAdam",
        "lr_scheduler_state": {"best": None},
        "num_updates": 0,
    }
    return {
        "args": None,
        "cfg": OmegaConf.to_container(cfg, resolve=True, enum_to_str=True),
        "model": state,
        "criterion": None,
        "optimizer_history": [history],
        "task_state": {},
        "extra_state": {"train_iterator": {"epoch": 1, "iterations_in_epoch": 0}},
    }
