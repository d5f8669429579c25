"""Layers and optimizers: fairseq alone, and once repaired."""

from types import SimpleNamespace

import pytest
import torch
from fairseq.modules.transformer_layer import TransformerEncoderLayerBase
from fairseq.optim.amp_optimizer import AMPOptimizer


def test_amp_scale_window_is_the_growth_interval(monkeypatch, unrepaired):
    class Scaler:
        def __init__(self, init_scale, growth_interval=2000):
            self.interval = growth_interval

        def set_growth_interval(self, interval):
            self.interval = interval

    def interval(build, window):
        common = {"fp16_init_scale": 8, "amp_init_scale": 4, "amp_scale_window": window}
        config = SimpleNamespace(optimizer=None, common=SimpleNamespace(min_loss_scale=1, **common))
        optimizer = AMPOptimizer.__new__(AMPOptimizer)
        build(optimizer, config, [], None)
        return optimizer.scaler.interval

    monkeypatch.setattr(torch.cuda.amp, "GradScaler", Scaler)
    original = unrepaired(AMPOptimizer.__init__)
    assert interval(original, 100) == 4
    assert interval(AMPOptimizer.__init__, 100) == 100
    assert interval(AMPOptimizer.__init__, None) == 2000


def test_encoder_layer_evaluates_padded_batches(unrepaired):
    from fairseq.models.transformer import TransformerConfig
    from fairseq.models.transformer.transformer_config import EncDecBaseConfig

    def evaluate(build):
        config = TransformerConfig()
        config.encoder = EncDecBaseConfig(embed_dim=2, ffn_embed_dim=2, attention_heads=1)
        layer = TransformerEncoderLayerBase.__new__(TransformerEncoderLayerBase)
        build(layer, config)
        layer.eval().load_state_dict(layer.state_dict())
        padding = torch.tensor([[False, True], [False, False]])
        with torch.no_grad():
            return layer(torch.zeros(2, 2, 2), padding)

    assert evaluate(TransformerEncoderLayerBase.__init__).shape == (2, 2, 2)
    with pytest.raises(RuntimeError, match="Mask Type"):
        evaluate(unrepaired(TransformerEncoderLayerBase.__init__))
