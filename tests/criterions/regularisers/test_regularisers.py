"""FreeLB, R-Drop, R3F and SMART against slow references, and in every model."""

import copy
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from fairseq.distributed import ModuleProxyWrapper
from fairseq.modules import LayerDropModuleList
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from fairseq_sam.criterions import per_sentence_name_of
from fairseq_sam.criterions.regularisers import REGISTERED
from fairseq_sam.criterions.regularisers.divergence import squared_difference, symmetric_kl
from fairseq_sam.criterions.regularisers.embeddings import perturbed_embeddings
from fairseq_sam.training.moving_average import MovingAverage, moving_average
from tests.criterions.test_fairseq_train_per_sentence import RUNS
from tests.yardstick import made_data
from tests.yardstick.cases import DECODER, ENCODER

PAD = 1


class Bag(nn.Module):
    """A classifier of words whose formula a test can write out."""

    def __init__(self, dropout=0.0):
        super().__init__()
        torch.manual_seed(0)
        self.embed_tokens = nn.Embedding(12, 4, padding_idx=PAD)
        self.out = nn.Linear(4, 3)
        self.classification_heads = {"sentence_classification_head": None}
        self.dropout = dropout
        self.args = None  # fairseq 0.12.2 looks at it
        self.double()

    def forward(self, src_tokens, features_only=True, classification_head_name=None, **_):
        return self.from_embeddings(self.embed_tokens(src_tokens), src_tokens), None

    def from_embeddings(self, x, src_tokens):
        x = F.dropout(x, self.dropout, self.training)
        real = src_tokens.ne(PAD).unsqueeze(-1)
        return self.out(torch.tanh((x * real).sum(1)))

    def get_targets(self, sample, _):
        return sample["target"]


def batch():
    tokens = torch.tensor([[4, 5, 6, 7], [8, 9, PAD, PAD], [5, 10, 4, PAD]])
    target = torch.tensor([0, 2, 1])
    return {"net_input": {"src_tokens": tokens}, "target": target, "ntokens": 9, "nsentences": 3}


def classifier(make_case, make_criterion, name, **flags):
    task = make_case("classification").task
    return make_criterion(f"{name}_sentence_prediction", task, **flags).train()


def assert_same_gradients(model, losses, wanted):
    weights = list(model.parameters())
    factors = torch.tensor([1.0, 2.0, -0.5]).double()  # any weighting of the sentences
    ours = torch.autograd.grad((losses * factors).sum(), weights)
    theirs = torch.autograd.grad((wanted * factors).sum(), weights)
    assert torch.allclose(losses, wanted, rtol=0, atol=1e-12)
    for mine, reference in zip(ours, theirs):
        assert torch.allclose(mine, reference, rtol=1e-9, atol=1e-11)


def slow_kl(p, q):
    total = 0.0
    for x, y in zip(p, q):
        total = total + x.exp() * (x - y) + y.exp() * (y - x)
    return total


def cross_entropy(logits, target):
    return F.cross_entropy(logits, target, reduction="none")


def slow_divergences(first, second):
    pairs = zip(torch.log_softmax(first, -1), torch.log_softmax(second, -1))
    return torch.stack([slow_kl(p, q) for p, q in pairs])


def test_r_drop(make_case, make_criterion):
    criterion = classifier(make_case, make_criterion, "r_drop", r_drop_alpha=0.7)
    model, sample = Bag(dropout=0.4).train(), batch()
    torch.manual_seed(3)
    losses = criterion.per_sentence_losses(model, sample).losses
    torch.manual_seed(3)
    one, two = (model(**sample["net_input"])[0] for _ in range(2))
    assert not torch.equal(one, two)
    cross_entropies = cross_entropy(one, sample["target"]) + cross_entropy(two, sample["target"])
    paper = cross_entropies + 0.7 * slow_divergences(one, two) / 2  # its Eq. 3
    assert_same_gradients(model, losses, paper / 2)


