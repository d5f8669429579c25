"""``mirror_bert`` on a tiny encoder, with and without a seam."""

from types import SimpleNamespace
from typing import Any, Dict, List, Tuple

import pytest
import torch
from fairseq.criterions import CRITERION_DATACLASS_REGISTRY
from fairseq.data import Dictionary
from fairseq.models.roberta import RobertaModel
from torch import Tensor

import fairseq_sam
from fairseq_sam.criterions.mirror_bert import MirrorBertCriterion
from fairseq_sam.criterions.registration import per_sentence_name_of
from fairseq_sam.training.seam import Seam
from tests.criterions.conftest import _args, roberta_architecture
from tests.criterions.test_contrastive import loop_info_nce

LENGTHS = [9, 3, 7, 12]

fairseq_sam.register()


def make(dropout: float = 0.0, **settings: Any) -> Tuple[MirrorBertCriterion, Any]:
    dictionary = Dictionary()
    for index in range(25):
        dictionary.add_symbol(f"w{index}")
    dictionary.add_symbol("<mask>")
    task = SimpleNamespace(source_dictionary=dictionary)
    args = _args(dropout=dropout)
    roberta_architecture(args)
    torch.manual_seed(1)
    model = RobertaModel.build_model(args, task).double()
    defaults = CRITERION_DATACLASS_REGISTRY["mirror_bert"]()
    names = ("temperature", "pooling", "span", "noise", "perturb")
    flags = {f"mirror_{name}": getattr(defaults, f"mirror_{name}") for name in names}
    flags.update({f"mirror_{name}": value for name, value in settings.items()})
    return MirrorBertCriterion(task, **flags), model


def sample_of(rows: List[Tensor]) -> Dict[str, Any]:
    tokens = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=1)
    return {
        "net_input": {"src_tokens": tokens},
        "ntokens": sum(map(len, rows)),
        "nsentences": len(rows),
    }


def rows() -> List[Tensor]:
    generator = torch.Generator().manual_seed(4)
    ends = torch.tensor([0]), torch.tensor([2])
    return [
        torch.cat([ends[0], torch.randint(4, 29, (n,), generator=generator), ends[1]])
        for n in LENGTHS
    ]


def embedding(model: Any, row: Tensor, pooling: str) -> Tensor:
    with torch.no_grad():
        features = model(row[None], features_only=True)[0][0]
    return features[0] if pooling == "cls" else features.mean(dim=0)


class TestLosses:
    @pytest.mark.parametrize("pooling", ["cls", "mean"])
    def test_against_sentences_one_by_one(self, pooling: str) -> None:
        criterion, model = make(pooling=pooling, span=0, temperature=0.5)
        found = criterion.per_sentence_losses(model.eval(), sample_of(rows()), torch.float64)
        views = torch.stack([embedding(model, row, pooling) for row in rows()])
        # fairseq's attention computes its softmax in float32
        assert found.losses.tolist() == pytest.approx(loop_info_nce(views, views, 0.5), abs=1e-5)
        assert found.sample_size == len(LENGTHS)
        assert float(found.logging_output["ncorrect"]) == len(LENGTHS)

    def test_they_sum_to_the_loss(self) -> None:
        criterion, model = make(dropout=0.1)
        torch.manual_seed(2)
        loss, sample_size, logs = criterion(model, sample_of(rows()))
        torch.manual_seed(2)
        found = criterion.losses_only(model, sample_of(rows()))
        assert loss.item() == pytest.approx(found.sum().item(), rel=1e-6)
        assert sample_size == logs["sample_size"] == logs["nsentences"] == len(LENGTHS)
        assert logs["loss"].item() == loss.item()

    def test_order_of_the_batch(self) -> None:
        criterion, model = make(span=0)
        order = [2, 0, 3, 1]
        shuffled = sample_of([rows()[i] for i in order])
        found = criterion.losses_only(model.eval(), shuffled, torch.float64)
        expected = criterion.losses_only(model, sample_of(rows()), torch.float64)
        torch.testing.assert_close(found, expected[order], rtol=0, atol=1e-5)

    def test_a_batch_of_one_has_none(self) -> None:
        criterion, model = make()
        loss, _, _ = criterion(model, sample_of(rows()[:1]))
        loss.backward()
        assert loss.item() == 0
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        assert all(torch.isfinite(gradient).all() for gradient in gradients)


class TestViews:
    def views(self, criterion: MirrorBertCriterion, model: Any) -> Tuple[Tensor, Tensor]:
        torch.manual_seed(3)
        with torch.no_grad():
            one, other = criterion.embeddings(model, sample_of(rows())["net_input"]["src_tokens"])
        return one, other

    def test_same_without_dropout_and_the_rest(self) -> None:
        criterion, model = make(span=0)
        torch.testing.assert_close(*self.views(criterion, model.train()))

    def test_dropout_differs(self) -> None:
        criterion, model = make(dropout=0.2, span=0)
        one, other = self.views(criterion, model.train())
        assert (one - other).abs().amax(dim=1).min() > 1e-3

    @pytest.mark.parametrize("settings", [{"span": 2}, {"span": 0, "noise": 0.3}])
    def test_only_the_second_is_changed(self, settings: Dict[str, Any]) -> None:
        plain = self.views(*make(span=0))[0]
        criterion, model = make(**settings)
        one, other = self.views(criterion, model.train())
        torch.testing.assert_close(one, plain, rtol=0, atol=1e-6)
        changed = (other - plain).abs().amax(dim=1) > 1e-4
        assert changed.tolist() == [n >= 6 or "noise" in settings for n in LENGTHS]
        criterion.eval()
        torch.testing.assert_close(self.views(criterion, model)[1], plain, rtol=0, atol=1e-6)

    def test_noise_is_uniform_and_gone_afterwards(self) -> None:
        criterion, model = make(span=0, noise=0.3)
        seen = []
        words = model.encoder.sentence_encoder.embed_tokens
        layer = model.encoder.sentence_encoder.layernorm_embedding
        handle = layer.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
        self.views(criterion, model.train())
        handle.remove()
        noise = (seen[0][len(LENGTHS) :] - seen[0][: len(LENGTHS)]).flatten()
        assert 0.29 < float(noise.abs().max()) <= 0.3
        assert abs(float(noise.mean())) < 0.03
        assert float(noise.std()) == pytest.approx(0.3 / 3**0.5, rel=0.1)
        assert not words._forward_hooks


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"temperature": 0.0}, "--mirror-temperature: 0.0 is not allowed: .* above 0"),
        ({"temperature": float("nan")}, "--mirror-temperature: nan"),
        ({"span": -1}, "--mirror-span: -1 is not allowed: .* 0 or more"),
        ({"noise": -0.1}, "--mirror-noise: -0.1 is not allowed: .* 0 or more"),
    ],
)
def test_flags_out_of_range(settings: Dict[str, Any], said: str) -> None:
    with pytest.raises(SystemExit, match=said):
        make(**settings)


def test_outside_of_a_sharpness_aware_step_the_seam_calls_the_model() -> None:
    _, model = make()
    tokens = sample_of(rows())["net_input"]["src_tokens"]
    seam = Seam(task=None)
    assert not seam.is_perturbing
    found = seam.call_unperturbed(model.eval(), src_tokens=tokens, features_only=True)[0]
    assert torch.equal(found, model(src_tokens=tokens, features_only=True)[0])
    assert found.requires_grad


def test_stand_ins_for_stock_criterions_do_not_include_it() -> None:
    assert per_sentence_name_of("mirror_bert") is None
