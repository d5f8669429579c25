#!/usr/bin/env python3
"""Compares estimators of delta-SAM's sentence weights with their values in float64.

    g_j = |l_j(w+r) + l_j(w-r) - 2 l_j(w)| / max(|l_j(w+r) - l_j(w-r)|, eta),  ‖r‖ = rho    (Eq. 5)

To leading order the numerator goes with ‖r‖² and the denominator with ‖r‖, so a probe of any
length h stands for one of length rho once they are multiplied by (rho/h)² and rho/h. A longer probe
measures a larger difference: less rounding error, more error of truncation. This script tries
lengths and numerical formats, on the same directions and dropout masks throughout, against the
formula at rho in float64. With --directions it also asks which length comes closest to what the
weights estimate: curvature over gradient norm, as averaged over many directions.

Two subjects: any fairseq checkpoint whose criterion has a per-sentence stand-in, or a
RoBERTa-shaped encoder built on the spot for a file of sentence pairs. Prints Markdown.

Example:
    python research/study_delta_weights.py --checkpoint checkpoint_last.pt --data data-bin
    python research/study_delta_weights.py --pairs RTE/train.tsv --columns 1 2 3 --precision fp32
"""

import argparse
import contextlib
import copy
import json
import sys
import time
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, Sequence, Tuple

import numpy as np
import torch
from study_report import RADII, print_report

from fairseq_sam.flags.number_types import (
    count,
    positive,
    seed,
    whole_number,
)

RELATIVE_LENGTHS = (0.0025, 0.005, 0.01, 0.02, 0.04, 0.08, 0.16, 0.32)
FORMATS = {"bf16": torch.bfloat16, "fp16": torch.float16}
Losses = np.ndarray


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--checkpoint", type=Path, help="a fairseq checkpoint")
    source.add_argument("--pairs", type=Path, help="tab-separated sentence pairs, .tsv or .tsv.gz")
    parser.add_argument(
        "--data", type=Path, help="binarised data, if not where the checkpoint says"
    )
    parser.add_argument(
        "--columns", type=whole_number(0), nargs=3, default=(1, 2, 3), help="texts and label"
    )
    parser.add_argument("--examples", type=count, default=192, help="pairs to train on")
    parser.add_argument("--train-steps", type=count, default=120, help="Adam steps (default: 120)")
    parser.add_argument("--cache", type=Path, help="where the trained encoder is kept")
    parser.add_argument("--layers", type=count, default=6)
    parser.add_argument("--width", type=count, default=384)
    parser.add_argument("--vocabulary", type=count, default=9000)
    parser.add_argument("--length", type=count, default=64, help="longest pair, in tokens")
    parser.add_argument("--sentences", type=count, default=16, help="in a batch")
    parser.add_argument("--batches", type=count, default=6, help="each with its own direction r")
    parser.add_argument("--precision", choices=("fp32", "bf16", "fp16"), default="fp32",
                        help="format of the weights; fp32 also tries bf16 autocast")  # fmt: skip
    parser.add_argument("--rho", type=positive, default=0.05, help="radius of the tables over h")
    parser.add_argument("--eta", type=positive, default=1e-4)
    parser.add_argument("--seed", type=seed, default=1)
    parser.add_argument("--directions", type=whole_number(0), default=0, metavar="R",
                        help="also average over R directions, at three lengths")  # fmt: skip
    parser.add_argument(
        "--timing", type=whole_number(0), default=0, metavar="ROUNDS", help="also take times"
    )
    parser.add_argument("--record", type=Path, help="keep the losses here; read if it exists")
    args = parser.parse_args()
    args.name = "encoder" if args.pairs else "checkpoint"
    return args


