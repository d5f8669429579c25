"""One perturbation a sentence: a slow loop over the sentences, and whole runs."""

import copy
import math
from pathlib import Path
from typing import Any, Callable, Dict, List, NamedTuple

import pytest
import torch

import fairseq_sam
from fairseq_sam.criterions.float64 import preserve_float64
from tests.criterions.test_fairseq_train_per_sentence import DECODER, RUNS, text
from tests.fairseq_runs import TRAINING, TRANSLATION, Run, split

RHO = 0.05
PER_INSTANCE = f"--optimizer per_instance_sam --sam-rho {RHO}"
LSTM = (
    "--task translation -s de -t en --arch lstm --encoder-embed-dim 8 --encoder-hidden-size 8 "
    "--decoder-embed-dim 8 --decoder-hidden-size 8 --decoder-out-embed-dim 8 --batch-size 8"
)


class Session(NamedTuple):
    """What fairseq-train sets up, in float64."""

    task: Any
    model: Any
    criterion: Any
    optimizer: Any

    def train_step(self, sample: Dict[str, Any], update_num: int = 0, **how: Any) -> Any:
        """What the trainer calls for a micro-batch: gradients are added up."""
        with preserve_float64(self.model):
            return self.task.train_step(
                sample, self.model, self.criterion, self.optimizer, update_num, **how
            )

    def batch(self, indices: List[int]) -> Dict[str, Any]:
        dataset = self.task.dataset("train")
        return dataset.collater([dataset[i] for i in indices])


def set_up(data: Path, *flags: str) -> Session:
    from fairseq import optim, options, tasks
    from fairseq.dataclass.utils import convert_namespace_to_omegaconf

    fairseq_sam.register()
    arguments = split(data, TRANSLATION, TRAINING, "--dropout 0", *flags)
    parser = options.get_training_parser()
    args = options.parse_args_and_arch(parser, input_args=arguments)
    cfg = convert_namespace_to_omegaconf(args)
    task = tasks.setup_task(cfg.task)
    task.load_dataset("train")
    torch.manual_seed(3)
    model = task.build_model(cfg.model).double()
    criterion = task.build_criterion(cfg.criterion)
    weights = [w for w in model.parameters() if w.requires_grad]
    optimizer = optim.build_optimizer(cfg.optimizer, weights)
    task.begin_epoch(1, model)
    return Session(task, model, criterion, optimizer)


def gradients_at(model: Any, criterion: Any, sample: Any) -> List[torch.Tensor]:
    """The gradients of a sentence's loss as without the plugin, zeros where there is none."""
    weights = [w for w in model.parameters() if w.requires_grad]
    with preserve_float64(model):
        loss, _, _ = type(criterion).forward(criterion, model, sample)
    found = torch.autograd.grad(loss, weights, allow_unused=True)
    return [torch.zeros_like(w) if g is None else g for w, g in zip(weights, found)]


def perturbed_gradients(session: Session, index: int) -> List[torch.Tensor]:
    """∇l_j at w + ρ ∇l_j / ‖∇l_j‖ of a sentence that was never in a batch with others."""
    sample = session.batch([index])
    model = copy.deepcopy(session.model)
    gradients = gradients_at(model, session.criterion, sample)
    length = math.sqrt(sum(float(g.square().sum()) for g in gradients))
    with torch.no_grad():
        for w, g in zip([w for w in model.parameters() if w.requires_grad], gradients):
            w.add_(RHO * g / length)
    return gradients_at(model, session.criterion, sample)


CRITERIONS = [
    "--criterion cross_entropy",
    "--criterion cross_entropy --sentence-avg",
    "--criterion label_smoothed_cross_entropy --label-smoothing 0.1",
    "--criterion per_sentence_cross_entropy",
]


