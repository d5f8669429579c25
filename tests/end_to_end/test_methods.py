"""Every method trains, on a made corpus and on real text, whatever the task and architecture."""

import math

import pytest

from fairseq_sam.perturbation import METHODS

ALL_METHODS = sorted(METHODS)
SMALL_ENCODER = (
    "--encoder-embed-dim 16 --encoder-ffn-embed-dim 32 --encoder-layers 2 "
    "--encoder-attention-heads 2"
)
SMALL_DECODER = SMALL_ENCODER.replace("encoder", "decoder")


def criterion(method, name):
    """δ-SAM's weights need the loss of each sentence."""
    return (
        f"--criterion per_sentence_{name}"
        if METHODS[method].needs_sentences
        else f"--criterion {name}"
    )


def assert_trained(run, updates):
    assert run.updates() == updates
    has_sharpness = "sharpness" in run.records["train_inner"][0]
    for key in ("loss", "gnorm", "perturbation_norm", *(("sharpness",) if has_sharpness else ())):
        assert all(math.isfinite(value) for value in run.values(key)), key
    # The first update has no momentum yet, and a run with it no pass at w.
    assert all(norm > 0 for norm in run.values("perturbation_norm")[0 if has_sharpness else 1 :])
    assert set(run.values("perturbation_skipped")) == {0.0}


@pytest.mark.parametrize("method", ALL_METHODS)
def test_translation(fairseq_train, method):
    run = fairseq_train(
        f"--optimizer {method} --sam-rho 0.01 --max-update 4 --label-smoothing 0.1",
        criterion(method, "label_smoothed_cross_entropy"),
    )
    assert_trained(run, 4)


def test_methods_train_differently(fairseq_train):
    trained = [
        fairseq_train(
            f"--optimizer {method} --sam-rho 0.01 --max-update 3",
            criterion(method, "cross_entropy"),
        ).weights()
        for method in ALL_METHODS
    ]
    key = "encoder.layers.0.fc1.weight"
    for i, one in enumerate(trained):
        assert all((one[key] != other[key]).any() for other in trained[:i])


def test_parts_of_methods_mix(fairseq_train):
    """GA-SAM with SAM's scale, norm and risk is SAM."""
    same = "--sam-rho 0.05 --max-update 5"
    sam = fairseq_train("--optimizer sam", same)
    mixed = fairseq_train(
        "--optimizer ga_sam --sam-scale none --sam-norm l2 --sam-risk perturbed", same
    )
    mixed.assert_same_training(sam)


@pytest.fixture(scope="session")
def ptb(tmp_path_factory, real_lines, preprocess):
    text, data = tmp_path_factory.mktemp("ptb"), tmp_path_factory.mktemp("ptb-bin")
    for part, count in (("train", 200), ("valid", 20)):
        lines = real_lines(f"ptb/ptb.{part}.txt", count)
        (text / part).write_text("\n".join(lines) + "\n", encoding="utf-8")
    preprocess(
        "--only-source --nwordssrc 1000 --trainpref",
        text / "train",
        "--validpref",
        text / "valid",
        "--destdir",
        data,
    )
    return data


@pytest.mark.parametrize("method", ALL_METHODS)
def test_language_modeling_on_ptb(fairseq_train, ptb, method):
    task = (
        ptb,
        "--task language_modeling --arch lstm_lm --decoder-embed-dim 16 --decoder-hidden-size 16 "
        "--decoder-out-embed-dim 16 --decoder-layers 1 --tokens-per-sample 20 "
        "--sample-break-mode none --batch-size 8",
        criterion(method, "cross_entropy"),
    )
    assert_trained(fairseq_train(f"--optimizer {method} --max-update 3", task=task), 3)


@pytest.fixture(
    scope="session",
    params=["multi30k-de-en", pytest.param("iwslt14-de-en", marks=pytest.mark.slow)],
)
def german_english(request, tmp_path_factory, real_lines, preprocess):
    text, data = tmp_path_factory.mktemp("de-en"), tmp_path_factory.mktemp("de-en-bin")
    for part, count in (("train", 100), ("valid", 20)):
        for language in ("de", "en"):
            lines = real_lines(f"{request.param}/{part}.{language}", count)
            (text / f"{part}.{language}").write_text("\n".join(lines) + "\n", encoding="utf-8")
    preprocess(
        "-s de -t en --nwordssrc 500 --nwordstgt 500 --trainpref",
        text / "train",
        "--validpref",
        text / "valid",
        "--destdir",
        data,
    )
    return data


@pytest.mark.parametrize("method", ALL_METHODS)
def test_translation_of_german(fairseq_train, german_english, method):
    task = (
        german_english,
        f"--task translation --arch transformer {SMALL_ENCODER} {SMALL_DECODER} --max-tokens 400 "
        "--label-smoothing 0.1 --dropout 0.3 --share-decoder-input-output-embed",
        criterion(method, "label_smoothed_cross_entropy"),
    )
    assert_trained(fairseq_train(f"--optimizer {method} --max-update 3", task=task), 3)


@pytest.fixture(scope="session")
def rte(tmp_path_factory, real_lines, preprocess):
    text, data = tmp_path_factory.mktemp("rte"), tmp_path_factory.mktemp("rte-bin")
    for part, name, count in (("train", "train", 60), ("valid", "dev", 20)):
        rows = [line.split("\t") for line in real_lines(f"glue/RTE/{name}.tsv", count + 1)][1:]
        for column, field in ((1, "input0"), (2, "input1"), (3, "label")):
            lines = [row[column] for row in rows]
            (text / f"{part}.{field}").write_text("\n".join(lines) + "\n", encoding="utf-8")
    shared = ("--srcdict", data / "input0" / "dict.txt")
    for field, dictionary in (("input0", ("--nwordssrc 500",)), ("input1", shared), ("label", ())):
        preprocess(
            "--only-source --trainpref",
            text / f"train.{field}",
            "--validpref",
            text / f"valid.{field}",
            "--destdir",
            data / field,
            *dictionary,
        )
    return data


@pytest.mark.parametrize("method", ALL_METHODS)
def test_sentence_prediction_on_rte(fairseq_train, rte, method):
    task = (
        rte,
        "--task sentence_prediction --arch roberta_base "
        f"{SMALL_ENCODER} --num-classes 2 --init-token 0 --separator-token 2 --max-positions 256 "
        "--shorten-method truncate --batch-size 8",
        criterion(method, "sentence_prediction"),
    )
    run = fairseq_train(f"--optimizer {method} --max-update 3", task=task)
    assert_trained(run, 3)