class Network:
    """A model in one numerical setting, and its losses at w + h r.

    Args:
        subject: the model, its criterion.
        dtype: format of the weights.
        autocast: whether to run under bfloat16 autocast.
        rounding: how w + h r gets into half precision: ``nearest``, ``stochastic``, or ``mirrored``
            (the negative side is the mirror image of the rounded positive side).
    """

    def __init__(
        self, subject: Any, dtype: torch.dtype, autocast: bool = False, rounding: str = "nearest"
    ) -> None:
        self.model = copy.deepcopy(subject.model).to(dtype).train()
        self.criterion = subject.criterion
        self.weights = [p for p in self.model.parameters() if p.requires_grad]
        self.snapshot = [p.detach().clone() for p in self.weights]
        self.autocast = autocast
        self.rounding = rounding

    @torch.no_grad()
    def move(self, direction: Sequence[torch.Tensor], length: float) -> None:
        """Sets the weights to w + length * direction."""
        for weight, origin, r in zip(self.weights, self.snapshot, direction):
            if weight.dtype not in FORMATS.values():
                torch.add(origin, r.to(origin.dtype), alpha=length, out=weight)
            elif self.rounding == "stochastic":
                from fairseq_sam.perturbation.weights import stochastic_round

                weight.copy_(stochastic_round(origin.float() + length * r, weight.dtype))
            elif self.rounding == "mirrored" and length < 0:
                plus = (origin.float() - length * r).to(weight.dtype).float()
                weight.copy_(2 * origin.float() - plus)
            else:
                weight.copy_(origin.float() + length * r)
        torch.clear_autocast_cache()

    def losses(self, sample: Any, seed: int, dtype: Any = None, model: Any = None) -> torch.Tensor:
        """Per-sentence losses with the dropout masks that belong to the seed."""
        torch.manual_seed(seed)
        context = contextlib.nullcontext()
        if self.autocast:
            context = torch.autocast("cpu", dtype=torch.bfloat16)
        with context:
            return self.criterion.losses_only(model or self.model, sample, dtype=dtype)

    @torch.no_grad()
    def probe(self, sample: Any, seed: int, reductions: Sequence[str]) -> Dict[str, Losses]:
        """Losses of one pass, reduced in several ways."""
        output = Output(self.model)
        losses = {"float32": self.losses(sample, seed, None, output)}
        if "float64" in reductions:
            losses["float64"] = self.losses(sample, seed, torch.float64, output)
        if "softmax" in reductions:
            from fairseq_sam.criterions.float64 import preserve_float64

            logits, *rest = output.kept
            output.kept = (logits.double(), *rest)
            with preserve_float64(torch.nn.Linear(1, 1).double()):
                losses["softmax"] = self.losses(sample, seed, torch.float64, output)
        return {name: losses[name].double().numpy() for name in reductions}


class Output:
    """Runs the model once and then repeats what it put out."""

    def __init__(self, model: torch.nn.Module) -> None:
        self.model = model
        self.kept: Any = None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self.kept is None:
            self.kept = self.model(*args, **kwargs)
        return self.kept

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["model"], name)


class OnTheLine:
    """The model as a function of t in w + t r, for forward-mode derivatives."""

    def __init__(self, network: Network, direction: Sequence[torch.Tensor]) -> None:
        names = [name for name, p in network.model.named_parameters() if p.requires_grad]
        self.line = dict(zip(names, zip(network.snapshot, direction)))
        self.model = network.model
        self.t: Any = 0.0

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        weights = {name: w + self.t * r.to(w.dtype) for name, (w, r) in self.line.items()}
        return torch.func.functional_call(self.model, weights, args, kwargs)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["model"], name)


def derivatives(
    network: Network, sample: Any, seed: int, direction: Sequence[torch.Tensor], order: int = 2
) -> Tuple[torch.Tensor, torch.Tensor]:
    """Returns ∇l_j·r and rᵀH_j r by forward-mode derivatives; order 1 leaves the second out."""
    line = OnTheLine(network, direction)
    one = torch.ones((), dtype=network.snapshot[0].dtype)

    def losses(t: torch.Tensor) -> torch.Tensor:
        line.t = t
        return network.losses(sample, seed, torch.float64, line)

    def slope(t: torch.Tensor) -> torch.Tensor:
        return torch.func.jvp(losses, (t,), (torch.ones_like(t),))[1]

    with forward_mode_possible():
        if order == 1:
            first = slope(torch.zeros_like(one))
            return first, torch.zeros_like(first)
        return torch.func.jvp(slope, (torch.zeros_like(one),), (one,))


