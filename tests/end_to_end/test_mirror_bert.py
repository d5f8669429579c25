"""fairseq-train with ``mirror_bert``: plain, perturbed in one view or both, gated, refused."""

import copy
import math
from pathlib import Path
from typing import Any, Callable, List, Tuple

import pytest
import torch

from fairseq_sam.perturbation import SharpnessAwareLoss
from tests.conftest import WORDS, write_sentences
from tests.fairseq_runs import SMALL, Run

TASK = (
    "--task sentence_similarity --arch bert --max-positions 16 --criterion mirror_bert "
    f"{SMALL.format('encoder')} --dropout 0.1 --attention-dropout 0.1 --batch-size 8"
)
THREE = "--max-update 3"
SAM = "--optimizer sam --sam-rho 0.05"
DELTA = "--optimizer delta_sam --sam-rho 0.05 --delta-sam-probe-radius 0.1"


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory, preprocess: Any) -> Tuple[Path, str]:
    import random

    text = tmp_path_factory.mktemp("sentences")
    for part, count in (("train", 32), ("valid", 8)):
        write_sentences(text / part, random.Random(part), WORDS, count)
    data = tmp_path_factory.mktemp("sentence_data")
    files = ("--trainpref", text / "train", "--validpref", text / "valid")
    preprocess("--only-source", *files, "--destdir", data)
    return data, TASK


@pytest.mark.parametrize(
    "flags",
    [
        "--optimizer adam",
        SAM,
        pytest.param(f"{SAM} --mirror-perturb both --mirror-pooling cls", marks=pytest.mark.slow),
        DELTA,
        f"{DELTA} --mirror-noise 0.1 --mirror-span 1",
        pytest.param("--optimizer ga_sam --sam-rho 0.05", marks=pytest.mark.slow),
    ],
)
def test_trains(fairseq_train: Callable[..., Run], task: Any, flags: str) -> None:
    run = fairseq_train(flags, THREE, task=task, validate=True)
    assert run.updates() == 3
    assert all(math.isfinite(loss) and loss > 0 for loss in run.values("loss"))
    assert 0 <= run.values("accuracy", "valid")[-1] <= 100
    if "adam" not in flags.split()[1]:
        assert run.values("perturbation_norm")[0] > 0
        assert set(run.values("perturbation_skipped")) == {0.0}


@pytest.mark.slow
def test_learns(fairseq_train: Callable[..., Run], task: Any) -> None:
    run = fairseq_train("--optimizer adam --max-epoch 6", task=task)
    losses = run.values("loss", "train")
    assert losses[-1] < losses[0]


def test_radius_of_zero_is_the_base_optimizer(fairseq_train: Any, task: Any) -> None:
    plain = fairseq_train("--optimizer adam", THREE, task=task)
    fairseq_train("--optimizer sam --sam-rho 0", THREE, task=task).assert_same_training(plain)
    gated = "--optimizer delta_sam --sam-start-epoch 5"
    fairseq_train(gated, THREE, task=task).assert_same_training(plain)


def test_one_view_is_another_run_than_both(fairseq_train: Any, task: Any) -> None:
    one = fairseq_train(SAM, THREE, task=task)
    assert one.differs_from(fairseq_train(SAM, "--mirror-perturb both", THREE, task=task))


def test_first_view_is_at_the_clean_weights(
    fairseq_train: Any, task: Any, monkeypatch: Any
) -> None:
    """The gradient of the last pass is that of two models, one of which is perturbed."""
    seen: List[Tuple[bool, torch.Tensor, torch.Tensor]] = []
    from fairseq_sam.criterions.mirror_bert import MirrorBertCriterion

    embeddings = MirrorBertCriterion.embeddings

    def recorded(self: Any, model: Any, tokens: Any) -> Any:
        state = torch.get_rng_state()
        one, other = embeddings(self, model, tokens)
        if self.training and self.task.sharpness_aware_seam.is_perturbing:
            after = torch.get_rng_state()
            loss = self.task.sharpness_aware_seam._loss
            clean = copy.deepcopy(model)
            with torch.no_grad():
                origins = {id(w): value for w, value in loss.weights.origins()}
                for ours, weight in zip(clean.parameters(), model.parameters()):
                    ours.copy_(origins.get(id(weight), weight))
                torch.set_rng_state(state)
                torch.rand(len(tokens))  # the places of the spans
                expected = self._embed(clean, tokens)
            torch.set_rng_state(after)
            torch.testing.assert_close(one.detach(), expected)
            seen.append((bool(origins), one.requires_grad, other.requires_grad))
        return one, other

    monkeypatch.setattr(MirrorBertCriterion, "embeddings", recorded)
    fairseq_train(DELTA, "--max-update 1", task=task)
    probe, clean, perturbed = (True, False, False), (False, False, True), (True, True, True)
    assert seen == [probe, probe, clean, perturbed]


@pytest.mark.parametrize("flags", ["--update-freq 2", "--sam-exclude bias"])
def test_combinations(fairseq_train: Any, task: Any, flags: str) -> None:
    run = fairseq_train(DELTA, "--max-update 2", flags, task=task)
    assert run.updates() == 2
    assert set(run.values("perturbation_skipped")) == {0.0}


def test_weights_are_in_place_after_a_failure(
    fairseq_train: Any, task: Any, monkeypatch: Any
) -> None:
    restored = []
    call = SharpnessAwareLoss.call_unperturbed

    def failing(self: Any, module: Any, **inputs: Any) -> Any:
        if self.weights.perturbed and not self.current.ascends:
            restored.append(self)
            raise RuntimeError("made to fail")
        return call(self, module, **inputs)

    monkeypatch.setattr(SharpnessAwareLoss, "call_unperturbed", failing)
    with pytest.raises(RuntimeError, match="made to fail"):
        fairseq_train(SAM, "--max-update 1", task=task)
    assert not restored[0].weights.perturbed


def test_sentence_by_sentence_is_refused(fairseq_train: Any, task: Any) -> None:
    with pytest.raises(SystemExit) as error:
        fairseq_train("--optimizer per_instance_sam", THREE, task=task)
    assert "needs the other sentences of the batch" in str(error.value)


def test_sentences_are_cut(fairseq_train: Any, task: Any) -> None:
    run = fairseq_train("--optimizer adam --max-sentence-tokens 5", THREE, task=task)
    assert run.updates() == 3
    with pytest.raises(SystemExit) as error:
        fairseq_train("--optimizer adam --max-sentence-tokens 17", THREE, task=task)
    assert "--max-sentence-tokens: 17 is not allowed: it must be --max-positions, 16, at" in str(
        error.value
    )
