"""Turns what research/study_delta_weights.py recorded into tables; not a script of its own."""

import argparse
import math
import platform
import statistics
from typing import Any, Callable, Dict, List, Sequence, Tuple

import numpy as np
import torch
from scipy import stats

RADII = (0.01, 0.02, 0.05, 0.1)
EXACT = "float64|float64"
Losses = np.ndarray


class Parts:
    """Reads numerators and denominators, brought to radius rho, out of a batch's losses."""

    def __init__(self, batch: Dict[str, Any], rho: float) -> None:
        self.batch = batch
        self.rho = rho

    def losses(self, setting: str, length: float) -> Losses:
        return np.array(self.batch["probes"][f"{setting}|{length!r}"])

    def central(self, setting: str, length: float) -> Tuple[Losses, Losses]:
        """Second and first difference over 2 h, of the signs they have."""
        plus, minus = self.losses(setting, length), self.losses(setting, -length)
        ratio = self.rho / length
        second = plus + minus - 2 * self.losses(setting, 0.0)
        return second * ratio**2, (plus - minus) * ratio

    def extrapolated(self, setting: str, length: float) -> Tuple[Losses, Losses]:
        """Richardson's combination of the probes of length h and 2 h."""
        (n1, d1), (n2, d2) = self.central(setting, length), self.central(setting, 2 * length)
        return (4 * n1 - n2) / 3, (4 * d1 - d2) / 3

    def one_sided(self, setting: str, length: float) -> Tuple[Losses, Losses]:
        """One pass, the first derivative being known by forward mode."""
        first = np.array(self.batch["forward mode"]["fp32"][0])
        rise = self.losses(setting, length) - self.losses(setting, 0.0)
        return 2 * (rise - length * first) * (self.rho / length) ** 2, 2 * self.rho * first

    def forward_mode(self, setting: str) -> Tuple[Losses, Losses]:
        first, second = map(np.array, self.batch["forward mode"][setting])
        return second * self.rho**2, 2 * self.rho * first


def weights(parts: Tuple[Losses, Losses], eta: float) -> Losses:
    return np.abs(parts[0]) / np.maximum(np.abs(parts[1]), eta)


def compare(estimate: Losses, truth: Losses, gram: Any = None) -> Dict[str, float]:
    """Agreement of the weights of one batch, and of the directions they lead to."""
    with np.errstate(invalid="ignore"):
        figures = {
            "Pearson": float(stats.pearsonr(estimate, truth)[0]),
            "Spearman": float(stats.spearmanr(estimate, truth)[0]),
            "error": float(np.mean(np.abs(estimate - truth)) / np.mean(truth)),
        }
    if gram is not None:
        gram = np.array(gram)
        length = np.sqrt((estimate @ gram @ estimate) * (truth @ gram @ truth))
        figures["cosine"] = float(estimate @ gram @ truth / length) if length else 0.0
    return figures


def summary(rows: List[Dict[str, float]]) -> List[str]:
    """Median and range over the batches of each figure."""
    cells = []
    for name in rows[0]:
        values = [row[name] for row in rows]
        middle, low, high = statistics.median(values), min(values), max(values)
        cells.append(f"{middle:.3g} [{low:.2g}, {high:.2g}]" if name == "error" else
                     f"{middle:.3f} [{low:.2f}, {high:.2f}]")  # fmt: skip
    return cells


Row = Tuple[str, Callable[[Parts], Tuple[Losses, Losses]]]


def table(data: Dict[str, Any], rows: Sequence[Row], rho: float, eta: float) -> None:
    """Prints how each estimator's weights compare with the formula at rho in float64."""
    heads = ["Pearson", "Spearman", "relative error"]
    heads += ["cosine of direction"] if "gram" in data["batches"][0] else []
    print("\n| estimator |", " | ".join(heads), "|\n| --- |" + " --- |" * len(heads))
    for name, estimate in rows:
        figures = []
        for batch in data["batches"]:
            parts = Parts(batch, rho)
            exact = weights(parts.central(EXACT, rho), eta)
            figures.append(compare(weights(estimate(parts), eta), exact, batch.get("gram")))
        print(f"| {readable(name)} |", " | ".join(summary(figures)), "|")


