"""Averages against a naive float64 mean, and files that are not what they should be."""

import argparse
import gc
import os
import pickle
import signal
import subprocess
import sys
import time
import weakref

import pytest
import torch

from fairseq_sam.checkpoints import averaging, checkpoint_files
from fairseq_sam.checkpoints.averaging import RunningMean, average_checkpoints
from fairseq_sam.checkpoints.checkpoint_files import (
    CheckpointError,
    RestrictedPickle,
    last_checkpoints,
    read_checkpoint,
    write_checkpoint,
)
from fairseq_sam.commands import main


@pytest.fixture(autouse=True)
def _allow_namespace():
    """As host.repair() does; tests of the loader alone need no fairseq."""
    if hasattr(torch.serialization, "add_safe_globals"):
        torch.serialization.add_safe_globals([argparse.Namespace])


def make_state(seed, dtype=torch.float32, width=5):
    generator = torch.Generator().manual_seed(seed)
    embedding = torch.randn(7, width, generator=generator).to(dtype)
    return {
        "args": None,
        "cfg": {"model": argparse.Namespace(arch="transformer", seed=seed)},
        "model": {
            "encoder.embed.weight": embedding,
            "decoder.embed.weight": embedding,
            "bias": torch.randn(width, generator=generator).to(dtype),
            "empty": torch.zeros(0),
            "num_batches_tracked": torch.tensor(seed),
            "mask": torch.tensor([seed % 2 == 0, True]),
        },
        "criterion": None,
        "optimizer_history": [{"num_updates": 10 * seed, "optimizer_name": "FairseqAdam"}],
        "task_state": {},
        "extra_state": {"train_iterator": {"epoch": seed}, "ema": {"bias": embedding}},
        "last_optimizer_state": {"state": {0: {"exp_avg": embedding}}},
    }


def save_all(directory, count, **options):
    paths = []
    for epoch in range(1, count + 1):
        paths.append(directory / f"checkpoint{epoch}.pt")
        torch.save(make_state(epoch, **options), paths[-1])
    return paths


def naive_mean(name, count, **options):
    stack = torch.stack([make_state(i + 1, **options)["model"][name] for i in range(count)])
    return stack.double().mean(0)


class TestMean:
    def test_equals_naive_float64_mean(self, tmp_path):
        state = average_checkpoints(save_all(tmp_path, 7))
        for name in ("encoder.embed.weight", "bias"):
            assert state["model"][name].dtype == torch.float32
            assert torch.equal(state["model"][name], naive_mean(name, 7).float())

    def test_float32_sums_are_close(self, tmp_path):
        state = average_checkpoints(save_all(tmp_path, 7), dtype=torch.float32)
        torch.testing.assert_close(state["model"]["bias"], naive_mean("bias", 7).float())

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    def test_half_precision_keeps_the_digits_of_the_mean(self, tmp_path, dtype):
        state = average_checkpoints(save_all(tmp_path, 3, dtype=dtype))
        expected = naive_mean("bias", 3, dtype=dtype).float()
        assert torch.equal(state["model"]["bias"], expected)
        assert not torch.equal(expected, expected.to(dtype).float())

    def test_float64_weights_stay_float64(self, tmp_path):
        state = average_checkpoints(save_all(tmp_path, 3, dtype=torch.float64))
        assert torch.equal(state["model"]["bias"], naive_mean("bias", 3, dtype=torch.float64))

    def test_sums_that_overflow_half_precision(self):
        mean = RunningMean()
        for _ in range(4):
            mean.add({"w": torch.full((2,), 60000.0, dtype=torch.float16)})
        assert torch.equal(mean.result()["w"], torch.full((2,), 60000.0))

    def test_one_checkpoint_is_itself(self, tmp_path):
        state = average_checkpoints(save_all(tmp_path, 1))
        assert torch.equal(state["model"]["bias"], make_state(1)["model"]["bias"])

    def test_small_expanded_tensors_are_averaged(self, tmp_path):
        for number in (1, 2):
            model = {"bias": torch.full((1,), float(number)).expand(1000)}
            torch.save({"model": model}, tmp_path / f"{number}.pt")
        state = average_checkpoints([tmp_path / "1.pt", tmp_path / "2.pt"])
        assert torch.equal(state["model"]["bias"], torch.full((1000,), 1.5))

    def test_integer_and_bool_buffers_keep_the_last_value(self, tmp_path):
        model = average_checkpoints(save_all(tmp_path, 3))["model"]
        assert model["num_batches_tracked"].item() == 3
        assert model["mask"].tolist() == [False, True]

    def test_complex_numbers(self):
        mean = RunningMean(torch.float32)
        mean.add({"w": torch.tensor([1 + 2j])})
        mean.add({"w": torch.tensor([3 - 2j])})
        assert mean.result()["w"].tolist() == [2 + 0j]

    def test_inputs_are_not_changed(self):
        first, second = torch.ones(2, dtype=torch.float64), torch.zeros(2, dtype=torch.float64)
        mean = RunningMean()
        mean.add({"w": first})
        mean.add({"w": second})
        assert torch.equal(first, torch.ones(2, dtype=torch.float64))

    def test_nothing_to_average(self):
        with pytest.raises(CheckpointError):
            average_checkpoints([])
        with pytest.raises(ValueError, match="nothing"):
            RunningMean().result()