@pytest.mark.parametrize("criterion", CRITERIONS)
@pytest.mark.parametrize("batches", [[[0, 1, 2]], [[3]], [[4, 5], [6], [7, 8, 9, 10]]])
def test_gradients_are_those_of_a_loop_over_sentences(
    corpus: Path, criterion: str, batches: List[List[int]]
):
    """Micro-batches add up, as under --update-freq."""
    session = set_up(corpus, PER_INSTANCE, criterion)
    weights = [w for w in session.model.parameters() if w.requires_grad]
    before = [w.detach().clone() for w in weights]
    sizes = 0
    for indices in batches:
        _, sample_size, logging_output = session.train_step(session.batch(indices))
        sizes += sample_size
        assert logging_output["nsentences"] == len(indices)
    assert all(torch.equal(w, b) for w, b in zip(weights, before))
    found = [w.grad for w in weights]
    expected = [torch.zeros_like(w) for w in weights]
    for index in (i for indices in batches for i in indices):
        for total, g in zip(expected, perturbed_gradients(session, index)):
            total += g
    largest = max(float(g.abs().max()) for g in expected)
    assert largest > 1e-3
    for one, other in zip(found, expected):
        one = torch.zeros_like(other) if one is None else one
        torch.testing.assert_close(one, other, rtol=0, atol=1e-9 * largest)
    whole = session.batch([i for indices in batches for i in indices])
    counted = whole["nsentences"] if "--sentence-avg" in criterion else whole["ntokens"]
    assert sizes == counted


def test_it_is_not_sam(corpus: Path):
    """One perturbation for the batch gives other gradients than one for each sentence."""
    found = []
    for flags in (PER_INSTANCE, f"--optimizer sam --sam-rho {RHO}"):
        session = set_up(corpus, flags)
        session.train_step(session.batch([0, 1, 2, 3]))
        given = [w.grad for w in session.model.parameters() if w.grad is not None]
        found.append(torch.cat([g.flatten() for g in given]))
    assert float((found[0] - found[1]).norm()) > 1e-3 * float(found[1].norm())


def test_loss_and_logs_are_those_of_the_batch_unperturbed(corpus: Path):
    flags = "--criterion label_smoothed_cross_entropy --label-smoothing 0.1 --report-accuracy"
    session = set_up(corpus, PER_INSTANCE, flags)
    sample = session.batch([0, 1, 2, 3])
    _, sample_size, ours = session.train_step(sample)
    plain = set_up(corpus, "--optimizer adam", flags)
    _, expected_size, expected = plain.train_step(sample)
    assert sample_size == expected_size
    for key in expected:
        assert float(ours[key]) == pytest.approx(float(expected[key]), rel=1e-9), key
    assert float(ours["sam_norm"]) == pytest.approx(RHO, rel=1e-6)
    assert float(ours["sam_loss"]) > float(ours["loss"])


def test_a_worker_without_data_adds_nothing(corpus: Path):
    session = set_up(corpus, PER_INSTANCE)
    session.train_step(session.batch([0, 1]), ignore_grad=True)
    assert all(w.grad is None or not w.grad.any() for w in session.model.parameters())


def assert_trained(run: Run, updates: int) -> None:
    assert run.updates() == updates
    for key in ("loss", "gnorm", "sharpness", "perturbation_norm"):
        assert all(math.isfinite(value) for value in run.values(key)), key
    assert run.values("perturbation_norm") == pytest.approx([RHO] * updates, rel=1e-3)
    assert set(run.values("perturbation_skipped")) == {0.0}


@pytest.mark.parametrize("prefix", ["", "per_sentence_"])
@pytest.mark.parametrize("name", sorted(RUNS))
def test_runs_of_every_criterion_log_what_the_base_optimizer_logs(
    fairseq_train: Callable[..., Run], tmp_path: Path, name: str, prefix: str
):
    make_data, flags = RUNS[name]
    task = (tmp_path, f"{make_data(tmp_path)} {flags} --dropout 0")
    flags = f"--criterion {prefix}{name} --max-update 2"
    run = fairseq_train(PER_INSTANCE, flags, task=task)
    assert run.updates() == 2
    first = run.records["train_inner"][0]
    if name != "masked_lm":  # there a sentence without masked words has no perturbation
        assert_trained(run, 2)
    adam = fairseq_train("--optimizer adam", flags, task=task).records["train_inner"][0]
    for key in ("loss", "nll_loss", "ppl", "accuracy", "total", "n_correct", "wpb", "bsz"):
        assert (key in first) == (key in adam)
        if key in adam:
            assert float(first[key]) == pytest.approx(float(adam[key]), abs=2e-3), key


