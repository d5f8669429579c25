"""The reproduction scripts: their commands at full size, small runs, interruptions, manners."""

import gzip
import hashlib
import http.server
import json
import os
import random
import re
import shutil
import subprocess
import threading
import time
from functools import partial

import pytest
import torch

from tests.conftest import REAL_DATA
from tests.fairseq_runs import trained
from tests.scripts.made_text import (
    pack,
    sentences,
    write_archive,
    write_parallel,
    write_side,
)
from tests.scripts.script_runs import (
    BASH,
    ROOT,
    command,
    compare_after_kills,
    dry_run,
    flags,
    kill_session,
    needs_text_packages,
    predictions_of,
    run,
    trainings,
)

SCRIPTS = ("iwslt14_de_en", "iwslt15_en_vi", "bart_cnn_dm")

pytestmark = [
    pytest.mark.skipif(BASH is None, reason="there is no bash"),
]
# GA-SAM, Appendix C.2.
RADII = {
    "iwslt14_de_en": {
        "sam": "5e-4",
        "asam": "2e-4",
        "layer_sam": "3e-3",
        "multi_step_defense": "5e-4",
        "ga_sam": "0.8",
    },
    "iwslt15_en_vi": {
        "sam": "1.2e-3",
        "asam": "5e-4",
        "layer_sam": "1e-3",
        "multi_step_defense": "5e-4",
        "ga_sam": "0.9",
    },
}
EPOCHS = {"iwslt14_de_en": "70", "iwslt15_en_vi": "52"}