@pytest.mark.parametrize("noise", ["uniform", "normal"])
def test_r3f(make_case, make_criterion, noise):
    criterion = classifier(
        make_case, make_criterion, "r3f", r3f_lambda=2.0, r3f_noise=noise, r3f_radius=0.3
    )
    model, sample = Bag().train(), batch()
    tokens = sample["net_input"]["src_tokens"]
    torch.manual_seed(3)
    losses = criterion.per_sentence_losses(model, sample).losses
    torch.manual_seed(3)
    x = model.embed_tokens(tokens)
    z = torch.randn_like(x) * 0.3 if noise == "normal" else (torch.rand_like(x) * 2 - 1) * 0.3
    clean, noisy = model.from_embeddings(x, tokens), model.from_embeddings(x + z, tokens)
    wanted = cross_entropy(clean, sample["target"]) + 2.0 * slow_divergences(clean, noisy)
    assert_same_gradients(model, losses, wanted)


@pytest.mark.parametrize("steps", [1, 3])
def test_smart(make_case, make_criterion, steps):
    flags = {"smart_lambda": 1.5, "smart_radius": 0.2, "smart_step_size": 0.15}
    criterion = classifier(
        make_case, make_criterion, "smart", smart_steps=steps, smart_init=0.01, **flags
    )
    model, sample = Bag().train(), batch()
    tokens = sample["net_input"]["src_tokens"]
    torch.manual_seed(3)
    losses = criterion.per_sentence_losses(model, sample).losses
    torch.manual_seed(3)
    x = model.embed_tokens(tokens)
    real = tokens.ne(PAD).unsqueeze(-1)
    z = torch.randn_like(x).detach() * 0.01 * real
    clean = model.from_embeddings(x, tokens)
    for _ in range(steps):
        z.requires_grad_()
        moved = model.from_embeddings(x + z, tokens)
        (g,) = torch.autograd.grad(slow_divergences(clean, moved).sum(), z, retain_graph=True)
        rows = [
            (row + 0.15 * up / up.abs().max()).clamp(-0.2, 0.2) for row, up in zip(z.detach(), g)
        ]
        z = torch.stack(rows)
    moved = model.from_embeddings(x + z, tokens)
    wanted = cross_entropy(clean, sample["target"]) + 1.5 * slow_divergences(clean, moved)
    assert_same_gradients(model, losses, wanted)


def test_smart_stays_near_the_moving_average(make_case, make_criterion):
    task = make_case("classification").task
    task.moving_average = MovingAverage()
    criterion = make_criterion(
        "smart_sentence_prediction", task, smart_lambda=0.0, smart_mu=0.7
    ).train()
    model, sample = Bag(dropout=0.4).train(), batch()
    average = Bag(dropout=0.4).train()
    task.moving_average.note(model, average)
    with torch.no_grad():
        for weight in average.parameters():
            weight.add_(0.1 * torch.randn_like(weight))
    torch.manual_seed(3)
    losses = criterion.per_sentence_losses(model, sample).losses
    assert all(weight.grad is None for weight in average.parameters())
    torch.manual_seed(3)
    output = model(**sample["net_input"])[0]
    near = average.eval()(**sample["net_input"])[0].detach()  # without dropout
    wanted = cross_entropy(output, sample["target"]) + 0.7 * slow_divergences(output, near)
    assert_same_gradients(model, losses, wanted)


@pytest.mark.parametrize("norm", ["l2", "linf"])
@pytest.mark.parametrize("dropout", [0.0, 0.4])
def test_free_lb(make_case, make_criterion, norm, dropout):
    criterion = classifier(
        make_case, make_criterion, "free_lb", free_lb_steps=2, free_lb_radius=0.3, free_lb_norm=norm
    )
    model, sample = Bag(dropout).train(), batch()
    tokens = sample["net_input"]["src_tokens"]
    torch.manual_seed(3)
    losses = criterion.per_sentence_losses(model, sample).losses
    torch.manual_seed(3)
    generator = torch.Generator().manual_seed(int(torch.randint(2**62, ())))
    x = model.embed_tokens(tokens)
    real = tokens.ne(PAD).unsqueeze(-1)
    z = (torch.rand(x.shape, generator=generator).double() * 2 - 1) * 0.3 * real
    z = z / (real.sum((1, 2), keepdim=True) * 4).sqrt()
    state, found = torch.get_rng_state(), []
    for _ in range(3):
        torch.set_rng_state(state)
        z.requires_grad_()
        found.append(cross_entropy(model.from_embeddings(x + z, tokens), sample["target"]))
        (g,) = torch.autograd.grad(found[-1].sum(), z, retain_graph=True)
        rows = []
        for row, up in zip(z.detach(), g):
            if norm == "l2":
                row = row + 0.225 * up / up.norm()
                rows.append(row * min(1.0, 0.3 / float(row.norm())))
            else:
                rows.append((row + 0.225 * up / up.abs().max()).clamp(-0.3, 0.3))
        z = torch.stack(rows)
    wanted = sum(found) / 3
    assert losses.dtype == torch.float64
    # The start is drawn in float32.
    assert torch.allclose(losses, wanted, rtol=0, atol=1e-6)
    weights = list(model.parameters())
    ours = torch.autograd.grad(losses.sum(), weights)
    theirs = torch.autograd.grad(wanted.sum(), weights)
    for mine, reference in zip(ours, theirs):
        assert torch.allclose(mine, reference, rtol=1e-4, atol=1e-6)


