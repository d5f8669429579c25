"""Tasks that call their criterion more than once in a training step."""

import gc

import pytest
import torch

from tests.fairseq_runs import SMALL


@pytest.fixture(scope="module")
def several_pairs(tmp_path_factory, preprocess):
    """Binarised German-English and German-French, with one dictionary."""
    text, data = tmp_path_factory.mktemp("pairs"), tmp_path_factory.mktemp("pairs-bin")
    words = [f"w{i}" for i in range(12)]
    (text / "dict.txt").write_text("".join(f"{word} 1\n" for word in words))
    for other, step in (("en", 5), ("fr", 7)):
        for language in ("de", other):
            shift = step if language == other else 1
            lines = [" ".join(words[(i * shift + j) % 12] for j in range(4)) for i in range(24)]
            (text / f"train.de-{other}.{language}").write_text("\n".join(lines) + "\n")
        prefix = text / f"train.de-{other}"
        preprocess(
            *(f"-s de -t {other} --trainpref", prefix, "--validpref", prefix, "--destdir", data),
            *("--srcdict", text / "dict.txt", "--tgtdict", text / "dict.txt"),
        )
    return data


@pytest.mark.parametrize("method", ["sam", "ga_sam"])
@pytest.mark.parametrize("flags", ["", "--update-freq 2"])
def test_multilingual_translation(fairseq_train, several_pairs, method, flags):
    """One criterion and backward for each language pair, each with a model of its own."""
    task = (
        several_pairs,
        f"--task multilingual_translation --lang-pairs de-en,de-fr --arch multilingual_transformer "
        f"{SMALL.format('encoder')} {SMALL.format('decoder')} --share-encoders --dropout 0.1 "
        "--batch-size 6",
    )
    run = fairseq_train(f"--optimizer {method} --sam-rho 0.05 --max-update 3", flags, task=task)
    assert run.updates() == 3
    assert run.values("perturbation_on") == [1.0] * 3
    if method == "sam":
        assert run.values("perturbation_norm") == pytest.approx([0.05] * 3, rel=1e-3)
    assert all(sharpness > 0 for sharpness in run.values("sharpness"))
    adam = fairseq_train("--optimizer adam --max-update 3", flags, task=task)
    assert run.differs_from(adam)
    off = fairseq_train(f"--optimizer {method} --sam-rho 0 --max-update 3", flags, task=task)
    off.assert_same_training(adam)


def copies_of(weights):
    """Returns how many numbers all live copies of these weights hold."""
    gc.collect()  # of tests before
    own = {weight.data_ptr(): weight for weight in weights}
    distinct = {}
    for each in gc.get_objects():
        if type(each) is not torch.Tensor or each.data_ptr() in own:
            continue
        if any(each.shape == weight.shape and torch.equal(each, weight) for weight in own.values()):
            distinct[each.data_ptr()] = each.numel()
    return sum(distinct.values())


@pytest.mark.parametrize("shared", ["", "--share-encoders --share-decoders"])
def test_one_snapshot_per_weight_whatever_the_pairs_share(
    fairseq_train, several_pairs, monkeypatch, shared
):
    """Before the optimizer's step the snapshot is what the weights are."""
    from fairseq.tasks.fairseq_task import FairseqTask

    found = []

    def optimizer_step(self, optimizer, model, update_num):
        weights = [w.detach() for w in model.parameters() if w.dim() > 1]
        weights = [w for w in weights if bool(w.any())]  # drawn at random
        found.append(copies_of(weights) / sum(w.numel() for w in weights))
        optimizer.step()

    monkeypatch.setattr(FairseqTask, "optimizer_step", optimizer_step)
    task = (
        several_pairs,
        "--task multilingual_translation --lang-pairs de-en,en-de,de-fr,fr-de "
        f"--arch multilingual_transformer {SMALL.format('encoder')} {SMALL.format('decoder')} "
        f"{shared} --batch-size 6",
    )
    fairseq_train("--optimizer sam --sam-rho 0.05 --base-optimizer sgd --max-update 3", task=task)
    assert found == [1.0] * 3


class SumOfLosses:
    """Stands in for ``train_step``: the loss of a batch is counted from two criterion calls."""

    @staticmethod
    def train_step(
        self, sample, model, criterion, optimizer, update_num, ignore_grad=False, **kwargs
    ):
        model.train()
        first, size, logging_output = criterion(model, sample)
        optimizer.backward(first)
        second, size_again, _ = criterion(model, sample)
        optimizer.backward(second)
        return first + second, size + size_again, logging_output


@pytest.mark.parametrize("base", ["adam", "sgd"])
def test_two_backwards_of_one_batch_are_two_micro_batches(fairseq_train, monkeypatch, base):
    from fairseq.tasks.translation import TranslationTask

    flags = f"--optimizer sam --base-optimizer {base} --sam-rho 0.05 --dropout 0 --max-update 3"
    once = fairseq_train(flags)
    monkeypatch.setattr(TranslationTask, "train_step", SumOfLosses.train_step)
    twice = fairseq_train(flags)
    for key, weight in once.weights().items():
        torch.testing.assert_close(twice.weights()[key], weight, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("method", "rho"), [("sam", 0.01), ("ga_sam", 0.03)])
def test_a_loss_that_the_task_weighs_is_the_loss(fairseq_train, monkeypatch, method, rho):
    """Perturbation and gradient are those of 3 L: GA-SAM's T falls as the gradient grows."""
    from fairseq.tasks.fairseq_task import FairseqTask

    step = FairseqTask.train_step

    class Weighing:
        def __init__(self, optimizer):
            self.optimizer = optimizer

        def __getattr__(self, name):
            return getattr(self.optimizer, name)

        def backward(self, loss):
            self.optimizer.backward(3 * loss)

    def weighed(self, sample, model, criterion, optimizer, *args, **kwargs):
        return step(self, sample, model, criterion, Weighing(optimizer), *args, **kwargs)

    flags = f"--optimizer {method} --base-optimizer sgd --max-update 1 --dropout 0"
    plain = fairseq_train(flags, "--sam-rho 0.01 --lr 0.3")
    monkeypatch.setattr(FairseqTask, "train_step", weighed)
    scaled = fairseq_train(flags, f"--sam-rho {rho} --lr 0.1")
    assert scaled.values("gnorm") == pytest.approx([3 * plain.values("gnorm")[0]], rel=1e-2)
    for key, weight in plain.weights().items():
        torch.testing.assert_close(scaled.weights()[key], weight, rtol=1e-5, atol=1e-6)