class TestFullSize:
    """What --dry-run prints is compared with the papers' settings."""

    @pytest.mark.parametrize("name", ["iwslt14_de_en", "iwslt15_en_vi"])
    @pytest.mark.parametrize("method", ["baseline", *RADII["iwslt14_de_en"]])
    def test_translation(self, name, method):
        commands = dry_run(name, "--gpus", 1, "--seeds", 3, "--methods", method, "--out", "O")
        shared = trainings(commands, "O/shared/seed3/checkpoints")
        branch = trainings(commands, f"O/runs/{method}/seed3/checkpoints")
        assert (shared["--optimizer"], shared["--max-epoch"]) == ("adam", "29")
        assert branch["--max-epoch"] == EPOCHS[name]
        for found in (shared, branch):
            assert found["--arch"] == "transformer_wmt_en_de"
            assert (found["--max-tokens"], found["--seed"]) == ("4096", "3")
            assert (found["--lr"], found["--warmup-updates"]) == ("5e-4", "4000")
            assert (found["--dropout"], found["--weight-decay"]) == ("0.3", "0.0001")
        assert self.perturbation(branch) == self.expected(name, method)

    @pytest.mark.parametrize("method", ["free_lb", "r3f", "r_drop", "smart"])
    def test_a_regulariser_begins_where_the_perturbation_does(self, method):
        commands = dry_run("iwslt14_de_en", "--gpus", 1, "--seeds", 3, "--methods", method)
        shared, branch = (flags(c) for c in commands if "fairseq_cli.train" in c)
        assert shared["--criterion"].startswith("per_sentence_")
        assert branch["--criterion"] == f"{method}_label_smoothed_cross_entropy"
        assert branch["--optimizer"] == "adam"
        assert not any(flag.startswith("--sam-") for flag in branch)
        assert ("--store-ema" in branch) == (method == "smart")

    @staticmethod
    def perturbation(found):
        names = ("rho", "norm", "steps", "loss-reduction", "start-epoch")
        values = {n: found.get(f"--sam-{n}") for n in names}
        return {"optimizer": found["--optimizer"], **values}

    @staticmethod
    def expected(name, method):
        if method == "baseline":
            return {
                "optimizer": "adam",
                **dict.fromkeys(["rho", "norm", "steps", "loss-reduction", "start-epoch"]),
            }
        return {
            "optimizer": method,
            "rho": RADII[name][method],
            "norm": "linf",
            "steps": "2" if method in ("multi_step_defense", "ga_sam") else None,
            "loss-reduction": "sum" if method in ("layer_sam", "ga_sam") else None,
            "start-epoch": "30",
        }

    @pytest.mark.parametrize("name", ["iwslt14_de_en", "iwslt15_en_vi"])
    def test_testing(self, name):
        commands = dry_run(name, "--gpus", 1, "--seeds", 3, "--out", "O")
        average = [flags(c) for c in commands if "average" in c]
        assert {found["--last-epochs"] for found in average} == {"10"}
        generate = [flags(c) for c in commands if "fairseq_cli.generate" in c]
        assert {found["--beam"] for found in generate} == {"5"}
        assert len(average) == len(generate) == 6

    def test_de_en_preparation(self):
        commands = dry_run("iwslt14_de_en", "--gpus", 1, "--seeds", 1)
        learn = next(c for c in commands if "learn-bpe" in c)
        assert flags(["--s", learn[learn.index("-s") + 1]]) == {"--s": "10000"}
        corpus = next(c for c in commands if any("ted_corpus.py" in word for word in c))
        assert "--valid" not in corpus
        assert "--cased" not in corpus
        score = next(c for c in commands if any("translations.py" in word for word in c))
        assert "--lowercase" in score

    def test_en_vi_preparation(self):
        commands = dry_run("iwslt15_en_vi", "--gpus", 1, "--seeds", 1)
        corpus = next(c for c in commands if any("parallel_text.py" in word for word in c))
        assert {"--cased", "--keep-all"} <= set(corpus)
        binarise = flags(next(c for c in commands if "fairseq_cli.preprocess" in c))
        assert (binarise["--thresholdsrc"], binarise["--thresholdtgt"]) == ("5", "5")
        assert not any("learn-bpe" in c for c in commands)

    def test_bart(self):
        commands = dry_run(
            "bart_cnn_dm", "--bart", "B/model.pt", "--gpus", 8, "--seeds", 1, "--out", "O"
        )
        found = trainings(commands, "O/runs/delta_sam/seed1/checkpoints")
        assert (found["--arch"], found["--finetune-from-model"]) == ("bart_large", "B/model.pt")
        assert (found["--optimizer"], found["--sam-rho"]) == ("delta_sam", "0.01")
        assert found["--delta-sam-eta"] == "1e-4"
        assert (found["--lr"], found["--total-num-update"]) == ("3e-5", "20000")
        assert (found["--max-tokens"], found["--update-freq"]) == ("2048", "4")
        assert (found["--warmup-updates"], found["--clip-norm"]) == ("500", "0.1")
        assert "--fp16" in found
        generate = flags(next(c for c in commands if "fairseq_cli.generate" in c))
        assert (generate["--beam"], generate["--lenpen"]) == ("4", "2.0")
        assert (generate["--min-len"], generate["--max-len-b"]) == ("55", "140")
        assert generate["--no-repeat-ngram-size"] == "3"

    def test_the_batch_is_divided_among_gpus(self):
        commands = dry_run("iwslt14_de_en", "--gpus", 4, "--seeds", 1, "--out", "O")
        found = trainings(commands, "O/runs/sam/seed1/checkpoints")
        assert (found["--max-tokens"], found["--distributed-world-size"]) == ("1024", "4")
        commands = dry_run("bart_cnn_dm", "--bart", "B", "--gpus", 2, "--seeds", 1, "--out", "O")
        assert trainings(commands, "O/runs/sam/seed1/checkpoints")["--update-freq"] == "16"

    def test_several_machines(self):
        commands = dry_run(
            "iwslt14_de_en", "--gpus", 2, "--nodes", 2, "--master", "h:99", "--seeds", 1
        )
        launch = next(c for c in commands if "fairseq_cli.train" in c)
        assert launch[0] == "torchrun"
        found = flags(launch)
        assert (found["--nnodes"], found["--nproc-per-node"], found["--node-rank"]) == (
            "2",
            "2",
            "0",
        )
        assert (found["--master-addr"], found["--master-port"]) == ("h", "99")
        assert found["--max-tokens"] == "1024"

    @pytest.mark.parametrize(("nodes", "gpus"), [(2, 1), (2, 4)])
    def test_all_machines_train_one_model(self, nodes, gpus):
        commands = dry_run(
            *("iwslt14_de_en", "--gpus", gpus, "--nodes", nodes, "--master", "h:99", "--seeds", 1)
        )
        found = flags(next(c for c in commands if "fairseq_cli.train" in c))
        assert found["--distributed-world-size"] == str(nodes * gpus)

    def test_another_radius_and_more_flags(self):
        commands = dry_run(
            "iwslt15_en_vi", "--methods", "ga_sam@0.25", "--seeds", 2, "--out", "O", "--gpus", 0,
            "--extra", "--lr 1e-3 --adam-betas '(0.9, 0.99)'",
        )  # fmt: skip
        found = trainings(commands, "O/runs/ga_sam@0.25/seed2/checkpoints")
        assert (found["--sam-rho"], found["--lr"]) == ("0.25", "1e-3")
        assert found["--adam-betas"] == "(0.9, 0.99)"
        assert "--cpu" in found

    def test_nothing_is_run(self, tmp_path):
        dry_run("iwslt14_de_en", "--out", tmp_path / "O")
        assert list(tmp_path.iterdir()) == []