@contextlib.contextmanager
def forward_mode_possible() -> Iterator[None]:
    """Works around what stops torch.func.jvp on fairseq's models.

    The sinusoidal positions read a shape off the storage of a tensor, and the fused attention of
    the CPU has no forward-mode derivative.
    """
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.onnx import operators

    stock = operators.shape_as_tensor
    operators.shape_as_tensor = lambda x: torch.tensor(x.shape)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        operators.shape_as_tensor = stock


def unit_direction(weights: Sequence[torch.Tensor], seed: int) -> List[torch.Tensor]:
    """Returns r ~ N(0, I), rescaled to length one, in float32."""
    generator = torch.Generator().manual_seed(seed)
    r = [torch.randn(w.shape, generator=generator) for w in weights]
    norm = float(torch.stack([x.double().square().sum() for x in r]).sum().sqrt())
    return [x.div_(norm) for x in r]


def weight_norm(weights: Sequence[torch.Tensor]) -> float:
    return float(torch.stack([w.detach().double().square().sum() for w in weights]).sum().sqrt())


def gram_matrix(network: Network, sample: Any, seed: int) -> np.ndarray:
    """Inner products of the sentences' gradients; any weighting's direction follows from them."""
    losses = network.losses(sample, seed)
    rows = []
    for j in range(len(losses)):
        gradients = torch.autograd.grad(
            losses[j], network.weights, retain_graph=True, allow_unused=True
        )
        rows.append(torch.cat([g.flatten() for g in gradients if g is not None]))
    return (torch.stack(rows) @ torch.stack(rows).T).double().numpy()


def networks_of(subject: Any, precision: str) -> Dict[str, Tuple[Network, Tuple[str, ...]]]:
    """The settings to compare, with the reductions to try in each."""
    if precision == "fp32":
        return {
            "fp32": (Network(subject, torch.float32), ("float32", "float64", "softmax")),
            "bf16 autocast": (Network(subject, torch.float32, autocast=True), ("float64",)),
        }
    settings = {
        f"{precision}, {rounding}": (
            Network(subject, FORMATS[precision], rounding=rounding),
            ("float64",),
        )
        for rounding in ("nearest", "stochastic", "mirrored")
    }
    settings["fp32 copy"] = (Network(subject, torch.float32), ("float64",))
    return settings


def record(subject: Any, args: argparse.Namespace) -> Dict[str, Any]:
    """Runs every probe: losses by batch, setting, reduction and signed length."""
    if args.precision != "fp32":  # the weights are what that format can hold
        subject.model.to(FORMATS[args.precision]).float()
    truth = Network(subject, torch.float64)
    settings = networks_of(subject, args.precision)
    norm = weight_norm(truth.weights)
    lengths = [*RADII, *(norm * relative for relative in RELATIVE_LENGTHS)]
    batches = []
    for k, sample in enumerate(subject.batches):
        seed = 1000 * args.seed + k
        direction = unit_direction(truth.weights, seed)
        probes = {}
        for name, (network, reductions) in {"float64": (truth, ("float64",)), **settings}.items():
            for length in (0.0, *lengths, *(-h for h in lengths)):
                network.move(direction, length)
                for reduction, losses in network.probe(sample, seed, reductions).items():
                    probes[f"{name}|{reduction}|{length!r}"] = losses.tolist()
            network.move(direction, 0.0)
        network = next(iter(settings.values()))[0]
        batches.append({"probes": probes})
        if args.precision == "fp32":
            batches[-1]["gram"] = gram_matrix(network, sample, seed).tolist()
            batches[-1]["forward mode"] = forward_mode(truth, network, sample, seed, direction)
        if args.directions:
            batches[-1]["directions"] = many_directions(truth, sample, seed, args, norm)
        print(f"batch {k + 1} of {len(subject.batches)}", file=sys.stderr, flush=True)
    return {
        "norm": norm,
        "size": sum(w.numel() for w in truth.weights),
        "lengths": lengths,
        "batches": batches,
        "timing": timing(subject, args) if args.timing else {},
    }