class TestWhatIsKept:
    def test_last_settings_without_optimizer_and_ema(self, tmp_path):
        state = average_checkpoints(save_all(tmp_path, 3))
        assert state["cfg"]["model"].seed == 3
        assert state["optimizer_history"][-1]["num_updates"] == 30
        assert state["extra_state"]["train_iterator"] == {"epoch": 3}
        assert state["extra_state"]["averaged_from"] == [f"checkpoint{i}.pt" for i in (1, 2, 3)]
        assert "last_optimizer_state" not in state
        assert "ema" not in state["extra_state"]

    def test_order_of_names(self, tmp_path):
        assert list(average_checkpoints(save_all(tmp_path, 2))["model"]) == list(
            make_state(1)["model"]
        )

    def test_criterion_weights_are_averaged(self, tmp_path):
        paths = save_all(tmp_path, 2)
        for value, path in enumerate(paths):
            torch.save(dict(make_state(1), criterion={"c": torch.tensor(float(value))}), path)
        assert average_checkpoints(paths)["criterion"]["c"].item() == 0.5

    def test_tied_tensors_share_memory_also_on_disk(self, tmp_path):
        paths = save_all(tmp_path, 3, width=1000)
        state = average_checkpoints(paths)
        model = state["model"]
        assert model["encoder.embed.weight"].data_ptr() == model["decoder.embed.weight"].data_ptr()
        write_checkpoint(state, tmp_path / "average.pt")
        assert (tmp_path / "average.pt").stat().st_size < 1.5 * 7 * 1000 * 4
        model = read_checkpoint(tmp_path / "average.pt")["model"]
        assert model["encoder.embed.weight"].data_ptr() == model["decoder.embed.weight"].data_ptr()

    def test_untied_but_equal_later_is_fine_and_different_is_not(self, tmp_path):
        paths = save_all(tmp_path, 2)
        state = make_state(2)
        state["model"]["decoder.embed.weight"] = state["model"]["encoder.embed.weight"].clone()
        torch.save(state, paths[1])
        average_checkpoints(paths)
        state["model"]["decoder.embed.weight"] += 1
        torch.save(state, paths[1])
        with pytest.raises(CheckpointError, match=r"checkpoint2\.pt.*one tensor"):
            average_checkpoints(paths)


class TestMemory:
    def test_one_checkpoint_at_a_time(self, tmp_path, monkeypatch):
        alive = []

        def read(path):
            gc.collect()
            still_there = [name for name, ref in alive if ref() is not None]
            assert not still_there, f"kept in memory: {still_there}"
            state = read_checkpoint(path)
            alive.append((os.path.basename(path), weakref.ref(state["model"]["bias"])))
            return state

        monkeypatch.setattr(averaging, "read_checkpoint", read)
        average_checkpoints(save_all(tmp_path, 5))
        assert len(alive) == 5


class TestBadFiles:
    @pytest.fixture
    def paths(self, tmp_path):
        return save_all(tmp_path, 3)

    def refuse(self, paths, match):
        with pytest.raises(CheckpointError, match=match) as caught:
            average_checkpoints(paths)
        assert "\n" not in str(caught.value)

    @pytest.mark.parametrize("share", [0.0, 0.3, 0.9, 0.999])
    def test_truncated(self, paths, share):
        content = paths[1].read_bytes()
        paths[1].write_bytes(content[: int(share * len(content))])
        self.refuse(paths, r"checkpoint2\.pt: damaged")

    def test_missing(self, paths):
        paths[1].unlink()
        self.refuse(paths, r"checkpoint2\.pt: no such file")

    def test_not_a_checkpoint(self, paths):
        torch.save({"weights": 1}, paths[1])
        self.refuse(paths, r"checkpoint2\.pt: not a fairseq checkpoint")

    def test_other_names(self, paths):
        state = make_state(2)
        state["model"]["decoder.bias"] = state["model"].pop("bias")
        torch.save(state, paths[1])
        self.refuse(paths, r"checkpoint2\.pt.*checkpoint1\.pt: lacks bias; adds decoder.bias")

    def test_other_shape(self, paths):
        torch.save(make_state(2, width=6), paths[1])
        self.refuse(paths, r"checkpoint2\.pt.*encoder.embed.weight is \(7, 6\)")

    def test_other_type(self, paths):
        torch.save(make_state(2, dtype=torch.float16), paths[1])
        self.refuse(paths, r"checkpoint2\.pt.*torch.float16, not")

    def test_code_in_a_checkpoint_is_not_run(self, paths, tmp_path):
        torch.save(dict(make_state(2), args=Malicious(tmp_path / "ran")), paths[1])
        self.refuse(paths, r"checkpoint2\.pt: holds .*open, which is code, not data; refused")
        assert not (tmp_path / "ran").exists()


