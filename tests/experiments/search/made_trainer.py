"""Stands in for fairseq-train: same log, same checkpoint, and an objective instead of a model.

Run as a program with the flags that the search gives, and with --max-epoch. The loss after epoch e
of E is ``4 + 4 (E − e) + 0.05 ((ρ/optimum)² − 2 ρ/optimum) + seed/1000``. Flags of its own:
--optimum; --pause SECONDS before each epoch; --fail-at RHO, once another has started or after the
pause; --diverge-above RHO; --nan-detector (diverge as fairseq's search for a NaN does);
--say-nothing.
Each start adds a line to the file ``starts`` in --save-dir.
"""

import argparse
import glob
import json
import os
import pickle
import sys
import time

MAGIC = 0x1950A86A20F9469CFC6C  # of torch's older format, which needs no torch to be written
NAN_DETECTOR = """FloatingPointError: gradients are Nan/Inf

During handling of the above exception, another exception occurred:

StopIteration"""
DIVERGED = """FloatingPointError: Minimum loss scale reached (0.0001).
UserWarning: resource_tracker: There appear to be leaked semaphore objects
Exception ignored in: <function __del__>
AttributeError: no attribute"""


def write_checkpoint(path, epoch):
    with open(f"{path}.tmp", "wb") as stream:
        for part in (MAGIC, 1001, {"little_endian": True}, {"model": {}, "epoch": epoch}, []):
            pickle.dump(part, stream, protocol=2)
    os.replace(f"{path}.tmp", path)


def read_checkpoint(path):
    with open(path, "rb") as stream:
        parts = [pickle.load(stream) for _ in range(4)]
    return parts[3]["epoch"]


def radius(text):
    return float(text[:-1]) / 100 if text.endswith("%") else float(text)


def parse():
    parser = argparse.ArgumentParser()
    parser.add_argument("data")
    for flag, kind, default in (
        ("sam-rho", radius, 0.0), ("seed", int, 0), ("max-epoch", int, 3), ("optimum", float, 3e-3),
        ("pause", float, 0.0), ("fail-at", float, -1.0), ("diverge-above", float, 1e9),
    ):  # fmt: skip
        parser.add_argument(f"--{flag}", type=kind, default=default)
    for flag in ("save-dir", "log-format", "optimizer", "user-dir", "best-checkpoint-metric"):
        parser.add_argument(f"--{flag}")
    for flag in (
        "nan-detector",
        "no-progress-bar",
        "say-nothing",
        "cpu",
        "maximize-best-checkpoint-metric",
    ):
        parser.add_argument(f"--{flag}", action="store_true")
    return parser.parse_known_args()[0]


def wait_for_another(own, seconds):
    """Waits until another run has started, but no longer than that."""
    end = time.monotonic() + seconds
    while time.monotonic() < end and len(glob.glob(f"{own}/../*/starts")) < 2:
        time.sleep(0.05)


def main():
    args = parse()
    last = os.path.join(args.save_dir, "checkpoint_last.pt")
    done = 0
    if os.path.exists(last):
        done = read_checkpoint(last)
    with open(os.path.join(args.save_dir, "starts"), "a") as starts:
        gpus = os.environ.get("CUDA_VISIBLE_DEVICES", "-")
        starts.write(f"{done} {gpus} {os.getpid()}\n")
    if args.sam_rho == args.fail_at:
        wait_for_another(args.save_dir, args.pause)
        sys.exit("RuntimeError: CUDA out of memory")
    ratio = args.sam_rho / args.optimum
    final = 4 + 0.05 * (ratio**2 - 2 * ratio) + args.seed / 1000
    for epoch in range(done + 1, args.max_epoch + 1):
        time.sleep(args.pause)
        if args.sam_rho > args.diverge_above:
            sys.exit(NAN_DETECTOR + "\nnote" * 60 if args.nan_detector else DIVERGED)
        loss = final + 4 * (args.max_epoch - epoch)
        values = {"loss": loss, "accuracy": 100 - loss, "num_updates": 10 * epoch}
        record = {f"valid_{key}": f"{value:.5f}" for key, value in values.items()}
        if not args.say_nothing:
            print(f"INFO | valid | {json.dumps({'epoch': epoch, **record})}", flush=True)
        write_checkpoint(last, epoch)


if __name__ == "__main__":
    main()