def many_directions(
    truth: Network, sample: Any, seed: int, args: argparse.Namespace, norm: float
) -> Dict[str, Any]:
    """Numerators and denominators in float64 for many directions, brought to radius rho."""
    found: Dict[str, Any] = {}
    truth.move(truth.snapshot, 0.0)
    still = truth.probe(sample, seed, ("float64",))["float64"]
    for number in range(args.directions):
        direction = unit_direction(truth.weights, 10**6 + 10**3 * seed + number)
        for length in (args.rho, 0.01 * norm, 0.04 * norm):
            sides = []
            for h in (length, -length):
                truth.move(direction, h)
                sides.append(truth.probe(sample, seed, ("float64",))["float64"])
            ratio = args.rho / length
            second = (sides[0] + sides[1] - 2 * still) * ratio**2
            found.setdefault(repr(length), []).append(
                [second.tolist(), ((sides[0] - sides[1]) * ratio).tolist()]
            )
    truth.move(direction, 0.0)
    return found


def forward_mode(
    truth: Network, network: Network, sample: Any, seed: int, direction: Sequence[torch.Tensor]
) -> Dict[str, Any]:
    exact = derivatives(truth, sample, seed, direction)
    single = derivatives(network, sample, seed, direction)
    return {
        "float64": [x.detach().double().tolist() for x in exact],
        "fp32": [x.detach().double().tolist() for x in single],
    }


def timing(subject: Any, args: argparse.Namespace) -> Dict[str, List[float]]:
    """Seconds of each way of probing, all taking turns."""
    network = Network(subject, torch.float32)
    autocast = Network(subject, torch.float32, autocast=True)
    sample = subject.batches[0]
    length = 0.02 * weight_norm(network.weights)
    direction = unit_direction(network.weights, 0)

    @torch.no_grad()
    def forward(on: Network, dtype: Any = None) -> None:
        on.losses(sample, 0, dtype)

    def forward_backward(on: Network) -> None:
        on.losses(sample, 0).sum().backward()
        on.model.zero_grad()

    def two_passes(on: Network, dtype: Any) -> None:
        r = unit_direction(on.weights, 0)
        for h in (length, -length):
            on.move(r, h)
            forward(on, dtype)
        on.move(r, 0.0)

    @torch.no_grad()
    def forward_mode(order: int) -> None:
        derivatives(network, sample, 0, direction, order)

    @torch.no_grad()
    def softmax() -> None:
        for _ in range(2):
            network.probe(sample, 0, ("softmax",))

    steps: Dict[str, Callable[[], Any]] = {
        "F": lambda: forward(network),
        "F + B": lambda: forward_backward(network),
        "F, autocast": lambda: forward(autocast),
        "F + B, autocast": lambda: forward_backward(autocast),
        "two passes, float32 sums": lambda: two_passes(network, None),
        "two passes, float64 sums": lambda: two_passes(network, torch.float64),
        "two passes without moving weights": lambda: [forward(network) for _ in range(2)],
        "two passes, float32 and float64 log-softmax": softmax,
        "two passes, autocast": lambda: two_passes(autocast, torch.float64),
        "forward mode, first derivative": lambda: forward_mode(1),
        "forward mode, nested": lambda: forward_mode(2),
    }
    seconds: Dict[str, List[float]] = {name: [] for name in steps}
    for turn in range(args.timing + 1):
        for name, step in steps.items():
            start = time.perf_counter()
            step()
            if turn:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def main() -> None:
    args = parse_args()
    torch.set_num_threads(1)
    if args.record and args.record.exists():
        data = json.loads(args.record.read_text())
    else:
        import fairseq  # noqa: F401
        import study_subjects

        import fairseq_sam

        fairseq_sam.register()
        make = study_subjects.encoder_subject if args.pairs else study_subjects.checkpoint_subject
        data = record(make(args), args)
        if args.record:
            args.record.write_text(json.dumps(data))
    print_report(data, args)


if __name__ == "__main__":
    main()
