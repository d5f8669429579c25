#!/usr/bin/env python3
"""Scores a model's predictions on a split, and against a baseline's by paired bootstrap.

Accuracy, F1 (of the class "1", or of the second one) and Matthews correlation of classification,
Pearson's and Spearman's correlation of regression, in percent, computed by scikit-learn and scipy;
or the perplexity of a language model, per token with ends of sentences. Predictions go to
"hypothesis" beside the scores, one line of prediction and target for each example.

Example:
    predictions.py --checkpoint checkpoint_best.pt --data bin --subset test --metrics accuracy \
        --output scores.json
"""

from __future__ import annotations

import argparse
import math
import sys
from pathlib import Path
from typing import Any, Callable, Dict, List, Tuple

import numpy as np
import scores
from scores import (
    RESAMPLES,
    Records,
    ScoringError,
    read_lines,
    two_sided_p_value,
    write_hypotheses,
)

from fairseq_sam.flags.number_types import count

Values = Any  # numpy arrays of one number an example


def _accuracy(predictions: Values, targets: Values) -> float:
    return float((predictions == targets).mean())


def _f1(predictions: Values, targets: Values) -> float:
    from sklearn.metrics import f1_score

    return float(f1_score(targets, predictions, zero_division=0))


def _matthews(predictions: Values, targets: Values) -> float:
    from sklearn.metrics import matthews_corrcoef

    return float(matthews_corrcoef(targets, predictions))


def _pearson(predictions: Values, targets: Values) -> float:
    from scipy.stats import pearsonr

    return _defined(pearsonr(predictions, targets)[0])


def _spearman(predictions: Values, targets: Values) -> float:
    from scipy.stats import spearmanr

    return _defined(spearmanr(predictions, targets)[0])


def _defined(value: float) -> float:
    """A model that predicts one number for everything has no correlation with anything."""
    return 0.0 if math.isnan(value) else float(value)


METRICS: Dict[str, Tuple[str, Callable[[Values, Values], float]]] = {
    "accuracy": ("Accuracy", _accuracy),
    "f1": ("F1", _f1),
    "matthews": ("Matthews", _matthews),
    "pearson": ("Pearson", _pearson),
    "spearman": ("Spearman", _spearman),
}
"""By the name in --metrics: the name in reports, and the function."""

FITTING = {
    "classes": ("accuracy", "f1", "matthews"),
    "numbers": ("pearson", "spearman"),
    "tokens": ("perplexity",),
}
"""The metrics of what a model predicts."""

CHANCE: Dict[str, Callable[[Values], float]] = {
    "accuracy": lambda targets: float(
        np.unique(targets, return_counts=True)[1].max() / len(targets)
    ),
    "matthews": lambda targets: 0.0,
    "pearson": lambda targets: 0.0,
    "spearman": lambda targets: 0.0,
}
"""The scores of always giving the commonest answer; there a p-value tells nothing."""


def paired_bootstrap(
    metric: Callable[[Values, Values], float],
    system: Values,
    baseline: Values,
    targets: Values,
    resamples: int = RESAMPLES,
    seed: int = 12345,
) -> float:
    """Returns the two-sided p-value of a difference, by resampling the examples."""
    generator = np.random.default_rng(seed)
    differences = []
    for _ in range(resamples):
        chosen = generator.integers(len(targets), size=len(targets))
        differences.append(
            metric(system[chosen], targets[chosen]) - metric(baseline[chosen], targets[chosen])
        )
    observed = metric(system, targets) - metric(baseline, targets)
    return two_sided_p_value(differences, observed)


def predict(trained: Any, criterion: Any, samples: List[Dict[str, Any]]) -> Tuple[Values, Values]:
    """Returns a model's predictions and the targets, in the order of the data."""
    import torch

    rows: List[Tuple[int, float, float]] = []
    with torch.no_grad():
        for sample in samples:
            logits = trained.model(
                **sample["net_input"],
                features_only=True,
                classification_head_name=criterion.classification_head_name,
            )[0]
            found = logits.view(-1) if criterion.regression_target else logits.argmax(1)
            columns = (sample["id"], found, sample["target"].view(-1))
            rows += zip(*(column.tolist() for column in columns))
    rows.sort()
    found, wanted = (np.array([row[i] for row in rows]) for i in (1, 2))
    if criterion.regression_target:
        return found, wanted
    numbers = class_numbers(trained.task.label_dictionary)
    return numbers[found], numbers[wanted]


