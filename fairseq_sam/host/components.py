"""Faults in fairseq's model layers and optimizers."""

import copy
import functools
from typing import Any

import torch

from .patching import Repair, uses_name


def _fast_path_fails() -> bool:
    from fairseq.models.transformer import TransformerConfig
    from fairseq.modules.transformer_layer import TransformerEncoderLayerBase

    if not uses_name(TransformerEncoderLayerBase.__init__, "can_use_fastpath"):
        return False
    config = copy.deepcopy(TransformerConfig())  # 0.12.2 shares its default parts between instances
    config.encoder.embed_dim = config.encoder.ffn_embed_dim = 2
    config.encoder.attention_heads = 1
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        layer = TransformerEncoderLayerBase(config).eval()
        layer.load_state_dict(layer.state_dict())  # only loaded weights take the fast path
        try:
            layer(torch.zeros(2, 2, 2), torch.tensor([[False, True], [False, False]]))
        except RuntimeError:
            return True
    return False


def _disable_fast_path() -> None:
    """Keeps fairseq 0.12.2 off a fused kernel whose arguments torch 2 changed.

    Without this every ``fairseq-generate`` with a padded batch ends in "Mask Type should be
    defined".  The ordinary path computes the same.
    """
    from fairseq.modules.transformer_layer import TransformerEncoderLayerBase

    original = TransformerEncoderLayerBase.__init__

    @functools.wraps(original)
    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs)
        self.can_use_fastpath = False

    TransformerEncoderLayerBase.__init__ = __init__


def _amp_ignores_its_flags() -> bool:
    from fairseq.optim.amp_optimizer import AMPOptimizer

    build = AMPOptimizer.__init__
    return uses_name(build, "amp_init_scale") and not uses_name(build, "amp_scale_window")


def _obey_amp_flags() -> None:
    """Makes ``--amp-scale-window`` the growth interval of the loss scale.

    fairseq passes the value of ``--amp-init-scale`` as that interval and starts from
    ``--fp16-init-scale``.  A command line without ``--amp-scale-window`` behaves as before.
    """
    from fairseq.optim.amp_optimizer import AMPOptimizer

    original = AMPOptimizer.__init__

    @functools.wraps(original)
    def __init__(self: Any, cfg: Any, *args: Any, **kwargs: Any) -> None:
        original(self, cfg, *args, **kwargs)
        window = cfg.common.amp_scale_window
        if window is not None:
            self._grad_scaler.set_growth_interval(window)

    AMPOptimizer.__init__ = __init__


REPAIRS = (
    Repair("generate fails with torch 2 in fairseq 0.12.2", _fast_path_fails, _disable_fast_path),
    Repair("--amp-scale-window is misread", _amp_ignores_its_flags, _obey_amp_flags),
)