class TestManners:
    @pytest.mark.parametrize("name", SCRIPTS)
    def test_help_names_every_option(self, name):
        result = run(name, "--help")
        assert result.returncode == 0
        sources = [ROOT / "scripts" / f"{name}.sh", ROOT / "scripts" / "lib" / "experiment.sh"]
        text = "".join(path.read_text(encoding="utf-8") for path in sources)
        known = set(re.findall(r"^ +(--[a-z-]+)\) [A-Z]", text, re.MULTILINE))
        assert len(known) >= 17
        missing = {option for option in known if option not in result.stdout}
        # bart_cnn_dm counts in updates.
        assert missing == ({"--epochs", "--start-epoch"} if name == "bart_cnn_dm" else set())

    @pytest.mark.parametrize("name", SCRIPTS)
    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["--methods", "adamw"], "--methods adamw: choose from"),
            (["--methods", "sam@x"], "--methods sam@x: the radius x: a number above 0"),
            (["--methods", "sam@1e400"], "sam@1e400: the radius 1e400: a number above 0"),
            (["--methods", "sam@1e-400"], "sam@1e-400: the radius 1e-400: a number above 0"),
            (["--methods", "sam@٣"], "sam@٣: the radius ٣: a number above 0"),
            (["--methods", "baseline@1"], "baseline has no radius"),
            (["--seeds", "1,b"], "--seeds b: a whole number"),
            (["--seeds", ","], "--seeds: at least one"),
            (["--stage", "7"], "--stage 7: a whole number from 1 to 6"),
            (["--stage", "4", "--stop-stage", "3"], "--stop-stage 3: a whole number from 4 to 6"),
            (["--gpus", "99"], "--gpus 99"),
            (["--parallel", "0"], "--parallel 0"),
            (["--nodes", "2", "--node-rank", "2"], "--node-rank 2"),
            (["--master", "host"], "--master host: HOST:PORT"),
            (["--extra", "'"], "the quotes do not match"),
            (["--data", "/no/such"], "--data /no/such: no such"),
            (["--frobnicate", "1"], "unknown option --frobnicate"),
            (["--average"], "--average needs a value"),
            (["word"], "unexpected argument word"),
        ],
    )
    def test_misuse(self, name, arguments, message, tmp_path):
        result = run(name, "--small", "--out", tmp_path / "out", *arguments)
        assert result.returncode == 2
        assert message in result.stdout
        assert not (tmp_path / "out").exists()

    def test_misuse_of_one_script(self, tmp_path):
        for name, arguments, message in (
            ("bart_cnn_dm", [], "--bart is missing"),
            ("bart_cnn_dm", ["--bart", "/no/such"], "--bart /no/such: no such file"),
            ("bart_cnn_dm", ["--epochs", "3"], "--epochs: training is counted in --updates"),
            ("iwslt14_de_en", ["--bpe", "x"], "--bpe x: choose from"),
            ("iwslt15_en_vi", ["--start-epoch", "99"], "--start-epoch 99"),
        ):
            result = run(name, "--out", tmp_path / "out", *arguments)
            assert (result.returncode, message in result.stdout) == (2, True), result.stdout

    def test_other_settings_are_not_mixed(self, tmp_path):
        out = tmp_path / "out"
        data = write_parallel(tmp_path / "in", ("train", "valid", "test"), ("en", "vi"), (9, 3, 2))
        base = ["--small", "--data", data, "--out", out, "--stop-stage", 1]
        assert run("iwslt15_en_vi", *base).returncode == 0
        result = run("iwslt15_en_vi", *base, "--epochs", 5)
        assert result.returncode == 2
        assert "now:  epochs=5" in result.stdout

    def test_stages_in_order(self, tmp_path):
        data = write_parallel(tmp_path / "in", ("train", "valid", "test"), ("en", "vi"), (9, 3, 2))
        result = run(
            "iwslt15_en_vi", "--small", "--data", data, "--out", tmp_path / "out", "--stage", 4
        )
        assert result.returncode == 1
        assert "start with --stage 2" in result.stdout


