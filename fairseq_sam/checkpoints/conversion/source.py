"""Reading a folder in Hugging Face's layout: configuration, weights, vocabulary."""

import json
from pathlib import Path
from typing import Any, Callable, Dict, List, NamedTuple, Tuple

import torch
from torch import Tensor

from fairseq_sam import FairseqSamError

MODEL_TYPES = ("bert", "roberta")


class ConversionError(FairseqSamError):
    """Something that cannot be converted; the text is one line that names it."""


class Source(NamedTuple):
    """A pretrained encoder.

    Attributes:
        config: what ``config.json`` says.
        weights: by Hugging Face's names, without the model's prefix (``bert.``); as stored.
        vocabulary: the pieces, in the order of the embedding's rows.
    """

    config: Dict[str, Any]
    weights: Dict[str, Tensor]
    vocabulary: List[str]


def read_source(folder: Path) -> Source:
    """Reads ``config.json``, the first weight file there is, and the vocabulary.

    Raises:
        ConversionError: a file is missing or damaged, its reader is not installed, or the model is
            of another type than BERT and RoBERTa.
    """
    if not folder.is_dir():
        raise ConversionError(f"{folder}: no such directory")
    config = read_json_object(folder / "config.json")
    if config.get("model_type") not in MODEL_TYPES:
        raise ConversionError(
            f"{folder / 'config.json'}: model_type is {config.get('model_type')}; "
            f"it must be one of {', '.join(MODEL_TYPES)}"
        )
    return Source(config, _read_weights(folder), _read_vocabulary(folder))


def read_json_object(path: Path) -> Dict[str, Any]:
    """Reads a file that holds one JSON object.

    Raises:
        ConversionError: it is missing, damaged, or holds something else.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConversionError(f"{path}: no such file") from None
    except (OSError, ValueError) as error:
        raise ConversionError(f"{path}: cannot be read ({error})") from error
    if not isinstance(content, dict):
        raise ConversionError(f"{path}: is not a JSON object")
    return content


def _read_weights(folder: Path) -> Dict[str, Tensor]:
    for name, read in _READERS:
        path = folder / name
        if path.is_file():
            try:
                return {_plain_name(key): value for key, value in read(path).items()}
            except ImportError as error:
                package = str(error.name)
                raise ConversionError(f"{path}: needs {package}: pip install {package}") from error
            except Exception as error:  # each format has its own ways of being damaged
                reason = f"{type(error).__name__}: {error}".splitlines()[0]
                raise ConversionError(f"{path}: cannot be read ({reason})") from error
    names = ", ".join(name for name, _ in _READERS)
    raise ConversionError(f"{folder}: has none of {names}")


def _plain_name(name: str) -> str:
    """Drops the model's prefix, and spells layer normalisation as newer files do."""
    for model in MODEL_TYPES:
        if name.startswith(f"{model}."):
            name = name[len(model) + 1 :]
    return name.replace("LayerNorm.gamma", "LayerNorm.weight").replace(
        "LayerNorm.beta", "LayerNorm.bias"
    )


def _read_safetensors(path: Path) -> Dict[str, Tensor]:
    from safetensors.torch import load_file

    weights: Dict[str, Tensor] = load_file(str(path))
    return weights


def _read_torch(path: Path) -> Dict[str, Tensor]:
    weights: Dict[str, Tensor] = torch.load(str(path), map_location="cpu", weights_only=True)
    return weights


def _read_onnx(path: Path) -> Dict[str, Tensor]:
    """Reads an exported graph, whose weight matrices have lost their names.

    Exporters fold the transposition of a linear layer's weight into the stored matrix, under a
    name such as ``onnx::MatMul_123``; the multiplication's own name still tells the layer.
    """
    import onnx
    from onnx import numpy_helper

    graph = onnx.load(str(path)).graph
    stored = {each.name: numpy_helper.to_array(each) for each in graph.initializer}
    weights = {name: torch.tensor(array) for name, array in stored.items()}
    for node in graph.node:
        if node.op_type == "MatMul" and node.input[1] in stored:
            name = ".".join(node.name.strip("/").split("/")[:-1])
            weights[f"{name}.weight"] = torch.tensor(stored[node.input[1]]).t().contiguous()
    return weights


_READERS: Tuple[Tuple[str, Callable[[Path], Dict[str, Tensor]]], ...] = (
    ("model.safetensors", _read_safetensors),
    ("pytorch_model.bin", _read_torch),
    ("model.onnx", _read_onnx),
)


def _read_vocabulary(folder: Path) -> List[str]:
    lines, table = folder / "vocab.txt", folder / "vocab.json"
    if lines.is_file():
        # Not splitlines: a vocabulary may hold pieces that Unicode takes for ends of lines.
        return lines.read_text(encoding="utf-8").rstrip("\n").replace("\r\n", "\n").split("\n")
    if not table.is_file():
        raise ConversionError(f"{folder}: has neither vocab.txt nor vocab.json")
    indices = read_json_object(table)
    if sorted(indices.values()) != list(range(len(indices))):
        raise ConversionError(f"{table}: its indices are not 0 to {len(indices) - 1}")
    return sorted(indices, key=lambda piece: indices[piece])