@given(st.integers(0, 2**31), st.integers(1, 4), st.integers(1, 5), st.integers(2, 6))
def test_symmetric_kl(seed, batch_size, tokens, classes):
    generator = torch.Generator().manual_seed(seed)
    first, second = (
        torch.randn(batch_size, tokens, classes, generator=generator).double().log_softmax(-1)
        for _ in range(2)
    )
    mask = torch.rand(batch_size, tokens, generator=generator) < 0.7
    found = symmetric_kl(first, second, mask)
    both = F.kl_div(first, second.exp(), reduction="none") + F.kl_div(
        second, first.exp(), reduction="none"
    )
    wanted = (both.sum(-1) * mask).sum(1)
    assert torch.allclose(found, wanted, rtol=0, atol=1e-12)
    assert torch.allclose(found, symmetric_kl(second, first, mask), rtol=0, atol=1e-12)
    assert bool((found >= -1e-12).all())
    assert float(symmetric_kl(first, first).abs().max()) == 0.0


def test_squared_difference():
    found = squared_difference(torch.tensor([[1.0, 2.0], [0.0, 0.0]]), torch.zeros(2, 2))
    assert found.tolist() == [5.0, 0.0]


PAIRS = {
    "translation": "label_smoothed_cross_entropy",
    "transformer_lm": "cross_entropy",
    "classification": "sentence_prediction",
    "regression": "sentence_prediction",
}


def flags_of(case):
    return {
        "regression_target": case == "regression",
        "classification_head_name": "my_head",
        "label_smoothing": 0.1,
    }


@pytest.mark.parametrize("case_name", PAIRS)
@pytest.mark.parametrize("method", ["free_lb", "r3f", "r_drop", "smart"])
class TestModels:
    """Without dropout, where R-Drop's two passes agree."""

    def built(self, make_case, make_criterion, method, case_name, **flags):
        case = make_case(case_name)
        name = f"{method}_{PAIRS[case_name]}"
        flags = {**flags_of(case_name), **flags}
        stock = make_criterion(PAIRS[case_name], case.task, **flags)
        return case, make_criterion(name, case.task, **flags).train(), stock

    def test_a_real_model_is_perturbed(self, make_case, make_criterion, method, case_name):
        strong = {"r3f_radius": 0.1, "smart_radius": 0.1, "free_lb_radius": 1.0}
        case, criterion, stock = self.built(make_case, make_criterion, method, case_name, **strong)
        loss, size, log = criterion(case.model, case.batch())
        loss = loss.detach()
        plain, plain_size, plain_log = stock(case.model, case.batch())
        plain = plain.detach()
        assert size == plain_size
        assert float(log["loss"]) == pytest.approx(float(loss), rel=1e-12)
        if method == "r_drop":
            assert float(log["penalty"]) == 0.0
            assert float(loss) == pytest.approx(float(plain), rel=1e-6)
        else:
            assert float(log["penalty"]) > 0
            assert float(loss) > float(plain)
        if method != "free_lb":  # whose first pass is perturbed as well
            difference = float(loss) - float(log["penalty"])
            assert difference == pytest.approx(float(plain), rel=1e-6)
        assert set(plain_log) < set(log)

    def test_sentences_add_up(self, make_case, make_criterion, method, case_name):
        case, criterion, _ = self.built(make_case, make_criterion, method, case_name)
        torch.manual_seed(1)
        losses = criterion.per_sentence_losses(case.model, case.batch()).losses.detach()
        torch.manual_seed(1)
        assert losses.shape == (4,)
        total = criterion(case.model, case.batch())[0].detach()
        assert float(total) == pytest.approx(float(losses.sum()))

    def test_evaluation_is_the_stock_criterion(self, make_case, make_criterion, method, case_name):
        case, criterion, stock = self.built(make_case, make_criterion, method, case_name)
        criterion.eval()
        wanted = stock(case.model, case.batch())
        found = criterion(case.model, case.batch())
        assert torch.equal(found[0], wanted[0])
        assert "penalty" not in found[2]