class Handler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *arguments):
        pass


@pytest.fixture
def server(tmp_path):
    """Serves tmp_path/served; yields its URL."""
    (tmp_path / "served").mkdir()
    handler = partial(Handler, directory=str(tmp_path / "served"))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as http_server:
        thread = threading.Thread(target=http_server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{http_server.server_port}"
        http_server.shutdown()


@pytest.mark.skipif(shutil.which("curl") is None, reason="there is no curl")
class TestFetch:
    def fetch(self, url, file, sha=""):
        code = (
            f'source "{ROOT}/scripts/lib.sh"; source "{ROOT}/scripts/lib/commands.sh"; fetch "$@"'
        )
        environment = {**os.environ, "no_proxy": "*"}
        return subprocess.run(
            [BASH, "-c", code, "script", url, str(file), sha],
            capture_output=True,
            text=True,
            env=environment,
        )

    def test_whole_file(self, server, tmp_path):
        (tmp_path / "served" / "a.txt").write_text("text")
        sha = hashlib.sha256(b"text").hexdigest()
        assert self.fetch(f"{server}/a.txt", tmp_path / "a.txt", sha).returncode == 0
        assert (tmp_path / "a.txt").read_text() == "text"
        assert not (tmp_path / "a.txt.part").exists()

    def test_unreachable_host_says_how_to_help_oneself(self, tmp_path):
        result = self.fetch("http://127.0.0.1:9/a.tgz", tmp_path / "a.tgz")
        assert result.returncode == 1
        assert "from  http://127.0.0.1:9/a.tgz" in result.stderr
        assert f"to    {tmp_path}/a.tgz" in result.stderr
        assert not (tmp_path / "a.tgz").exists()

    def test_missing_file(self, server, tmp_path):
        assert self.fetch(f"{server}/none.txt", tmp_path / "a").returncode == 1
        assert not (tmp_path / "a").exists()

    def test_a_cut_archive_is_not_taken_for_whole(self, server, tmp_path):
        whole = pack(write_archive(tmp_path / "x"), tmp_path / "x.tgz").read_bytes()
        (tmp_path / "served" / "a.tgz").write_bytes(whole[: len(whole) // 2])
        result = self.fetch(f"{server}/a.tgz", tmp_path / "a.tgz")
        assert result.returncode == 1
        assert "damaged" in result.stderr
        assert not (tmp_path / "a.tgz").exists()

    def test_another_file_than_the_one_wanted(self, server, tmp_path):
        (tmp_path / "served" / "a.txt").write_text("other")
        result = self.fetch(f"{server}/a.txt", tmp_path / "a.txt", "0" * 64)
        assert result.returncode == 1
        assert not (tmp_path / "a.txt").exists()
        assert (tmp_path / "a.txt.damaged").read_text() == "other"

    def test_a_file_put_there_by_hand_is_taken_and_checked(self, tmp_path):
        (tmp_path / "a.txt").write_text("text")
        sha = hashlib.sha256(b"text").hexdigest()
        assert self.fetch("http://127.0.0.1:9/a", tmp_path / "a.txt", sha).returncode == 0


def small_de_en(tmp_path, out, *arguments):
    archive = tmp_path / "de-en.tgz"
    if not archive.exists():
        pack(write_archive(tmp_path / "archive"), archive)
    options = ["--small", "--data", archive, "--out", out, "--seeds", 1, "--bpe-size", 100]
    options += ["--methods", "baseline,ga_sam@0.01", "--epochs", 3, "--start-epoch", 2]
    return ["iwslt14_de_en", *options, *arguments]


def scores(out):
    return {
        path.parent.parent.name: json.loads(path.read_text())
        for path in out.glob("runs/*/*/scores.json")
    }


def weights(out, run_name):
    path = out / "runs" / run_name / "seed1" / "average.pt"
    return trained(torch.load(path, weights_only=False)["model"])


@needs_text_packages
class TestDeEn:
    @pytest.fixture(scope="class")
    def finished(self, tmp_path_factory):
        """A run that was killed at random points, and resumed each time; and its last output."""
        tmp_path = tmp_path_factory.mktemp("killed")
        out = tmp_path / "out"
        rng = random.Random(int(os.environ.get("FAIRSEQ_SAM_TEST_SEED", "1")))
        log = tmp_path / "log"
        for _ in range(3):
            with open(log, "w") as file:
                process = subprocess.Popen(
                    command(*small_de_en(tmp_path, out)),
                    stdin=subprocess.DEVNULL,
                    stdout=file,
                    stderr=file,
                    start_new_session=True,
                )
                time.sleep(rng.uniform(2, 15))
                kill_session(process)
        result = run(*small_de_en(tmp_path, out))
        assert result.returncode == 0, result.stdout
        return tmp_path, out, result.stdout

    def test_killed_and_resumed_equals_uninterrupted(self, finished):
        tmp_path, out, _ = finished
        other = tmp_path / "uninterrupted"
        result = run(*small_de_en(tmp_path, other))
        assert result.returncode == 0, result.stdout
        assert scores(out) == scores(other) != {}
        for name in ("baseline", "ga_sam@0.01"):
            expected = weights(other, name)
            found = weights(out, name)
            assert all(torch.equal(found[key], expected[key]) for key in expected)

    def test_report(self, finished):
        _, out, _ = finished
        table = (out / "report.md").read_text()
        rows = [line for line in table.splitlines() if line.startswith("| ")]
        header = [cell.strip() for cell in rows[0].split("|")]
        remark = "not comparable: small model, other data"
        assert {
            "BLEU (of 100) ↑",
            "BLEU (tokenised) (of 100) ↑",
            f"BLEU (tokenised) in the paper ({remark})",
        } <= set(header)
        baseline = next(row for row in rows if row.startswith("| baseline"))
        assert "35.41 ± 0.13" in baseline
        assert any(row.startswith("| ga_sam@0.01") for row in rows)
        assert (out / "curves.png").stat().st_size > 0

    def test_branches_share_the_first_epochs(self, finished):
        _, out, _ = finished
        logs = [
            (out / "runs" / name / "seed1" / "train.log").read_text()
            for name in ("baseline", "ga_sam@0.01")
        ]
        first = [re.search(r'"epoch": 1, "train_loss": "([0-9.]+)"', log).group(1) for log in logs]
        assert first[0] == first[1]
        averages = [weights(out, name) for name in ("baseline", "ga_sam@0.01")]
        assert any(not torch.equal(averages[0][key], averages[1][key]) for key in averages[0])

    def test_a_rerun_does_nothing_again(self, finished):
        tmp_path, out, _ = finished
        before = {path: path.stat().st_mtime_ns for path in out.glob("runs/*/*/average.pt")}
        result = run(*small_de_en(tmp_path, out))
        assert result.returncode == 0
        assert result.stdout.count("done before") >= 6
        assert before == {path: path.stat().st_mtime_ns for path in before}

    def test_two_at_a_time_in_one_folder(self, finished):
        tmp_path, out, _ = finished
        if shutil.which("flock") is None:
            pytest.skip("there is no flock")
        import fcntl

        with open(out / ".lock") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            result = run(*small_de_en(tmp_path, out))
        assert result.returncode == 1
        assert "another script is at work" in result.stdout

    def test_a_failing_training_is_reported_and_the_others_go_on(self, finished):
        tmp_path, out, _ = finished
        methods = ["--methods", "baseline,sam@1e-5,asam@1e-5", "--stop-stage", 4]
        blocked = out / "runs" / "sam@1e-5"
        blocked.mkdir()
        (blocked / "seed1").write_text("in the way")
        result = run(*small_de_en(tmp_path, out), *methods, "--parallel", 2)
        assert result.returncode == 1
        assert "1 of the trainings or scorings failed" in result.stdout
        assert (out / ".done" / "train.asam@1e-5.seed1").exists()
        assert not (out / ".done" / "train.sam@1e-5.seed1").exists()

    def test_regularisers_go_on_from_the_shared_epochs(self, finished):
        tmp_path, out, _ = finished
        methods = ["--methods", "baseline,free_lb,smart", "--stop-stage", 4]
        result = run(*small_de_en(tmp_path, out), *methods, "--parallel", 2)
        assert result.returncode == 0, result.stdout
        assert "free_lb seed 1: epoch   2" in result.stdout
        assert "smart seed 1: epoch   2" in result.stdout

    def test_stopping_the_script_stops_its_trainings(self, finished):
        tmp_path, out, _ = finished
        options = ["--methods", "layer_sam@1e-6", "--stop-stage", 4, "--extra", ""]
        process = subprocess.Popen(
            command(*small_de_en(tmp_path, out), *options),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        launched = out / "runs" / "layer_sam@1e-6" / "seed1" / "launched"
        deadline = time.monotonic() + 60
        while not launched.exists() and time.monotonic() < deadline:
            time.sleep(0.1)
        process.terminate()
        assert process.wait(timeout=30) == 130
        time.sleep(1)
        listed = subprocess.run(["ps", "-eo", "sess,args"], capture_output=True, text=True).stdout
        left = [line for line in listed.splitlines() if line.split()[:1] == [str(process.pid)]]
        assert [line for line in left if "defunct" not in line] == []


@pytest.mark.slow
@needs_text_packages
def test_ten_kills_at_random(tmp_path):
    compare_after_kills(
        lambda out: command(*small_de_en(tmp_path, out)), tmp_path, 10, predictions_of
    )


def cut(source, target, count):
    """Writes the first lines of a .gz or plain file."""
    packed = source.with_name(f"{source.name}.gz")
    text = gzip.decompress(packed.read_bytes()) if packed.exists() else source.read_bytes()
    lines = text.split(b"\n")[:count]
    target.write_bytes(b"".join(line + b"\n" for line in lines))


@pytest.fixture
def en_vi(tmp_path):
    """A slice of the real text where it is there, made text elsewhere."""
    sizes = {"train": 150, "tst2012": 4, "tst2013": 6}
    real = REAL_DATA / "iwslt15-en-vi"
    if not real.is_dir():
        return write_parallel(tmp_path / "in", list(sizes), ("en", "vi"), sizes.values(), ".gz")
    (tmp_path / "in").mkdir()
    for name, (split, size) in zip(("train", "valid", "test"), sizes.items()):
        for language in ("en", "vi"):
            cut(real / f"{name}.{language}", tmp_path / "in" / f"{split}.{language}", size)
    return tmp_path / "in"


@pytest.mark.slow
@needs_text_packages
def test_en_vi_small(tmp_path, en_vi):
    out = tmp_path / "out"
    result = run(
        "iwslt15_en_vi", "--small", "--data", en_vi, "--out", out, "--seeds", "1,2",
        "--methods", "baseline,sam@1e-4", "--epochs", 2, "--start-epoch", 2, "--average", 1,
        "--free-disk",
    )  # fmt: skip
    assert result.returncode == 0, result.stdout
    table = (out / "report.md").read_text()
    assert re.search(r"\| baseline \| 2 \|.*30\.60 ± 0\.21", table)
    assert re.search(r"\| sam@1e-4 \| 2 \|", table)
    assert not list(out.glob("runs/*/*/checkpoints"))
    assert len(list(out.glob("runs/*/*/average.pt"))) == 4


def byte_bpe(root):
    """Files of a GPT-2 BPE without merges."""
    from fairseq.data.encoders.gpt2_bpe_utils import bytes_to_unicode

    symbols = list(bytes_to_unicode().values())
    (root / "encoder.json").write_text(json.dumps({s: i for i, s in enumerate(symbols)}))
    (root / "vocab.bpe").write_text("#version: 0.2\n\n")
    write_side(root / "dict.txt", [f"{i} 1" for i in range(len(symbols))])


@pytest.fixture
def summaries(tmp_path):
    """Options that name a corpus of summaries and its BPE, real where they are there."""
    data, bpe = tmp_path / "in", tmp_path / "bpe"
    data.mkdir()
    bpe.mkdir()
    sizes = {"train": 12, "val": 2, "test": 3}
    real = REAL_DATA / "scitldr"
    for name, size in sizes.items():
        pairs = [(f"{source} {target}", target) for source, target in sentences(size, size)]
        for side, suffix in enumerate(("source", "target")):
            if real.is_dir():
                cut(real / f"{name}.{suffix}", data / f"{name}.{suffix}", size)
            else:
                write_side(data / f"{name}.{suffix}.gz", [pair[side] for pair in pairs])
    if real.is_dir():
        for name in ("encoder.json", "vocab.bpe", "dict.txt"):
            cut(REAL_DATA / "gpt2-bpe" / name, bpe / name, None)
    else:
        byte_bpe(bpe)
    (data / "test.target.gz").unlink(missing_ok=True)
    # A model has positions for 1024 tokens; a summary may have more.
    write_side(data / "test.target", ["a b c.", "word " * 2000, "d e f."])
    return ["--data", data, "--gpt2-bpe", bpe]


@pytest.mark.slow
@needs_text_packages
def test_bart_small(tmp_path, summaries):
    out = tmp_path / "out"
    options = ["--small", *summaries, "--out", out, "--seeds", 1, "--updates", 10]
    options += ["--pretrain-updates", 10, "--methods", "baseline,delta_sam"]
    result = run("bart_cnn_dm", *options)
    assert result.returncode == 0, result.stdout
    table = (out / "report.md").read_text()
    assert re.search(r"\| baseline \| 1 \| .*44\.16.*40\.90", table)
    assert re.search(r"\| delta_sam \| 1 \| .*44\.70.*41\.81", table)
    assert "ROUGE-Lsum" in table
    hypotheses = (out / "runs" / "delta_sam" / "seed1" / "hypothesis").read_text().splitlines()
    assert len(hypotheses) == 3
    log = (out / "runs" / "baseline" / "seed1" / "train.log").read_text()
    assert "loading pretrained model from" in log
