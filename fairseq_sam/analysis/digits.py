"""Images of digits for the analytic trials: MNIST's IDX files, or the digits of scikit-learn.

An IDX file (LeCun et al., 1998) is two zero bytes, a byte for the type (8: unsigned bytes), a byte
for the number of dimensions, each dimension as a big-endian 32-bit number, and the values.
"""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from pathlib import Path
from typing import List, NamedTuple, Tuple

import numpy as np
import torch
from torch import Tensor

from fairseq_sam.files.reading import DataError

NUM_CLASSES = 10
_UNSIGNED_BYTES = 8
_TEST_PATTERNS = ("t[0-9]*k*", "*test*")  # MNIST's own test files are called t10k


class Examples(NamedTuple):
    """One split of a data set.

    Attributes:
        inputs: brightness from 0 to 1, [examples, pixels].
        labels: the digits, [examples].
    """

    inputs: Tensor
    labels: Tensor


class Digits(NamedTuple):
    """A data set: the training set D and the test set D* of the paper."""

    train: Examples
    test: Examples


def read_idx(path: Path, num_dimensions: int) -> np.ndarray:
    """Reads an IDX file of unsigned bytes; one whose name ends in .gz is unpacked on the way.

    Args:
        path: the file.
        num_dimensions: 3 for images [examples, rows, columns], 1 for labels [examples].

    Raises:
        DataError: the file cannot be read, is of another kind, or has more or fewer values than
            its header says.
    """
    try:
        content = path.read_bytes()
        if path.suffix == ".gz":
            content = gzip.decompress(content)
    except (OSError, EOFError, zlib.error) as error:
        reason = getattr(error, "strerror", None) or "damaged or truncated gzip file"
        raise DataError(f"{path}: cannot be read ({reason})") from error
    header = 4 + 4 * num_dimensions
    magic = bytes((0, 0, _UNSIGNED_BYTES, num_dimensions))
    if content[:4] != magic:
        found = content[:4].hex() or "nothing"
        raise DataError(f"{path}: starts with {found}, where an IDX file has {magic.hex()}")
    if len(content) < header:
        raise DataError(f"{path}: truncated within its header of {header} bytes")
    shape = struct.unpack(f">{num_dimensions}I", content[4:header])
    if len(content) - header != math.prod(shape):
        wanted = " x ".join(map(str, shape))
        raise DataError(f"{path}: has {len(content) - header} values, its header says {wanted}")
    return np.frombuffer(content, np.uint8, offset=header).reshape(shape)


def read_mnist(directory: Path) -> Digits:
    """Reads the four IDX files of a directory, packed or not.

    They are told by their names: ``*train*images*``, ``*train*labels*``, and the same with
    ``t10k`` (or t1k, or ``test``) in the place of ``train``.

    Raises:
        DataError: a file is missing, ambiguous or damaged, or the files do not fit each other.
    """
    if not directory.is_dir():
        raise DataError(f"{directory}: no such directory")
    train = _read_examples(directory, ("*train*",))
    test = _read_examples(directory, _TEST_PATTERNS)
    pixels = (train.inputs.shape[1], test.inputs.shape[1])
    if pixels[0] != pixels[1]:
        raise DataError(f"{directory}: training images have {pixels[0]} pixels, test {pixels[1]}")
    return Digits(train, test)


def _read_examples(directory: Path, patterns: Tuple[str, ...]) -> Examples:
    image_file, label_file = (_find(directory, patterns, kind) for kind in ("images", "labels"))
    images, labels = read_idx(image_file, 3), read_idx(label_file, 1)
    if len(images) != len(labels):
        raise DataError(f"{label_file}: {len(labels)} labels for {len(images)} images")
    if images.size == 0:
        raise DataError(f"{image_file}: holds no pixels")
    if labels.max() >= NUM_CLASSES:
        raise DataError(f"{label_file}: has a label {labels.max()}, digits go from 0 to 9")
    return _examples(images.astype(np.float32) / 255, labels)


def _find(directory: Path, patterns: Tuple[str, ...], kind: str) -> Path:
    """Returns the one file of a kind; of a packed and an unpacked copy, the unpacked one."""
    names = [f"{pattern}{kind}*" for pattern in patterns]
    found: List[Path] = sorted({path for name in names for path in directory.glob(name)})
    found = [p for p in found if p.suffix != ".gz" or p.with_suffix("") not in found]
    if not found:
        raise DataError(f"{directory}: no file is called {' or '.join(names)}")
    if len(found) > 1:
        listed = ", ".join(path.name for path in found)
        raise DataError(f"{directory}: several files are called {' or '.join(names)}: {listed}")
    return found[0]


def sklearn_digits(size: int = 28, test_share: float = 0.25, seed: int = 1) -> Digits:
    """Returns scikit-learn's 1,797 digits (8 x 8 pixels), enlarged and parted at random.

    Args:
        size: width and height in pixels, at least 8. Each pixel becomes a square of size // 8, and
            the rest is a dark margin.
        test_share: share of the test set.
        seed: of the random split.

    Raises:
        ImportError: scikit-learn is not there.
        ValueError: the size is below 8.
    """
    from sklearn.datasets import load_digits

    if size < 8:
        raise ValueError(f"size is {size}: the digits have 8 x 8 pixels")
    images, labels = load_digits(return_X_y=True)
    scale = size // 8
    margin = size - 8 * scale
    enlarged = np.kron(images.reshape(-1, 8, 8) / 16, np.ones((1, scale, scale)))
    border = (margin // 2, margin - margin // 2)
    enlarged = np.pad(enlarged, ((0, 0), border, border))
    order = np.random.default_rng(seed).permutation(len(labels))
    num_test = round(test_share * len(labels))
    train, test = order[num_test:], order[:num_test]
    return Digits(
        _examples(enlarged[train], labels[train]), _examples(enlarged[test], labels[test])
    )


def _examples(images: np.ndarray, labels: np.ndarray) -> Examples:
    inputs = torch.from_numpy(images.reshape(len(images), -1).astype(np.float32))
    return Examples(inputs, torch.from_numpy(labels.astype(np.int64)))