def class_numbers(labels: Any) -> Values:
    """Returns a number for each class of the model: its own if it is one, so that "1" is 1."""
    symbols = [labels[i] for i in range(labels.nspecial, len(labels)) if labels[i] != "<mask>"]
    # fairseq-preprocess fills dictionaries up, at the end, to a multiple of eight.
    named = [symbol for symbol in symbols if not symbol.startswith("madeupword")]
    if all(symbol.isdigit() for symbol in named):
        numbers = [int(symbol) for symbol in named]
    else:
        numbers = [sorted(named).index(symbol) for symbol in named]
    following = max(numbers, default=-1) + 1
    return np.array([*numbers, *range(following, following + len(symbols) - len(named))])


def read_predictions(path: Path, targets: Values) -> Values:
    """Returns the predictions that an earlier run wrote.

    Raises:
        ScoringError: they are of other examples.
    """
    try:
        pairs = np.array([line.split() for line in read_lines(path)], float)
    except ValueError:
        raise ScoringError(f"{path}: is not a hypothesis file of this program") from None
    if pairs.shape != (len(targets), 2) or not np.array_equal(pairs[:, 1], targets):
        raise ScoringError(f"{path}: predictions of other examples")
    return pairs[:, 0]


def check_metrics(args: argparse.Namespace, trained: Any) -> None:
    """Refuses metrics of something else than the model predicts.

    Raises:
        ScoringError: naming the metrics and those that go with the model.
    """
    kind = scores.kind_of(trained)
    if not set(args.metrics.split(",")) <= set(FITTING[kind]):
        raise ScoringError(
            f"--metrics {args.metrics}: {args.checkpoint}, which was trained with "
            f"{trained.cfg.criterion._name}, predicts {kind}: it must be of "
            f"{', '.join(FITTING[kind])}"
        )


def score(args: argparse.Namespace) -> Records:
    """Returns the scores as records, and writes the predictions."""
    import fairseq  # noqa: F401

    import fairseq_sam
    from fairseq_sam.analysis.dataset_loss import DatasetLoss
    from fairseq_sam.commands.checkpoint_data import explaining
    from fairseq_sam.evaluation import trained_model
    from fairseq_sam.evaluation.sentences import mini_batches

    fairseq_sam.register()
    trained = trained_model.load_trained_model(str(args.checkpoint), str(args.data))
    check_metrics(args, trained)
    names = args.metrics.split(",")
    wanted = "cross_entropy" if names == ["perplexity"] else None
    criterion = trained_model.build_criterion(trained, wanted)
    samples = mini_batches(trained, args.subset, args.max_tokens)
    if names == ["perplexity"]:
        criterion.sentence_avg = False  # per token, however it was trained
        with explaining(str(args.checkpoint), str(args.data)):
            loss = DatasetLoss(trained.model, criterion, samples)()
        write_hypotheses([f"{loss}"], args.output)
        found = scores.perplexity(loss)
        return [{"name": "Perplexity", "score": found, "signature": "per token, with </s>"}]
    with explaining(str(args.checkpoint), str(args.data)):
        predictions, targets = predict(trained, criterion, samples)
    if "f1" in names and len({*predictions, *targets}) > 2:
        raise ScoringError(f"--metrics {args.metrics}: f1 is of two classes, {args.data} has more")
    pairs = zip(predictions.tolist(), targets.tolist())
    write_hypotheses((f"{p!r} {t!r}" for p, t in pairs), args.output)
    baseline = read_predictions(args.baseline, targets) if args.baseline else None
    records = []
    for name in names:
        title, metric = METRICS[name]
        records.append({"name": title, "score": 100 * metric(predictions, targets)})
        if name in CHANCE:
            records[-1]["chance"] = 100 * CHANCE[name](targets)
        if baseline is not None:
            records[-1]["p_value"] = paired_bootstrap(metric, predictions, baseline, targets)
    return records


def _metrics(text: str) -> str:
    unknown = [name for name in text.split(",") if name not in METRICS]
    if unknown and text != "perplexity":
        known = ", ".join(METRICS)
        raise argparse.ArgumentTypeError(f"{text!r}: of {known} by comma, or perplexity alone")
    return text


def main() -> int:
    """Scores and writes."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True, help="binarised data")
    parser.add_argument("--subset", default="test", help="split (default: test)")
    parser.add_argument("--metrics", type=_metrics, default="accuracy", metavar="LIST")
    parser.add_argument("--baseline", type=Path, help="hypothesis file of the baseline")
    parser.add_argument("--max-tokens", type=count, default=4000, help="of a mini-batch")
    return scores.run(parser, score)


if __name__ == "__main__":
    sys.exit(main())