@pytest.mark.parametrize("method", ["free_lb", "smart"])
def test_a_decoder_without_a_layer_left_has_no_ascent(make_case, make_criterion, method):
    case = make_case("translation")
    model = case.model.train()
    model.decoder.layers = LayerDropModuleList(1.0, list(model.decoder.layers))
    criterion = make_criterion(f"{method}_cross_entropy", case.task).train()
    stock = make_criterion("cross_entropy", case.task)
    loss, _, log = criterion(model, case.batch())
    assert float(log["penalty"]) == pytest.approx(0.0, abs=1e-12)
    assert float(loss.detach()) == pytest.approx(float(stock(model, case.batch())[0].detach()))
    loss.backward()


@pytest.fixture
def only_worker(tmp_path):
    """The group of one worker that torch's data-parallel wrapper asks for."""
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1
    )
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize("method", ["free_lb", "r3f", "r_drop", "smart"])
def test_layer_drop_under_torchs_data_parallel(make_case, make_criterion, only_worker, method):
    """torch takes each gradient once in a backward pass; FreeLB's passes drop the same layers."""
    case = make_case("translation")
    criterion = make_criterion(f"{method}_cross_entropy", case.task).train()
    for layerdrop in (0.0, 0.5):
        layers = [copy.deepcopy(case.model.encoder.layers[0]) for _ in range(4)]
        case.model.encoder.layers = LayerDropModuleList(layerdrop, layers)
        model = ModuleProxyWrapper(
            DistributedDataParallel(case.model.train(), find_unused_parameters=True)
        )
        if layerdrop and method != "free_lb":
            with pytest.raises(SystemExit, match=f"{method}_cross_entropy: LayerDrop on several"):
                criterion(model, case.batch())
        else:
            criterion(model, case.batch())[0].backward()


def test_a_decoder_that_shares_the_embedding_is_not_perturbed(make_case):
    case = make_case("translation")
    model = copy.deepcopy(case.model)
    model.decoder.embed_tokens = model.encoder.embed_tokens
    seen = []
    with perturbed_embeddings(model, lambda x, mask: torch.ones_like(x)):
        model.encoder.embed_tokens.register_forward_hook(lambda *args: seen.append(args[2]))
        model(**case.batch()["net_input"])
    assert len(seen) == 2
    tokens = case.batch()["net_input"]
    real = tokens["src_tokens"].ne(PAD).unsqueeze(-1)
    weight = model.encoder.embed_tokens.weight
    assert torch.equal(seen[0], F.embedding(tokens["src_tokens"], weight) + 1.0 * real)
    assert torch.equal(seen[1], F.embedding(tokens["prev_output_tokens"], weight))


def test_a_model_without_word_embeddings_is_refused():
    context = perturbed_embeddings(nn.Linear(2, 2), lambda x, mask: x)
    with pytest.raises(RuntimeError, match="no word embeddings to perturb"), context:
        pass


@pytest.mark.parametrize("method", ["free_lb", "r3f", "smart"])
def test_a_decoder_is_not_perturbed_where_the_source_is_sound(fairseq_train, tmp_path, method):
    flags = f"--task speech_to_text --arch s2t_transformer --conv-channels 8 {ENCODER} {DECODER}"
    with pytest.raises(SystemExit, match=f"{method}_cross_entropy: .* embed_tokens for its source"):
        fairseq_train(
            f"--criterion {method}_cross_entropy --optimizer adam --max-update 1 --batch-size 4",
            task=(made_data.speech(tmp_path / "data"), flags),
        )


def test_the_hook_is_gone_afterwards_even_after_an_error():
    model = Bag()
    tokens = batch()["net_input"]["src_tokens"]
    before = model(tokens)[0]
    with pytest.raises(ZeroDivisionError), perturbed_embeddings(model, lambda x, mask: 1 / 0):
        model(tokens)
    assert torch.equal(model(tokens)[0], before)


