"""Writes IDX files as MNIST's, for tests."""

import gzip
import struct
from pathlib import Path

import numpy as np


def write_idx(path: Path, values: np.ndarray) -> Path:
    """Writes unsigned bytes, packed if the name says so."""
    header = struct.pack(f">BBBB{values.ndim}I", 0, 0, 8, values.ndim, *values.shape)
    content = header + values.tobytes()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


def write_mnist(directory: Path, num_train: int = 30, num_test: int = 20, size: int = 4) -> Path:
    """Writes the four files with made images: noise, and a bright pixel that tells the label."""
    rng = np.random.default_rng(0)
    for name, count in (("train", num_train), ("t10k", num_test)):
        labels = (np.arange(count) % 10).astype(np.uint8)
        images = rng.integers(0, 50, (count, size * size)).astype(np.uint8)
        images[np.arange(count), labels] = 255
        write_idx(directory / f"{name}-images-idx3-ubyte", images.reshape(count, size, size))
        write_idx(directory / f"{name}-labels-idx1-ubyte", labels)
    return directory