def readable(setting: str) -> str:
    """Returns a table's name for a setting and its reduction."""
    return setting.replace("|softmax", ", float64 log-softmax and sums").replace("|", ", sums in ")


def length_table(data: Dict[str, Any], setting: str, rho: float, eta: float) -> None:
    """Prints the same for each probe length, with the rounding error alone beside it."""
    print(f"\n| {readable(setting)} | rounding alone: Pearson | rounding alone: relative error |"
          " Pearson | Spearman | relative error |\n|" + " --- |" * 6)  # fmt: skip
    for h in sorted(data["lengths"]):
        alone, whole = [], []
        for batch in data["batches"]:
            parts = Parts(batch, rho)
            estimate = weights(parts.central(setting, h), eta)
            alone.append(compare(estimate, weights(parts.central(EXACT, h), eta)))
            whole.append(compare(estimate, weights(parts.central(EXACT, rho), eta)))
        cells = summary(alone)
        print(f"| h = {h:.3g} = {h / data['norm']:.2g} ‖w‖ |", cells[0], "|", cells[2], "|",
              " | ".join(summary(whole)), "|")  # fmt: skip


def direction_table(data: Dict[str, Any], eta: float) -> None:
    """Prints how one direction's weights compare with those of the mean over directions.

    The mean over directions is |mean of second differences| / root mean square of first ones, of
    the other directions. Its expectation is curvature over gradient norm, up to a common factor.
    """
    lengths = list(data["batches"][0]["directions"])
    print("\n| one direction at | mean over directions at | Pearson | Spearman |")
    print("| --- | --- | --- | --- |")
    for one in lengths:
        for other in lengths:
            figures: List[Dict[str, float]] = []
            for batch in data["batches"]:
                single = np.array(batch["directions"][one])
                many = np.array(batch["directions"][other])
                figures += [
                    compare(weights(single[i], eta), mean_weights(np.delete(many, i, axis=0), eta))
                    for i in range(len(single))
                ]
            averages = [np.nanmean([f[name] for f in figures]) for name in ("Pearson", "Spearman")]
            print(f"| {float(one):.3g} | {float(other):.3g} | "
                  + " | ".join(f"{value:.3f}" for value in averages) + " |")  # fmt: skip
        halves = []
        for batch in data["batches"]:
            many = np.array(batch["directions"][one])
            half = len(many) // 2
            halves.append(compare(mean_weights(many[:half], eta), mean_weights(many[half:], eta)))
        averages = [np.mean([f[name] for f in halves]) for name in ("Pearson", "Spearman")]
        print(f"| mean over half of them at {float(one):.3g} | the other half, same length | "
              + " | ".join(f"{value:.3f}" for value in averages) + " |")  # fmt: skip


def mean_weights(many: np.ndarray, eta: float) -> Losses:
    """Weights from many directions; ``many`` is [directions, 2, sentences]."""
    second = np.abs(many[:, 0].mean(axis=0))
    return second / np.maximum(np.sqrt(np.square(many[:, 1]).mean(axis=0)), eta)


def settings_in(data: Dict[str, Any]) -> List[str]:
    keys = data["batches"][0]["probes"]
    return list(dict.fromkeys(key.rsplit("|", 1)[0] for key in keys))


def print_conditions(data: Dict[str, Any]) -> None:
    """Prints what is being measured: sizes of the differences, and what eta cuts off."""
    print("\n| ρ | η | second difference | first difference | clipped by η | weights, median |")
    print("| --- | --- | --- | --- | --- | --- |")
    for rho in RADII:
        for eta in (1e-4, 1e-3):
            both = [Parts(b, rho).central(EXACT, rho) for b in data["batches"]]
            second = np.abs(np.concatenate([n for n, _ in both]))
            first = np.abs(np.concatenate([d for _, d in both]))
            g = second / np.maximum(first, eta)
            print(
                f"| {rho} | {eta} | {np.median(second):.2g} | {np.median(first):.2g} | "
                f"{np.mean(first < eta):.0%} | {np.median(g):.2g} |"
            )


