#!/usr/bin/env python3
"""Measures what sharpness-aware training costs: time and memory of a training step.

All variants take turns, step by step, on one model and one batch in one process, through fairseq's
own trainer, so that a machine whose speed drifts slows all of them alike. Printed are ratios to the
base optimizer's step beside the arithmetic limit, which counts forward-backward passes:

    gated off and momentum 1 · SAM, ASAM, Layer-SAM, functional, friendly 2 · multi-step K + 1 ·
    an ascent on a quarter of the batch 1.25, functional with it 1.25 + F · δ-SAM 2 + 2 F, its draft
    2 + F

where F is a forward pass without gradient in units of the base step, measured beside them.
The limit does not count the optimizer's own step, which happens once whatever the method, so
ratios slightly below it are possible. For comparison SAM, LookSAM and FriendlySAM of the PyPI
package pytorch_optimizer run in a hand-written loop on the same model and batch.

Memory is the peak of what a step allocates, above what was allocated before it, snapshot included,
in units of the weights' size.

Example:
    python benchmarks/benchmark_overhead.py --steps 10
    python benchmarks/benchmark_overhead.py --device cuda --precision bf16 --steps 50

benchmarks/results/VERSION.json has the figures of each version (--json).
"""

import argparse
import contextlib
import copy
import platform
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional, Tuple

import numpy as np
import torch

import fairseq_sam
from fairseq_sam.files.writing import write_json
from fairseq_sam.flags.number_types import count, whole_number

ROOT = Path(__file__).resolve().parent.parent
Step = Callable[[], Any]

FORWARD = "forward without gradient (F)"

VARIANTS: Dict[str, Dict[str, Any]] = {
    "gated off": {"method": "ga_sam", "start_epoch": 10**6, "limit": 1},
    "sam": {"method": "sam", "limit": 2},
    "sam, 5 %": {"method": "sam", "parts": {"share": 0.05}, "limit": 2},
    "sam, a quarter": {"method": "sam", "parts": {"ascent_fraction": 0.25}, "limit": 1.25},
    "asam": {"method": "asam", "limit": 2},
    "layer_sam": {"method": "layer_sam", "limit": 2},
    "multi_step_defense, K = 1": {"method": "multi_step_defense", "limit": 2},
    "ga_sam, K = 1": {"method": "ga_sam", "parts": {"share": None, "rho": 2e-4}, "limit": 2},
    "ga_sam, K = 2": {
        "method": "ga_sam",
        "parts": {"share": None, "rho": 2e-4, "num_steps": 2},
        "limit": 3,
    },
    "ga_sam, 5 %": {"method": "ga_sam", "parts": {"share": 0.05}, "limit": 2},
    "delta_sam": {"method": "delta_sam", "limit": 2, "forwards": 2},
    "delta_sam, draft": {
        "method": "delta_sam",
        "parts": {"weighting": "draft"},
        "limit": 2,
        "forwards": 1,
    },
    "functional_sam": {"method": "functional_sam", "limit": 2},
    "functional_sam, a quarter": {
        "method": "functional_sam",
        "parts": {"ascent_fraction": 0.25},
        "limit": 1.25,
        "forwards": 1,
    },
    "momentum_sam": {"method": "momentum_sam", "limit": 1},
    "vasso": {"method": "vasso", "limit": 2},
    "friendly_sam": {"method": "friendly_sam", "limit": 2},
}

