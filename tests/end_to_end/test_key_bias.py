"""The key-bias trap on a real Transformer and real text (docs/results/noise_floor.md).

A softmax ignores the bias of the key projection. Its gradient is rounding noise, and a scale that
divides by it makes the perturbation huge unless such gradients are recognised.
"""

import statistics

import pytest

from fairseq_sam.perturbation import ascent

MODEL = (
    "--task translation -s de -t en --arch transformer --share-decoder-input-output-embed "
    "--encoder-embed-dim 32 --encoder-ffn-embed-dim 64 --encoder-layers 2 "
    "--encoder-attention-heads 2 --decoder-embed-dim 32 --decoder-ffn-embed-dim 64 "
    "--decoder-layers 2 --decoder-attention-heads 2 --dropout 0.1 --max-tokens 1500"
)
CRITERION = "--criterion label_smoothed_cross_entropy --label-smoothing 0.1"
LR = "--lr 1e-3"
GA_SAM = "--optimizer ga_sam --sam-rho 0.8 --sam-norm linf --sam-loss-reduction sum"


@pytest.fixture(scope="module")
def trained(shared_fairseq_train, tmp_path_factory, real_lines, preprocess):
    """Data, and a checkpoint after an epoch of Adam."""
    text = tmp_path_factory.mktemp("iwslt")
    for language in ("de", "en"):
        lines = real_lines(f"iwslt14-de-en/train.{language}", 1200)
        (text / f"train.{language}").write_text("\n".join(lines) + "\n", encoding="utf-8")
    preprocess(
        "-s de -t en --nwordssrc 2000 --nwordstgt 2000 --trainpref",
        text / "train",
        "--validpref",  # which fairseq 0.12.2 wants, though nothing is validated
        text / "train",
        "--destdir",
        text / "bin",
    )
    task = (text / "bin", MODEL, CRITERION)
    run = shared_fairseq_train(LR, "--optimizer adam --max-epoch 1", task=task)
    return task, run.save_dir / "checkpoint_last.pt"


def gradient_norms(fairseq_train, trained, *flags):
    task, checkpoint = trained
    end = "--max-update 36 --no-save --restore-file"
    run = fairseq_train(*flags, LR, end, checkpoint, task=task)
    return run.values("gnorm"), run


@pytest.mark.slow
def test_the_gradient_norm_stays_with_adams(fairseq_train, trained):
    adam, _ = gradient_norms(fairseq_train, trained, "--optimizer adam")
    ga_sam, _ = gradient_norms(fairseq_train, trained, GA_SAM)
    assert len(adam) == len(ga_sam) > 5
    assert statistics.median(ga_sam) < 3 * statistics.median(adam)
    assert max(ga_sam) < 3 * max(adam)


@pytest.mark.slow
def test_without_the_floor_the_perturbation_explodes(fairseq_train, trained, monkeypatch):
    _, guarded = gradient_norms(fairseq_train, trained, GA_SAM)
    monkeypatch.setattr(ascent, "noise_of_tensors", lambda norms, *others: 0.0 * norms)
    _, bare = gradient_norms(fairseq_train, trained, GA_SAM)
    first, exploded = guarded.values("perturbation_norm")[0], bare.values("perturbation_norm")[0]
    assert exploded > 100 * first