def print_baselines(data: Dict[str, Any], args: argparse.Namespace) -> None:
    """Prints what no probing at all, or probing part of the batch, comes to."""

    def part(parts: Parts, share: float) -> Tuple[Losses, Losses]:
        g = weights(parts.central(EXACT, args.rho), args.eta)
        probed = round(share * len(g))
        g[probed:] = g[:probed].mean()
        return g, np.ones_like(g)

    rows: List[Row] = [("uniform weights", lambda parts: part(parts, 1 / args.sentences))]
    for share in (0.25, 0.5, 0.75):
        name = f"exact for {share:.0%} of the batch, their mean for the rest"
        rows.append((name, lambda parts, share=share: part(parts, share)))
    table(data, rows, args.rho, args.eta)


def print_timing(seconds: Dict[str, List[float]]) -> None:
    print("\n| | of F | of F + B | seconds |\n| --- | --- | --- | --- |")
    for name, times in seconds.items():
        ratios = [
            statistics.median(t / base for t, base in zip(times, seconds[other]))
            for other in ("F", "F + B")
        ]
        print(f"| {name} | {ratios[0]:.2f} | {ratios[1]:.2f} | {statistics.median(times):.2f} |")


def rule_length(data: Dict[str, Any], setting: str) -> float:
    """Returns the tried length that is closest to ½ eps^¼ ‖w‖, eps being that of the format."""
    eps = 2.0**-7 if "bf16" in setting else 2.0**-10 if "fp16" in setting else 2.0**-23
    rule = 0.5 * eps**0.25 * data["norm"]
    return min(data["lengths"], key=lambda h: abs(math.log(h / rule)))


def print_report(data: Dict[str, Any], args: argparse.Namespace) -> None:
    print(f"\n{data['size']} weights, ‖w‖ = {data['norm']:.1f}, {len(data['batches'])} batches of "
          f"{args.sentences} sentences, seed {args.seed}; torch {torch.__version__}, "
          f"Python {platform.python_version()}")  # fmt: skip
    print_conditions(data)
    settings = settings_in(data)
    for rho in RADII:
        print(f"\nρ = {rho}, η = {args.eta}: probes of that length, and of the length of the rule:")
        rows: List[Row] = []
        for s in settings[1:]:
            h = rule_length(data, s)
            rows.append((f"{s}, h = ρ", lambda parts, s=s, h=rho: parts.central(s, h)))
            rows.append((f"{s}, h = {h:.3g}", lambda parts, s=s, h=h: parts.central(s, h)))
        table(data, rows, rho, args.eta)
    print(f"\nProbes of length h brought to ρ = {args.rho}, η = {args.eta}:")
    for setting in settings:
        length_table(data, setting, args.rho, args.eta)
    print("\nNo probing, or part of the batch:")
    print_baselines(data, args)
    if "forward mode" in data["batches"][0]:
        print("\nForward-mode derivatives, and extrapolation to h = 0:")
        print_forward_mode(data, args)
    if "directions" in data["batches"][0]:
        print("\nOne direction against the mean over many, float64:")
        direction_table(data, args.eta)
    if data["timing"]:
        print("\nTime, median of the ratios of a round:")
        print_timing(data["timing"])


def print_forward_mode(data: Dict[str, Any], args: argparse.Namespace) -> None:
    rows: List[Row] = [
        (f"forward mode, nested, {setting}", lambda parts, s=setting: parts.forward_mode(s))
        for setting in ("float64", "fp32")
    ]
    for h in (h for h in data["lengths"] if h > max(RADII)):
        name = f"first derivative by forward mode, one pass at h = {h:.3g}"
        rows.append((name, lambda parts, h=h: parts.one_sided("fp32|float64", h)))
    for setting in ("fp32|float64", "bf16 autocast|float64"):
        for h in [h for h in data["lengths"] if h > max(RADII)][:-1]:
            name = f"four passes, {setting}, Richardson, h = {h:.3g} and {2 * h:.3g}"
            rows.append((name, lambda parts, h=h, s=setting: parts.extrapolated(s, h)))
    table(data, rows, args.rho, args.eta)
