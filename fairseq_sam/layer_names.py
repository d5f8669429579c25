"""Which layer of a model a parameter belongs to, by its name."""

import re

_NUMBERED_LAYER = re.compile(r"^(.*?layers\.\d+)\.")


def layer_of(name: str) -> str:
    """Returns the layer that a parameter belongs to.

    >>> layer_of("encoder.layers.3.self_attn.k_proj.bias")
    'encoder.layers.3'
    >>> layer_of("decoder.embed_tokens.weight")
    'decoder.embed_tokens'
    >>> layer_of("scale")
    'scale'
    """
    numbered = _NUMBERED_LAYER.match(name)
    return numbered.group(1) if numbered else (name.rpartition(".")[0] or name)
