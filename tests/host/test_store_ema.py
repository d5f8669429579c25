"""``--store-ema``: fairseq alone, and once repaired."""

from types import SimpleNamespace

import pytest
import torch
from fairseq.models.ema.ema import EMA
from fairseq.trainer import Trainer
from torch import nn

from tests.fairseq_runs import assert_identical, trained


class Tied(nn.Module):
    """Two names of one weight, another weight, and a buffer that is empty."""

    def __init__(self, value):
        super().__init__()
        self.embed = self.project = nn.Parameter(torch.full((2, 3), value))
        self.bias = nn.Parameter(torch.full((3,), value))
        self.register_buffer("nothing", torch.zeros(0))


@pytest.mark.parametrize("fp32", [False, True])
def test_shared_weights_move_once(fp32, unrepaired):
    def average(step, dtype=torch.float32):
        config = SimpleNamespace(ema_decay=0.75, ema_seed_model=None, ema_fp32=fp32)
        kept = EMA(Tied(0.0).to(dtype), config)
        for _ in range(2):
            step(kept, Tied(1.0).to(dtype))
        model = kept.get_model()
        assert model.embed is model.project
        return float(model.embed[0, 0]), float(model.bias[0])

    once = 1 - 0.75**2
    assert average(EMA._step_internal) == (once, once)
    assert average(EMA._step_internal, torch.bfloat16) == (once, once)
    assert average(unrepaired(EMA._step_internal)) == (1 - 0.75**4, once)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_shared_weights_have_one_copy_in_full_precision(dtype):
    config = SimpleNamespace(ema_decay=0.75, ema_seed_model=None, ema_fp32=True)
    kept = EMA(Tied(0.0).to(dtype), config)
    kept._step_internal(Tied(1.0).to(dtype))
    copies = kept.fp32_params
    assert copies["embed"] is copies["project"]
    assert float(copies["project"][0, 0]) == 0.25
    assert copies["project"].dtype == torch.float32

    # A checkpoint of an earlier version of the plugin has a stale second copy.
    saved = {key: value.clone() for key, value in copies.items()}
    saved["project"].zero_()
    again = EMA(Tied(0.0).to(dtype), config)
    again.build_fp32_params(saved)
    assert again.fp32_params["embed"] is again.fp32_params["project"]
    assert float(again.fp32_params["embed"][0, 0]) == 0.25


@pytest.mark.parametrize("precision", ["", "--fp16 --fp16-no-flatten-grads --fp16-init-scale 1"])
def test_checkpoints_have_no_stale_copy_of_tied_weights(fairseq_train, precision):
    run = fairseq_train(
        "--optimizer adam --store-ema --ema-fp32 --ema-decay 0.5 --max-update 3",
        f"--share-decoder-input-output-embed {precision}",
    )
    saved = run.checkpoint()["extra_state"]["ema_fp32_params"]
    first = saved["decoder.embed_tokens.weight"]
    assert torch.equal(first, saved["decoder.output_projection.weight"])


@pytest.mark.parametrize("fp32", ["", "--ema-fp32"])
def test_begins_at_a_model_without_an_average(fairseq_train, monkeypatch, unrepaired, fp32):
    plain = fairseq_train("--optimizer adam --max-update 2")
    command = (
        f"--optimizer adam --store-ema --ema-decay 1 {fp32} --max-update 3 "
        f"--finetune-from-model {plain.save_dir}/checkpoint_last.pt"
    )
    run = fairseq_train(command)
    average = run.checkpoint()["extra_state"]["ema"]
    for key, weight in plain.weights().items():
        assert torch.equal(average[key], weight), key

    monkeypatch.setattr(Trainer, "load_checkpoint", unrepaired(Trainer.load_checkpoint))
    with pytest.raises(KeyError, match="model"):
        fairseq_train(command)


PRE_NORM = "--encoder-normalize-before --decoder-normalize-before"
FLAGS = "--optimizer adam --store-ema --ema-decay 0 --max-update 3"


def test_final_layer_norms_are_averaged_too(fairseq_train, monkeypatch, unrepaired):
    run = fairseq_train(FLAGS, PRE_NORM)
    average, weights = run.checkpoint()["extra_state"]["ema"], run.checkpoint()["model"]
    assert "decoder.layer_norm.weight" in weights
    assert_identical(dict(average), dict(weights), "average")

    # Also those of a checkpoint that was saved without them.
    monkeypatch.setattr(EMA, "restore", unrepaired(EMA.restore))
    damaged = fairseq_train(FLAGS, PRE_NORM)
    assert "decoder.layer_norm.weight" not in damaged.checkpoint()["extra_state"]["ema"]
    monkeypatch.undo()
    fairseq_train(FLAGS.replace("3", "4"), PRE_NORM, save_dir=damaged.save_dir)
    assert_identical(
        dict(damaged.checkpoint()["extra_state"]["ema"]), dict(damaged.checkpoint()["model"]), ""
    )


def test_a_model_without_final_layer_norms_has_the_same_average(
    fairseq_train, monkeypatch, unrepaired
):
    flags = FLAGS.replace("decay 0", "decay 0.5")
    average = fairseq_train(flags).checkpoint()["extra_state"]["ema"]
    monkeypatch.setattr(EMA, "restore", unrepaired(EMA.restore))
    wanted = fairseq_train(flags).checkpoint()["extra_state"]["ema"]
    assert_identical(trained(dict(average)), trained(dict(wanted)), "average")