@pytest.mark.parametrize(
    "flags",
    [
        "--optimizer per_instance_sam --sam-rho 1e-9 --criterion cross_entropy",
        "--optimizer delta_sam --sam-rho 1e-9 --criterion per_sentence_cross_entropy",
        *(
            f"--optimizer adam --criterion {name}_cross_entropy --{flag} 0"
            for name, flag in (
                ("r_drop", "r-drop-alpha"),
                ("r3f", "r3f-lambda"),
                ("smart", "smart-lambda"),
            )
        ),
    ],
)
def test_rows_that_only_pad_add_nothing(
    fairseq_train: Callable[..., Run], tmp_path: Path, flags: str
):
    """``--pad-to-fixed-bsz`` adds them to a smaller last batch: here 5, 5 and 2 lines."""
    text(tmp_path)
    task = (
        tmp_path,
        f"--task language_modeling --sample-break-mode eos --tokens-per-sample 16 --arch "
        f"transformer_lm {DECODER} --dropout 0 --batch-size 5 --pad-to-fixed-bsz",
    )
    run = fairseq_train(flags, "--max-update 3", task=task)
    adam = fairseq_train("--optimizer adam --criterion cross_entropy --max-update 3", task=task)
    assert run.updates() == adam.updates() == 3
    for key in ("loss", "gnorm"):
        assert run.values(key) == pytest.approx(adam.values(key), abs=2e-3)


def test_a_batch_of_one_sentence_is_sams(fairseq_train: Callable[..., Run]):
    flags = "--batch-size 1 --max-update 4"
    sam = fairseq_train(f"--optimizer sam --sam-rho {RHO}", flags)
    fairseq_train(PER_INSTANCE, flags).assert_same_training(sam)


def test_a_radius_of_zero_is_the_base_optimizer(fairseq_train: Callable[..., Run]):
    flags = "--max-update 3 --update-freq 2"
    adam = fairseq_train("--optimizer adam", flags)
    fairseq_train("--optimizer per_instance_sam --sam-rho 0", flags).assert_same_training(adam)


def test_accumulated_micro_batches_and_a_late_start(fairseq_train: Callable[..., Run]):
    run = fairseq_train(
        PER_INSTANCE, "--update-freq 3 --sam-start-update 2 --max-epoch 2 --clip-norm 1.0"
    )
    assert run.values("perturbation_on") == [0, 0, 1, 1]


@pytest.mark.parametrize(
    "flags",
    [
        "--sam-scale gradient-strength --sam-risk mean --sam-steps 2 --sam-rho 1e-3",
        "--sam-norm linf --sam-rho 1e-3 --bf16",
    ],
)
def test_it_combines_with_the_other_parts(fairseq_train: Callable[..., Run], flags: str):
    run = fairseq_train(PER_INSTANCE, flags, "--max-update 2")
    assert run.updates() == 2
    for key in ("loss", "sharpness", "perturbation_norm"):
        assert all(math.isfinite(value) for value in run.values(key))


def test_recurrent_models(fairseq_train: Callable[..., Run], corpus: Path):
    """fairseq's LSTM encoder wants a batch as long as its longest sentence."""
    assert_trained(fairseq_train(PER_INSTANCE, "--max-update 2", task=(corpus, LSTM)), 2)


def test_bart_classification(fairseq_train: Callable[..., Run], tmp_path: Path):
    """The decoder reads the source again while the target is a label."""
    flags = RUNS["sentence_prediction"][0](tmp_path).replace("roberta_base", "bart_base")
    sizes = "--decoder-embed-dim 8 --decoder-ffn-embed-dim 8 --decoder-layers 1"
    task = (
        tmp_path,
        f"{flags} --add-prev-output-tokens {sizes} --decoder-attention-heads 2 "
        "--max-source-positions 32 --max-target-positions 32",
    )
    run = fairseq_train(PER_INSTANCE, "--criterion sentence_prediction --max-update 2", task=task)
    assert_trained(run, 2)
