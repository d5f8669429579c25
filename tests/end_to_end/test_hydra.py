"""fairseq-hydra-train takes the same settings as keys of ``optimizer``."""

import subprocess
import sys

import hydra
import pytest

from tests.fairseq_runs import USER_DIR, Run, parse_log

COMMAND = "from fairseq_cli.hydra_train import cli_main; cli_main()"
MODEL = (
    "task=language_modeling task.tokens_per_sample=12 model=transformer_lm "
    "model.decoder_embed_dim=8 model.decoder_ffn_embed_dim=8 model.decoder_layers=1 "
    "model.decoder_attention_heads=2 criterion=cross_entropy"
)
TRAINING = (
    "lr_scheduler=fixed optimization.max_update=4 optimization.lr=[0.01] dataset.batch_size=4 "
    "dataset.disable_validation=true dataset.num_workers=0 common.log_interval=1 "
    "common.log_format=json common.cpu=true"
)


@pytest.fixture
def hydra_train(tmp_path, lm_corpus):
    """``hydra_train(overrides…)``: fairseq-hydra-train in a process of its own."""
    numbers = iter(range(100))

    def train(*overrides: str) -> Run:
        run = Run(tmp_path / f"hydra{next(numbers)}")
        done = subprocess.run(
            [
                *(sys.executable, "-c", COMMAND, *MODEL.split(), *TRAINING.split()),
                f"task.data={lm_corpus}",
                f"common.user_dir={USER_DIR}",
                f"checkpoint.save_dir={run.save_dir}",
                f"hydra.run.dir={tmp_path}/outputs",
                *overrides,
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=str(tmp_path),
            timeout=300,
        )
        run.status = done.returncode
        return parse_log(run, done.stdout.splitlines())

    return train


@pytest.fixture(scope="session")
def lm_corpus(tmp_path_factory, preprocess):
    text, data = tmp_path_factory.mktemp("lm"), tmp_path_factory.mktemp("lm-bin")
    words = [f"w{i % 7} w{i % 5} w{i % 3} w{i % 11}" for i in range(60)]
    (text / "train").write_text("\n".join(words) + "\n")
    preprocess(
        "--only-source --trainpref",
        text / "train",
        "--validpref",
        text / "train",
        "--destdir",
        data,
    )
    return data


def optimizer(name: str, **keys: object) -> str:
    """The whole node at once, which old and new hydra take alike."""
    pairs = "".join(f",{key}:{value}" for key, value in keys.items())
    return f"+optimizer={{_name:{name}{pairs}}}"


def perturbed(run: Run) -> bool:
    return "sharpness" in run.output and '"perturbation_on": "1"' in run.output


@pytest.mark.slow
def test_dataclass_base_with_its_keys(hydra_train):
    run = hydra_train(optimizer("ga_sam", sam_rho=0.01, adam_betas="[0.5,0.6]"))
    assert run.status == 0, run.output
    assert perturbed(run)
    (group,) = run.checkpoint()["last_optimizer_state"]["param_groups"]
    assert list(group["betas"]) == [0.5, 0.6]


@pytest.mark.slow
def test_legacy_base_with_its_keys(hydra_train):
    run = hydra_train(optimizer("sam", base_optimizer="sgd", momentum=0.5))
    assert run.status == 0, run.output
    assert perturbed(run)
    (group,) = run.checkpoint()["last_optimizer_state"]["param_groups"]
    assert group["momentum"] == 0.5
    assert group["lr"] == 0.01


def test_rho_zero_is_the_base_optimizer(hydra_train):
    adam = hydra_train("optimizer=adam", "optimizer.adam_betas=[0.5,0.6]")
    run = hydra_train(optimizer("ga_sam", sam_rho=0, adam_betas="[0.5,0.6]"))
    assert run.status == adam.status == 0, run.output
    run.assert_same_training(adam)


@pytest.mark.slow
@pytest.mark.skipif(hydra.__version__ < "1.1", reason="hydra 1.0 takes only the whole node")
def test_keys_one_by_one(hydra_train):
    run = hydra_train("+optimizer._name=ga_sam", "+optimizer.sam_rho=0.01")
    assert run.status == 0, run.output
    assert perturbed(run)


@pytest.mark.slow
def test_composite_base(hydra_train):
    groups = (
        "{default:{optimizer:{_name:adam,lr:[0.01],adam_betas:[0.5,0.6],adam_eps:1e-8,"
        "weight_decay:0.0},lr_scheduler:{_name:fixed,lr:[0.01],force_anneal:null,lr_shrink:0.1,"
        "warmup_updates:0}}}"
    )
    no_scheduler = "lr_scheduler=pass_through"
    alone = hydra_train(optimizer("composite", groups=groups), no_scheduler)
    assert alone.status == 0, alone.output
    base = {"base_optimizer": "composite", "groups": groups}
    run = hydra_train(optimizer("sam", sam_rho=0, **base), no_scheduler)
    assert run.status == 0, run.output
    run.assert_same_training(alone)
    perturbed_run = hydra_train(optimizer("sam", **base), no_scheduler)
    assert perturbed(perturbed_run)
    assert perturbed_run.differs_from(alone)


@pytest.mark.slow
@pytest.mark.parametrize("more", [[], ["common.memory_efficient_bf16=true"]])
def test_half_precision(hydra_train, more):
    run = hydra_train(optimizer("ga_sam"), "common.bf16=true", *more)
    assert run.status == 0, run.output
    assert perturbed(run)
    assert "perturbation_realised" in run.output


BAD = [
    ({"sam_rhoo": 1}, ["optimizer.sam_rhoo", "sam_rho,", "adam_betas"]),
    ({"sam_rho": -1}, ["--sam-rho", "-1", "must be a finite number"]),
    ({"sam_steps": 0}, ["--sam-steps", "0", "1 or more"]),
    ({"sam_norm": "l3"}, ["--sam-norm", "l3", "linf"]),
    ({"base_optimizer": "bogus"}, ["--base-optimizer", "bogus", "adam"]),
    ({"base_optimizer": "asam"}, ["--base-optimizer", "asam", "itself"]),
    ({"base_optimizer": "sgd", "adam_eps": 1}, ["adam_eps", "momentum"]),
    ({"sam_scale": "none", "sam_granularity": "layer"}, ["--sam-granularity"]),
]


def assert_readable(line: str, parts) -> None:
    assert all(part in line for part in parts), line
    assert "_name" not in line


def assert_refused(run: Run, parts) -> None:
    """In one line, before data is read."""
    assert run.status != 0
    assert "Traceback" not in run.output
    assert "loaded 60" not in run.output
    errors = [line for line in run.output.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, run.output
    assert_readable(errors[0], parts)
    assert not list(run.save_dir.glob("*.pt"))


@pytest.mark.parametrize(("keys", "parts"), BAD, ids=[",".join(keys) for keys, _ in BAD])
def test_bad_settings_have_one_line(keys, parts):
    from omegaconf import OmegaConf

    import fairseq_sam
    from fairseq_sam.training.optimizers import check_configuration

    fairseq_sam.register()
    with pytest.raises(SystemExit) as stopped:
        check_configuration(OmegaConf.create({"_name": "ga_sam", **keys}))
    assert len(str(stopped.value).splitlines()) == 1
    assert_readable(str(stopped.value), parts)


def test_bad_settings_are_refused_clearly(hydra_train):
    keys, parts = BAD[0]
    assert_refused(hydra_train(optimizer("ga_sam", **keys)), parts)


@pytest.mark.slow
def test_impossible_runs_are_refused_clearly(hydra_train):
    assert_refused(hydra_train(optimizer("ga_sam"), "optimization.use_bmuf=true"), ["--use-bmuf"])


@pytest.mark.slow
def test_start_epoch_beyond_max_epoch_warns(hydra_train):
    run = hydra_train(optimizer("ga_sam", sam_start_epoch=5), "optimization.max_epoch=2")
    assert run.status == 0, run.output
    assert run.output.count("is beyond --max-epoch 2") == 1
