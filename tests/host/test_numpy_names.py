"""What fairseq's modules see of numpy, alone and once repaired."""

import subprocess
import sys
from types import ModuleType

import numpy as np
import pytest
import torch
from fairseq.data import data_utils
from fairseq.modules import dynamic_crf_layer

from fairseq_sam.host import fairseq_modules, numpy_names


def names_that_numpy_lacks():
    return [
        (module.__name__, name)
        for module in fairseq_modules.fairseq_modules()
        for name in ("bool", "complex", "float", "int", "long", "object", "str", "compat")
        if fairseq_modules.uses(module, "np", name) and not hasattr(module.np, name)
    ]


class TestRemovedNames:
    def test_are_there_for_all_modules(self):
        assert names_that_numpy_lacks() == []

    def test_are_missing_without_the_repair(self, monkeypatch):
        for module in fairseq_modules.fairseq_modules():
            if isinstance(vars(module).get("np"), fairseq_modules.ModuleView):
                monkeypatch.setattr(module, "np", np)
        if hasattr(np, "float"):
            pytest.skip(f"numpy {np.__version__} has them")
        assert ("fairseq.modules.dynamic_crf_layer", "float") in names_that_numpy_lacks()

    def test_numpy_itself_stays_as_it_is(self):
        program = "import numpy; names = sorted(dir(numpy)); "
        program += "import fairseq.data; from fairseq_sam import host; host.repair(); "
        program += "import json; print(json.dumps(sorted(set(dir(numpy)) - set(names))))"
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", program],
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
        assert not {"float", "int", "object"} & set(eval(done.stdout.splitlines()[-1]))

    def test_crf_of_non_autoregressive_models(self):
        torch.manual_seed(1)
        layer = dynamic_crf_layer.DynamicCRF(12, low_rank=4, beam_size=3)
        masks = torch.ones(2, 5, dtype=torch.bool)
        likelihood = layer(torch.randn(2, 5, 12), torch.randint(12, (2, 5)), masks)
        assert torch.isfinite(likelihood).all()

    def test_masks_without_overlap_know_their_integers(self):
        assert np.dtype(data_utils.np.int) == np.dtype(int)

    def test_a_module_that_uses_none_is_left_alone(self):
        module = ModuleType("fairseq.unknown")
        module.np = np
        assert not any(repair.is_present(module) for repair in numpy_names.MODULE_REPAIRS)


class TestSpanMasks:
    """Those of wav2vec 2.0, HuBERT and data2vec."""

    @staticmethod
    def draw(seed):
        np.random.seed(seed)
        padding = torch.zeros(3, 400, dtype=torch.bool)
        padding[1, 300:] = True
        return data_utils.compute_mask_indices((3, 400), padding, 0.3, 7, min_masks=1)

    def test_follow_the_seed(self):
        first = self.draw(1)
        assert (self.draw(1) == first).all()
        assert self.draw(2).shape != first.shape or (self.draw(2) != first).any()
        assert 0.1 < first.mean() < 0.6

    def test_advance_the_global_state(self):
        first = self.draw(1)
        second = data_utils.compute_mask_indices((3, 400), None, 0.3, 7)
        assert second.shape != first.shape or (second != first).any()

    def test_with_a_seed_of_their_own_are_fairseqs(self, monkeypatch):
        def draw():
            return data_utils.np.random.default_rng(5).integers(0, 100, 10)

        ours = draw()
        monkeypatch.setattr(data_utils, "np", np)
        assert (draw() == ours).all()

    def test_ignore_the_seed_without_the_repair(self, monkeypatch):
        if not fairseq_modules.uses(data_utils, "np", "random", "default_rng"):
            pytest.skip("this fairseq does not have this fault")
        monkeypatch.setattr(data_utils, "np", np)
        first, second = self.draw(1), self.draw(1)
        assert second.shape != first.shape or (second != first).any()

    def test_of_a_model_follow_the_seed(self):
        from fairseq.models.wav2vec.wav2vec2 import Wav2Vec2Config, Wav2Vec2Model

        config = Wav2Vec2Config(
            conv_feature_layers="[(8, 10, 5)] + [(8, 3, 2)]",
            encoder_layers=1,
            encoder_embed_dim=8,
            encoder_ffn_embed_dim=8,
            encoder_attention_heads=2,
            final_dim=8,
            num_negatives=3,
            dropout=0.0,
            attention_dropout=0.0,
            encoder_layerdrop=0.0,
            conv_pos=4,
            conv_pos_groups=2,
        )
        torch.manual_seed(1)
        model = Wav2Vec2Model(config).train()
        for dropout in (model.dropout_input, model.dropout_features):
            dropout.p = 0.0

        def forward():
            np.random.seed(3)
            torch.manual_seed(3)
            return model(torch.linspace(-1, 1, 4000).repeat(2, 1))["x"]

        assert torch.equal(forward(), forward())
