#!/usr/bin/env python3
"""Says what a model's probabilities are worth: right answers, calibration, entropy, logits.

Of classification for each sentence, of translation and language models for each token of the
target, given those before it, without label smoothing. On each split:

- Accuracy, or Token accuracy, in percent, and of tokens Perplexity;
- NLL: mean negative log-likelihood of what is right, in nats;
- ECE: expected calibration error of the most probable answer, 15 bins of equal width, in percent
  (Guo et al. 2017, equation 3);
- Entropy of the output: mean, in nats;
- Logit norm: mean L2 norm of the logits minus their mean, to which a softmax is blind.

The names of what is measured on the validation set begin with "valid".

Example:
    calibration.py --checkpoint checkpoint_best.pt --data bin --output scores.json
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any, Dict, List, NamedTuple, Sequence, Tuple

import numpy as np
import scores
from scores import Records, ScoringError

from fairseq_sam.flags.number_types import count

BINS = 15
Values = Any  # numpy arrays of one number an answer


class Answers(NamedTuple):
    """What a model says, answer by answer.

    Attributes:
        right: whether the most probable one is.
        confidence: probability of the most probable one.
        nll: negative log-likelihood of the right one, in nats.
        entropy: in nats.
        norm: of the centred logits.
    """

    right: Values
    confidence: Values
    nll: Values
    entropy: Values
    norm: Values


def calibration_error(right: Values, confidence: Values, bins: int = BINS) -> float:
    """Returns the expected calibration error: Σ_b n_b/n · |mean right − mean confidence|.

    >>> calibration_error(np.array([1, 0, 1, 1]), np.array([0.9, 0.9, 0.6, 0.6]), bins=2)
    0.0
    >>> calibration_error(np.array([1, 0]), np.array([0.4, 0.8]), bins=2)
    0.7
    """
    # The bin (i/bins, (i+1)/bins] holds its upper end, as in Guo et al.
    index = np.clip(np.ceil(np.asarray(confidence) * bins) - 1, 0, bins - 1).astype(int)
    gap = np.bincount(index, weights=np.asarray(right, float) - confidence, minlength=bins)
    return float(np.abs(gap).sum() / len(index))


def answers_of(logits: Any, target: Any) -> Answers:
    """Returns the answers of logits (n, classes) where target (n) is right."""
    logits = logits.float()
    lprobs = logits.log_softmax(-1)
    best, found = lprobs.max(-1)
    columns = (
        found == target,
        best.exp(),
        -lprobs.gather(-1, target.unsqueeze(-1)).squeeze(-1),
        -(lprobs.exp() * lprobs).sum(-1),
        (logits - logits.mean(-1, keepdim=True)).norm(dim=-1),
    )
    return Answers(*(column.cpu().numpy() for column in columns))


def all_answers(trained: Any, samples: Sequence[Dict[str, Any]]) -> Answers:
    """Returns the answers of all mini-batches; targets that are padding are none."""
    import torch

    head = getattr(trained.cfg.criterion, "classification_head_name", None)
    found: List[Answers] = []
    with torch.no_grad():
        for sample in samples:
            if head is not None:
                inputs = {**sample["net_input"], "features_only": True}
                logits = trained.model(**inputs, classification_head_name=head)[0]
                target = sample["target"].view(-1)
            else:
                output = trained.model(**sample["net_input"])
                target = trained.model.get_targets(sample, output)
                there = target != trained.task.target_dictionary.pad()
                logits, target = output[0][there], target[there]
            found.append(answers_of(logits, target))
    return Answers(*(np.concatenate(column) for column in zip(*found)))


def records_of(answers: Answers, of_tokens: bool, prefix: str = "") -> Records:
    """Returns the scores of answers."""
    nll = float(answers.nll.mean())
    accuracy = 100 * float(answers.right.mean())
    named: List[Tuple[str, float]] = [("Token accuracy" if of_tokens else "Accuracy", accuracy)]
    if of_tokens:
        named.append(("Perplexity", scores.perplexity(nll)))
    named += [
        ("NLL", nll),
        ("ECE", 100 * calibration_error(answers.right, answers.confidence)),
        ("Entropy", float(answers.entropy.mean())),
        ("Logit norm", float(answers.norm.mean())),
    ]
    return [{"name": prefix + name, "score": value} for name, value in named]


def check_has_probabilities(args: argparse.Namespace, trained: Any) -> None:
    """Refuses models without a softmax over all answers.

    Raises:
        ScoringError: naming the checkpoint.
    """
    from fairseq.modules import AdaptiveSoftmax

    if scores.kind_of(trained) == "numbers":
        raise ScoringError(
            f"{args.checkpoint}: predicts numbers (--regression-target), which have no "
            "probabilities; it must be a model of classes or tokens"
        )
    if any(isinstance(layer, AdaptiveSoftmax) for layer in trained.model.modules()):
        raise ScoringError(
            f"{args.checkpoint}: has an adaptive softmax, which has no logits of all tokens"
        )


def score(args: argparse.Namespace) -> Records:
    """Returns the scores of all splits."""
    import fairseq  # noqa: F401

    import fairseq_sam
    from fairseq_sam.commands.checkpoint_data import explaining
    from fairseq_sam.evaluation.sentences import mini_batches
    from fairseq_sam.evaluation.trained_model import load_trained_model

    if len(set(args.subsets.split(",")) - {"valid"}) > 1:
        raise ScoringError(
            f"--subsets {args.subsets}: it must be valid and one more at most, for the names of "
            "scores tell no others apart"
        )
    fairseq_sam.register()
    trained = load_trained_model(str(args.checkpoint), str(args.data))
    check_has_probabilities(args, trained)
    of_tokens = scores.kind_of(trained) == "tokens"
    records: Records = []
    for subset in args.subsets.split(","):
        samples = mini_batches(trained, subset, args.max_tokens)
        with explaining(str(args.checkpoint), str(args.data)):
            answers = all_answers(trained, samples)
        records += records_of(answers, of_tokens, "valid " if subset == "valid" else "")
    return records


def main() -> int:
    """Scores and writes."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True, help="binarised data")
    parser.add_argument(
        "--subsets", default="valid,test", metavar="LIST", help="(default: %(default)s)"
    )
    parser.add_argument("--max-tokens", type=count, default=4000, help="of a mini-batch")
    return scores.run(parser, score)


if __name__ == "__main__":
    sys.exit(main())