@pytest.mark.parametrize(
    ("name", "flag", "value", "message"),
    [
        ("r_drop", "r_drop_alpha", -1.0, "--r-drop-alpha: -1.0 is not allowed: .* 0 or more"),
        ("r3f", "r3f_radius", 0.0, "--r3f-radius: 0.0 is not allowed: .* above 0"),
        ("smart", "smart_steps", 0, "--smart-steps: 0 is not allowed: .* 1 or more"),
        ("smart", "smart_mu", -0.1, "--smart-mu: -0.1 is not allowed: .* 0 or more"),
        ("free_lb", "free_lb_radius", float("nan"), "--free-lb-radius: nan is not allowed"),
    ],
)
def test_bad_values_are_refused(make_case, make_criterion, name, flag, value, message):
    with pytest.raises(SystemExit, match=message):
        classifier(make_case, make_criterion, name, **{flag: value})


@pytest.mark.parametrize("method", ["free_lb", "smart"])
def test_recomputed_activations_are_refused_in_one_line(fairseq_train, tasks, method):
    stock = "label_smoothed_cross_entropy"
    with pytest.raises(SystemExit, match=f"--criterion: {method}_{stock}: .*checkpoint-activ"):
        fairseq_train(
            f"--criterion {method}_{stock} --optimizer adam --checkpoint-activations",
            task=tasks[stock],
        )


def test_a_model_without_word_embeddings_is_refused_in_one_line(make_case, make_criterion):
    criterion = classifier(make_case, make_criterion, "r3f")
    model = Bag()
    model.embed_tokens = nn.Sequential(nn.Identity(), model.embed_tokens)
    with pytest.raises(SystemExit, match="--criterion: r3f_sentence_prediction: the model has no"):
        criterion(model, batch())


def test_analyses_measure_without_the_regulariser():
    assert per_sentence_name_of("r_drop_sentence_prediction") == "per_sentence_sentence_prediction"
    assert len(REGISTERED) == 12


@pytest.fixture(scope="module")
def tasks(tmp_path_factory):
    made = {}
    for name in ("label_smoothed_cross_entropy", "sentence_prediction"):
        make_data, flags = RUNS[name]
        data = tmp_path_factory.mktemp(name)
        made[name] = (data, f"{make_data(data)} {flags} --dropout 0.1")
    return made


@pytest.mark.parametrize("optimizer", ["adam", "ga_sam", "delta_sam"])
@pytest.mark.parametrize("stock", ["label_smoothed_cross_entropy", "sentence_prediction"])
@pytest.mark.parametrize("method", ["free_lb", "r3f", "r_drop", "smart"])
def test_trains_alone_and_on_top_of_any_method(fairseq_train, tasks, method, stock, optimizer):
    run = fairseq_train(
        f"--criterion {method}_{stock} --optimizer {optimizer} --max-update 3",
        task=tasks[stock],
        validate=True,
    )
    assert run.updates() == 3
    assert all(value >= 0 for value in run.values("penalty"))
    assert "valid_penalty" not in run.records["valid"][0]