class Malicious:
    """Creates a file when it is unpickled by anything but a safe loader."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


class TestLoadingWithOldTorch:
    """Before torch 2.4 the safe loader cannot be told about fairseq's types."""

    @pytest.fixture(autouse=True)
    def _old_torch(self, monkeypatch):
        monkeypatch.delattr(torch.serialization, "add_safe_globals", raising=False)

    def test_reads_the_same(self, tmp_path):
        state = average_checkpoints(save_all(tmp_path, 3, dtype=torch.float16))
        assert torch.equal(
            state["model"]["bias"], naive_mean("bias", 3, dtype=torch.float16).float()
        )
        assert state["cfg"]["model"].seed == 3

    def test_refuses_code(self, tmp_path):
        torch.save(dict(make_state(1), args=Malicious(tmp_path / "ran")), tmp_path / "bad.pt")
        with pytest.raises(CheckpointError, match=r"holds .*open, which is code"):
            read_checkpoint(tmp_path / "bad.pt")
        assert not (tmp_path / "ran").exists()

    @pytest.mark.parametrize("name", ["posix system", "torch.hub load", "torch load", "numpy load"])
    def test_refuses_globals_beyond_the_list(self, name):
        module, function = name.split()
        content = f"c{module}\n{function}\n.".encode()
        with pytest.raises(pickle.UnpicklingError, match="refused"):
            RestrictedPickle.load(__import__("io").BytesIO(content))


class TestFindingCheckpoints:
    @pytest.fixture
    def directory(self, tmp_path):
        for name in ("checkpoint9", "checkpoint10", "checkpoint11", "checkpoint_2_100"):
            (tmp_path / f"{name}.pt").touch()
        for name in ("checkpoint_11_90", "checkpoint_best", "checkpoint_last", "checkpoint12.pt.x"):
            (tmp_path / f"{name}.pt").touch()
        return tmp_path

    def names(self, *args, **options):
        return [path.name for path in last_checkpoints(*args, **options)]

    def test_by_number_not_by_name(self, directory):
        assert self.names(directory, 2) == ["checkpoint10.pt", "checkpoint11.pt"]
        assert self.names(directory, 2, by="update") == [
            "checkpoint_11_90.pt",
            "checkpoint_2_100.pt",
        ]

    def test_upper_bound(self, directory):
        assert self.names(directory, 2, upper_bound=10) == ["checkpoint9.pt", "checkpoint10.pt"]

    def test_too_few(self, directory):
        with pytest.raises(CheckpointError, match="4 epoch checkpoints asked for, 3 there"):
            last_checkpoints(directory, 4)

    def test_no_directory(self, tmp_path):
        with pytest.raises(CheckpointError, match="nowhere"):
            last_checkpoints(tmp_path / "nowhere", 1)


class TestWriting:
    def test_failure_leaves_the_old_file_and_no_rest(self, tmp_path, monkeypatch):
        target = tmp_path / "average.pt"
        target.write_text("old")

        def fail(state, stream):
            stream.write(b"half")
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(checkpoint_files.torch, "save", fail)
        with pytest.raises(CheckpointError, match=r"average\.pt: cannot write \(No space"):
            write_checkpoint({}, target)
        assert target.read_text() == "old"
        assert [path.name for path in tmp_path.iterdir()] == ["average.pt"]

    @pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no SIGKILL on this system")
    def test_killed_in_the_middle_leaves_the_old_file(self, tmp_path):
        target = tmp_path / "average.pt"
        target.write_text("old")
        program = (
            "import sys, time, torch\n"
            "from fairseq_sam.checkpoints.checkpoint_files import write_checkpoint\n"
            "def save(state, stream):\n"
            "    stream.write(b'half'); stream.flush(); print('writing', flush=True)\n"
            "    time.sleep(60)\n"
            "torch.save = save\n"
            "write_checkpoint({}, sys.argv[1])\n"
        )
        process = subprocess.Popen(
            [sys.executable, "-c", program, str(target)], stdout=subprocess.PIPE
        )
        assert process.stdout.readline() == b"writing\n"
        process.kill()
        process.wait()
        process.stdout.close()
        assert target.read_text() == "old"
        left = [path.name for path in tmp_path.iterdir() if path != target]
        assert all(name.startswith(".average.pt.") and not name.endswith(".pt") for name in left)


