"""Measuring without dropout."""

import contextlib
from typing import Iterator

import torch
from torch import nn


@contextlib.contextmanager
def evaluation_mode(*modules: nn.Module) -> Iterator[None]:
    """Context without dropout; every layer is afterwards in the mode it was in.

    Recurrent layers are kept off cuDNN, whose backward pass wants training mode.
    """
    before = [(layer, layer.training) for module in modules for layer in module.modules()]
    recurrent = any(isinstance(layer, nn.RNNBase) for layer, _ in before)
    off_cudnn = torch.backends.cudnn.flags(enabled=False) if recurrent else contextlib.nullcontext()
    try:
        for module in modules:
            module.eval()
        with off_cudnn:
            yield
    finally:
        for layer, training in before:
            layer.training = training