class TestMovingAverage:
    """SMART's --smart-mu in fairseq-train, whose trainer keeps the average."""

    FLAGS = "--smart-mu 1 --smart-lambda 0 --store-ema --ema-decay 0.5 --dropout 0"

    @pytest.mark.parametrize("optimizer", ["adam", "ga_sam", "delta_sam"])
    @pytest.mark.parametrize("stock", ["label_smoothed_cross_entropy", "sentence_prediction"])
    def test_pulls_towards_the_average_once_there_is_one(
        self, fairseq_train, tasks, stock, optimizer
    ):
        run = fairseq_train(
            f"--criterion smart_{stock} --optimizer {optimizer} --max-update 3 {self.FLAGS}",
            task=tasks[stock],
            validate=True,
        )
        first, *later = run.values("penalty")
        assert first == 0  # the model is its own average
        assert later
        assert all(penalty > 0 for penalty in later)

    def test_an_average_that_is_the_model_has_its_final_layer_norms(self, fairseq_train, tasks):
        stock = "label_smoothed_cross_entropy"
        run = fairseq_train(
            f"--criterion smart_{stock} --optimizer adam --max-update 3 {self.FLAGS} --ema-decay 0",
            "--encoder-normalize-before --decoder-normalize-before",
            task=tasks[stock],
        )
        assert run.values("penalty") == [0.0] * 3

    def test_resuming_changes_nothing(self, fairseq_train, tasks):
        stock = "label_smoothed_cross_entropy"
        command = f"--criterion smart_{stock} --optimizer ga_sam --save-interval 1 {self.FLAGS}"
        whole = fairseq_train(f"{command} --max-epoch 2", task=tasks[stock])
        part = fairseq_train(f"{command} --max-epoch 1", task=tasks[stock])
        assert part.updates() < whole.updates()
        resumed = fairseq_train(
            f"{command} --max-epoch 2", task=tasks[stock], save_dir=part.save_dir
        )
        assert resumed.updates() == whole.updates()
        wanted = whole.weights()
        assert all(torch.equal(wanted[key], value) for key, value in resumed.weights().items())

    @pytest.mark.parametrize("decay", [0, 0.5])
    def test_of_several_languages(self, fairseq_train, tmp_path, decay):
        """Each pair of languages is compared with its own part of the average."""
        flags = "--task multilingual_translation --lang-pairs de-en,en-de --share-encoders"
        run = fairseq_train(
            f"--criterion smart_cross_entropy {self.FLAGS} --ema-decay {decay} --optimizer sam",
            "--max-update 3 --batch-size 8",
            task=(
                made_data.many_languages(tmp_path / "data"),
                f"{flags} --arch multilingual_transformer {ENCODER} {DECODER}",
            ),
        )
        first, *later = run.values("penalty")
        assert first == 0
        assert [penalty > 0 for penalty in later] == [decay > 0] * 2

    def test_another_model_than_the_trained_one_has_no_average(self, make_case, make_criterion):
        task = make_case("classification").task
        task.moving_average = MovingAverage()
        criterion = make_criterion("smart_sentence_prediction", task, smart_mu=0.7).train()
        task.moving_average.note(Bag(), Bag())
        with pytest.raises(SystemExit, match="--criterion: smart_sentence_prediction: --smart-mu"):
            criterion(Bag(), batch())

    def test_needs_fairseqs_average(self, fairseq_train, tasks):
        with pytest.raises(SystemExit, match=r"--smart-mu: 0\.5 is not allowed: .*--store-ema"):
            fairseq_train(
                "--criterion smart_sentence_prediction --smart-mu 0.5 --optimizer adam",
                task=tasks["sentence_prediction"],
            )

    def test_a_task_with_a_use_for_it_still_gets_it(self):
        got = []
        task = SimpleNamespace(
            uses_ema=True,
            train_step=lambda sample, model, ema_model=None: got.append((sample, ema_model)),
            valid_step=lambda sample, model, ema_model=None: got.append((sample, ema_model)),
        )
        average = moving_average(task)
        assert moving_average(task) is average
        task.train_step(sample=1, model="model", ema_model="average")
        task.valid_step(2, "model", ema_model="average")
        assert got == [(1, "average"), (2, "average")]
        assert average.model == "average"


def test_goes_on_from_a_plain_run_and_back(fairseq_train, tasks):
    stock = "label_smoothed_cross_entropy"
    first = fairseq_train(
        f"--criterion {stock} --optimizer adam --max-epoch 1 --save-interval 1", task=tasks[stock]
    )
    updates = first.updates()
    for epoch, name in ((2, f"free_lb_{stock}"), (3, f"per_sentence_{stock}")):
        run = fairseq_train(
            f"--criterion {name} --optimizer adam --max-epoch {epoch} --save-interval 1",
            task=tasks[stock],
            save_dir=first.save_dir,
        )
        assert run.updates() == epoch * updates


@pytest.mark.parametrize("method", ["free_lb", "r3f", "r_drop", "smart"])
def test_probes_measure_the_regularised_loss(make_case, make_criterion, method):
    """δ-SAM takes differences of probes, without gradient, and the pass at w, with one."""
    strong = {"r_drop_alpha": 9.0, "r3f_radius": 0.5, "smart_radius": 0.5, "free_lb_radius": 2.0}
    criterion = classifier(make_case, make_criterion, method, **strong)
    model, sample = Bag(dropout=0.4).train(), batch()
    torch.manual_seed(3)
    wanted = criterion.per_sentence_losses(model, sample).losses
    with torch.no_grad():
        torch.manual_seed(3)
        found = criterion.losses_only(model, sample)
        torch.manual_seed(3)
        loss, _, log = criterion(model, sample)
    assert wanted.requires_grad
    assert not found.requires_grad
    assert torch.equal(found, wanted.detach())
    assert float(loss) == pytest.approx(float(wanted.detach().sum()))
    assert "penalty" in log