class TestCommand:
    @pytest.fixture(autouse=True)
    def _in_directory(self, tmp_path, monkeypatch):
        pytest.importorskip("fairseq")
        monkeypatch.chdir(tmp_path)

    def test_last_epochs(self, tmp_path, capsys):
        save_all(tmp_path, 4)
        assert main(["average", ".", "--last-epochs", "2", "--output", "a.pt"]) == 0
        expected = (make_state(3)["model"]["bias"] + make_state(4)["model"]["bias"]) / 2
        torch.testing.assert_close(read_checkpoint("a.pt")["model"]["bias"], expected)
        assert capsys.readouterr().out == "a.pt: mean of 2 checkpoints\n"

    def test_listed_files_and_force(self, tmp_path, capsys):
        save_all(tmp_path, 2)
        command = ["average", "checkpoint2.pt", "checkpoint1.pt", "--output", "a.pt"]
        assert main(command) == 0
        assert read_checkpoint("a.pt")["cfg"]["model"].seed == 1
        before = os.stat("a.pt").st_mtime_ns
        assert main(command) == 1
        assert "a.pt: exists" in capsys.readouterr().err
        assert os.stat("a.pt").st_mtime_ns == before
        time.sleep(0.01)
        assert main([*command, "--force"]) == 0
        assert os.stat("a.pt").st_mtime_ns != before

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ([".", "--last-epochs", "9"], "9 epoch checkpoints asked for, 2 there"),
            (["checkpoint1.pt", "checkpoint3.pt"], "checkpoint3.pt: no such file"),
            (["checkpoint1.pt", "fifo.pt"], "fifo.pt: is a FIFO, not a file"),
            (["expanded.pt"], "expanded.pt: bias has 1000000000000 elements, of which most are"),
            (["list.pt"], "list.pt: criterion is list, not a table of tensors"),
        ],
    )
    def test_failure_is_one_line(self, tmp_path, capsys, arguments, message):
        save_all(tmp_path, 2)
        os.mkfifo("fifo.pt")
        torch.save({"model": {"bias": torch.zeros(1).expand(10**12)}}, "expanded.pt")
        torch.save({"model": {}, "criterion": [1]}, "list.pt")
        assert main(["average", *arguments, "--output", "a.pt"]) == 1
        error = capsys.readouterr().err.splitlines()[-1]
        assert error.startswith("fairseq-sam average: error: ")
        assert message in error
        assert not os.path.exists("a.pt")

    @pytest.mark.parametrize(
        ("output", "message"),
        [("dir", "--output 'dir': is no file"), ("/dev/full", "/dev/full: cannot write (")],
    )
    def test_output_that_cannot_be_written(self, tmp_path, capsys, output, message):
        (tmp_path / "dir").mkdir()
        save_all(tmp_path, 2)
        command = ["average", "checkpoint1.pt", "checkpoint2.pt", "--force", "--output", output]
        assert main(command) == 1
        assert message in capsys.readouterr().err.splitlines()[-1]
        assert not os.path.isfile("/dev/full")

    def test_no_output(self, tmp_path, capsys):
        save_all(tmp_path, 2)
        assert main(["average", "checkpoint1.pt", "--output", ""]) == 1
        assert "--output '': is no file" in capsys.readouterr().err

    @pytest.mark.parametrize(
        "arguments",
        [
            ["."],
            [".", "--last-epochs", "0"],
            [".", "--last-epochs", "x"],
            [".", "checkpoint1.pt", "--last-epochs", "2"],
            [".", "--last-epochs", "2", "--last-updates", "2"],
            ["checkpoint1.pt", "--upper-bound", "3"],
            ["checkpoint1.pt", "./checkpoint1.pt"],
            [".", "--last-epochs", "2", "--dtype", "float16"],
            [],
        ],
    )
    def test_misuse(self, tmp_path, capsys, arguments):
        save_all(tmp_path, 2)
        with pytest.raises(SystemExit) as caught:
            main(["average", *arguments, "--output", "a.pt"])
        assert caught.value.code == 2
        assert capsys.readouterr().err.count("\n") == 1