PEERS = {"SAM": {}, "LookSAM": {"k": 5, "alpha": 0.1}, "FriendlySAM": {}}
"""Of pytorch_optimizer, with their settings. LookSAM takes two passes in each of its steps."""


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=count, default=10, help="timed rounds (default: 10)")
    parser.add_argument(
        "--warmup", type=whole_number(0), default=2, help="untimed rounds (default: 2)"
    )
    parser.add_argument(
        "--clock",
        choices=("wall", "process"),
        default="wall",
        help="process: the CPU's time, which other work on the machine does not add to; best with "
        "OMP_NUM_THREADS=1",
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--precision", choices=("fp32", "fp16", "bf16", "amp"), default="fp32")
    parser.add_argument("--layers", type=count, default=3, help="of encoder and decoder each")
    parser.add_argument("--width", type=count, default=512, help="embedding size")
    parser.add_argument("--vocabulary", type=count, default=4000)
    parser.add_argument("--sentences", type=count, default=32, help="in a batch")
    parser.add_argument("--length", type=count, default=32, help="tokens in a sentence")
    parser.add_argument("--variants", help="only those whose name contains one of these, by comma")
    parser.add_argument("--no-peer", action="store_true", help="leave pytorch_optimizer out")
    parser.add_argument("--json", type=Path, help="also write figures and versions here")
    parser.add_argument("--plot", type=Path, help="also draw cost against memory here")
    return parser.parse_args()


def write_data(directory: Path, args: argparse.Namespace) -> None:
    """Writes the dictionaries and one batch of random sentences of equal length."""
    from fairseq.data import Dictionary
    from fairseq.data.indexed_dataset import MMapIndexedDatasetBuilder

    generator = torch.Generator().manual_seed(1)
    dictionary = Dictionary()
    for word in range(args.vocabulary):
        dictionary.add_symbol(f"w{word}")
    for language in ("src", "tgt"):
        dictionary.save(str(directory / f"dict.{language}.txt"))
        for split in ("train", "valid"):
            prefix = str(directory / f"{split}.src-tgt.{language}")
            builder = MMapIndexedDatasetBuilder(f"{prefix}.bin", dtype=np.int32)
            for _ in range(args.sentences):
                words = torch.randint(4, len(dictionary), (args.length,), generator=generator)
                words[-1] = dictionary.eos()
                builder.add_item(words)
            builder.finalize(f"{prefix}.idx")


def make_trainer(data: Path, args: argparse.Namespace) -> Any:
    """Returns fairseq's trainer for a Transformer with --optimizer ga_sam, and its batch."""
    from fairseq import options, tasks
    from fairseq.dataclass.utils import convert_namespace_to_omegaconf
    from fairseq.trainer import Trainer

    width = str(args.width)
    ffn = str(4 * args.width)
    flags = [str(data), "--user-dir", str(ROOT / "fairseq_sam"), "--arch", "transformer"]
    flags += ["--optimizer", "ga_sam", "--lr", "1e-5", "--clip-norm", "1.0", "--dropout", "0.1"]
    flags += [
        "--criterion",
        "per_sentence_label_smoothed_cross_entropy",
        "--label-smoothing",
        "0.1",
    ]
    flags += ["--batch-size", str(args.sentences), "--share-decoder-input-output-embed"]
    for part in ("encoder", "decoder"):
        flags += [f"--{part}-layers", str(args.layers), f"--{part}-embed-dim", width]
        flags += [f"--{part}-ffn-embed-dim", ffn, f"--{part}-attention-heads", "8"]
    flags += ["--cpu"] if args.device == "cpu" else []
    flags += [f"--{args.precision}"] if args.precision != "fp32" else []
    if args.device == "cpu" and args.precision == "fp16":
        flags += ["--fp16-no-flatten-grads", "--fp16-init-scale", "1"]
    parser = options.get_training_parser()
    cfg = convert_namespace_to_omegaconf(options.parse_args_and_arch(parser, flags))
    torch.manual_seed(1)
    task = tasks.setup_task(cfg.task)
    model = task.build_model(cfg.model)
    trainer = Trainer(cfg, task, model, task.build_criterion(cfg.criterion))
    batches = trainer.get_train_iterator(epoch=1).next_epoch_itr(shuffle=False)
    trainer.begin_epoch(1)
    return trainer, [next(iter(batches))]


def configure(trainer: Any, variant: Optional[Dict[str, Any]]) -> None:
    """Makes the trainer's next steps those of a variant; None is the base optimizer."""
    from fairseq_sam.perturbation import method_settings
    from fairseq_sam.training.configuration import Gate, SharpnessAwareConfig, base_of

    config = None
    if variant is not None:
        settings = method_settings(variant["method"], **variant.get("parts", {}))
        gate = Gate(start_epoch=variant.get("start_epoch", 1))
        config = SharpnessAwareConfig(variant["method"], settings, gate)
    base_of(trainer.optimizer).sharpness_aware = config


def peer_step(name: str, trainer: Any, samples: List[Any]) -> Step:
    """Returns a step of pytorch_optimizer's optimizer as its users write it, on the same batch."""
    import pytorch_optimizer
    from fairseq.optim.adam import Adam

    model, criterion = trainer.model, trainer.criterion
    optimizer = getattr(pytorch_optimizer, name)(
        model.parameters(), base_optimizer=Adam, rho=0.05, lr=1e-5, **PEERS[name]
    )

    def evaluate() -> None:
        loss, size, _ = criterion(model, samples[0])
        (loss / size).backward()

    def step() -> None:
        model.train()
        evaluate()
        optimizer.first_step(zero_grad=True)
        evaluate()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.second_step(zero_grad=True)

    return step


def seconds(step: Step, args: argparse.Namespace) -> float:
    clock = time.process_time if args.clock == "process" else time.perf_counter
    if args.device == "cuda":
        torch.cuda.synchronize()
    start = clock()
    step()
    if args.device == "cuda":
        torch.cuda.synchronize()
    return clock() - start


def peak_bytes(step: Step, device: str) -> int:
    """Returns the peak of what a step allocates above what was allocated before it."""
    if device == "cuda":
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        step()
        return torch.cuda.max_memory_allocated() - before
    with torch.autograd.profiler.profile(profile_memory=True) as profile:
        step()
    level = peak = 0
    records = [e for e in profile.kineto_results.events() if e.name() == "[memory]"]
    for record in sorted(records, key=lambda e: e.start_ns()):
        level += record.nbytes()
        peak = max(peak, level)
    return peak


def measure(steps: Dict[str, Step], args: argparse.Namespace) -> Dict[str, Dict[str, Any]]:
    """Runs all variants in turn; returns seconds of each round and peak bytes, by name."""
    figures: Dict[str, Dict[str, Any]] = {name: {"seconds": []} for name in steps}
    peak_bytes(steps["base"], args.device)  # leaves behind what every step finds: gradients
    for name, step in steps.items():
        figures[name]["peak"] = peak_bytes(step, args.device)
    for done in range(args.warmup + args.steps):
        print(f"\rround {done + 1} of {args.warmup + args.steps}", end="", file=sys.stderr)
        for name, step in steps.items():
            elapsed = seconds(step, args)
            if done >= args.warmup:
                figures[name]["seconds"].append(elapsed)
    print(file=sys.stderr)
    return figures


def disconnected(task: Any) -> Any:
    """Returns a copy of a task as it was before it was connected with the perturbation."""
    copied = copy.copy(task)
    for name in ("sharpness_aware_seam", "begin_epoch", "train_step", "reduce_metrics"):
        vars(copied).pop(name, None)
    return copied


def variants(trainer: Any, samples: List[Any], args: argparse.Namespace) -> Dict[str, Step]:
    """Returns the step of every variant by name; "base" is the base optimizer's."""
    from fairseq_sam.training import seam

    def stepping(variant: Optional[Dict[str, Any]]) -> Step:
        task = disconnected(trainer.task)  # each variant has a snapshot of its own
        seam.connect(task)

        def step() -> None:
            trainer.task = task
            configure(trainer, variant)
            trainer.train_step(samples)

        return step

    def forward() -> None:
        with torch.no_grad():
            trainer.criterion(trainer.model, samples[0])

    wanted = (args.variants or "").split(",")
    steps = {"base": stepping(None), FORWARD: forward}
    for name, variant in VARIANTS.items():
        if any(part in name for part in wanted):
            steps[name] = stepping(variant)
    if not args.no_peer and args.precision == "fp32":
        for name in PEERS:
            steps[f"peer: {name}"] = peer_step(name, trainer, samples)
    return steps


def table(figures: Dict[str, Dict[str, Any]], weights: int) -> str:
    """Returns a Markdown table of medians of ratios taken round by round."""
    base = figures["base"]["seconds"]
    forward_share = statistics.median(a / b for a, b in zip(figures[FORWARD]["seconds"], base))
    lines = [
        "| step | median s | ratio to base (quartiles) | limit | peak memory / weights |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    for name, figure in figures.items():
        ratios = sorted(a / b for a, b in zip(figure["seconds"], base))
        low, high = ratios[len(ratios) // 4], ratios[-1 - len(ratios) // 4]
        variant = VARIANTS.get(name, {"limit": 2 if name.startswith("peer") else 1})
        limit = variant["limit"] + variant.get("forwards", 0) * forward_share
        lines.append(
            f"| {name} | {statistics.median(figure['seconds']):.3f} "
            f"| {statistics.median(ratios):.3f} ({low:.3f}-{high:.3f}) | {limit:.3g} "
            f"| {figure['peak'] / weights:.2f} |"
        )
    return "\n".join(lines)


def draw(figures: Dict[str, Dict[str, Any]], weights: int, path: Path) -> None:
    """Draws what each variant costs, in time and in memory beyond the base's."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    base = figures["base"]
    points = sorted(
        (
            statistics.median(a / b for a, b in zip(each["seconds"], base["seconds"])),
            (each["peak"] - base["peak"]) / weights,
            name,
        )
        for name, each in figures.items()
        if name not in ("base", FORWARD)
    )
    figure, axis = plt.subplots(figsize=(9, 6), layout="constrained")
    labels: List[Tuple[float, float]] = []
    for ratio, memory, name in points:
        shape, color = ("s", "tab:gray") if name.startswith("peer") else ("o", "tab:blue")
        axis.plot(ratio, memory, shape, color=color)
        height = memory + 0.06
        while any(abs(ratio - x) < 0.5 and abs(height - y) < 0.11 for x, y in labels):
            height += 0.03
        labels.append((ratio, height))
        line = {"arrowstyle": "-", "color": "0.7", "linewidth": 0.6}
        at = (ratio + 0.02, height)
        axis.annotate(name, (ratio, memory), xytext=at, fontsize=8, color=color, arrowprops=line)
    axis.set_xlim(right=max(ratio for ratio, _, _ in points) + 0.5)
    axis.set_ylim(top=max(height for _, height in labels) + 0.2)
    axis.set_xlabel("time of a step, base optimizer = 1")
    axis.set_ylabel("memory beyond the base optimizer's, in copies of the weights")
    axis.set_title("Cost of a perturbed step")
    axis.grid(alpha=0.3)
    figure.savefig(path, dpi=110)


def write_figures(figures: Dict[str, Any], weights: int, args: argparse.Namespace) -> None:
    """Writes the figures with what they were measured on; bytes and seconds."""
    import fairseq

    shown = {name: value for name, value in vars(args).items() if name not in ("json", "plot")}
    content = {
        "fairseq_sam": fairseq_sam.__version__,
        "fairseq": fairseq.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "device": torch.cuda.get_device_name() if args.device == "cuda" else platform.machine(),
        "threads": torch.get_num_threads(),
        "arguments": shown,
        "bytes_of_weights": weights,
        "steps": figures,
    }
    args.json.parent.mkdir(parents=True, exist_ok=True)
    write_json(content, args.json)


def main() -> None:
    args = parse_args()
    import fairseq

    fairseq_sam.register()
    with tempfile.TemporaryDirectory() as directory, contextlib.redirect_stdout(sys.stderr):
        write_data(Path(directory), args)
        trainer, samples = make_trainer(Path(directory), args)
        steps = variants(trainer, samples, args)
        steps["base"]()  # allocates the optimizer's state
        figures = measure(steps, args)
    parameters = list(trainer.model.parameters())
    weights = sum(p.numel() * p.element_size() for p in parameters)
    print(
        f"{sum(p.numel() for p in parameters) / 1e6:.1f}M weights, {args.sentences} sentences of "
        f"{args.length} tokens, {args.precision} on {args.device}, torch {torch.__version__}, "
        f"fairseq {fairseq.__version__}, {torch.get_num_threads()} threads, {args.clock} time, "
        f"{args.steps} rounds\n"
    )
    print(table(figures, weights))
    if args.plot:
        draw(figures, weights, args.plot)
    if args.json:
        write_figures(figures, weights, args)


if __name__ == "__main__":
    main()
