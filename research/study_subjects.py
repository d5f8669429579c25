"""Models and batches that research/study_delta_weights.py studies; not a script of its own."""

import argparse
import csv
import gzip
import io
import re
from pathlib import Path
from typing import Any, Dict, List, NamedTuple, Tuple

import torch

Sample = Dict[str, Any]
HEAD = "sentence_classification_head"


class Subject(NamedTuple):
    """A model with its per-sentence criterion and the batches to weight."""

    name: str
    model: torch.nn.Module
    criterion: Any
    batches: List[Sample]


def checkpoint_subject(args: argparse.Namespace) -> Subject:
    """Loads a fairseq checkpoint and random batches of its training set."""
    from fairseq import checkpoint_utils

    from fairseq_sam.criterions import per_sentence_name_of

    overrides = {"data": str(args.data)} if args.data else {}
    models, cfg, task = checkpoint_utils.load_model_ensemble_and_task(
        [str(args.checkpoint)], arg_overrides=overrides
    )
    cfg.criterion._name = per_sentence_name_of(cfg.criterion._name)
    task.load_dataset("train")
    batches = task.get_batch_iterator(
        task.dataset("train"), max_sentences=args.sentences, max_positions=200, seed=args.seed
    ).next_epoch_itr(shuffle=True)
    full = (batch for batch in batches if batch["nsentences"] == args.sentences)
    chosen = [next(full) for _ in range(args.batches)]
    return Subject(args.name, models[0], task.build_criterion(cfg.criterion), chosen)


def encoder_subject(args: argparse.Namespace) -> Subject:
    """Builds a RoBERTa-shaped encoder for a file of sentence pairs and trains it a little.

    Pretrained weights would be better; the shape, the number of weights and their norm are those
    of a six-layer pretrained encoder.
    """
    from fairseq.data import Dictionary

    pairs = read_pairs(args.pairs, args.columns)[: args.examples]
    dictionary = Dictionary()
    for _, words in pairs:
        for word in words:
            dictionary.add_symbol(word)
    dictionary.finalize(threshold=2, nwords=args.vocabulary)
    torch.manual_seed(args.seed)
    labels = sorted({label for label, _ in pairs})
    model, criterion = build_encoder(args, dictionary, len(labels))
    batches = make_batches(pairs, labels, dictionary, args)
    if args.cache and args.cache.exists():
        model.load_state_dict(torch.load(args.cache, weights_only=True))
    else:
        train(model, criterion, batches, args.train_steps)
        if args.cache:
            torch.save(model.state_dict(), args.cache)
    return Subject(args.name, model, criterion, batches[: args.batches])


def read_pairs(path: Path, columns: List[int]) -> List[Tuple[str, List[str]]]:
    """Reads (label, words) from a tab-separated file with a header."""
    content = path.read_bytes()
    if path.suffix == ".gz":
        content = gzip.decompress(content)
    text = io.StringIO(content.decode("utf-8-sig"))
    rows = list(csv.reader(text, delimiter="\t", quoting=csv.QUOTE_NONE))[1:]
    first, second, label = columns
    return [(r[label], [*split(r[first]), "</s>", "</s>", *split(r[second])]) for r in rows]


def split(text: str) -> List[str]:
    """Splits lower-case words and punctuation marks."""
    return re.findall(r"\w+|[^\w\s]", text.lower())


def build_encoder(args: argparse.Namespace, dictionary: Any, num_labels: int) -> Tuple[Any, Any]:
    """Returns fairseq's RoBERTa with a classification head, and the criterion."""
    from fairseq.criterions import CRITERION_REGISTRY
    from fairseq.criterions.sentence_prediction import SentencePredictionConfig
    from fairseq.models.roberta import RobertaModel

    settings = argparse.Namespace(
        encoder_layers=args.layers,
        encoder_embed_dim=args.width,
        encoder_ffn_embed_dim=4 * args.width,
        encoder_attention_heads=args.width // 32,
        tokens_per_sample=512,
    )
    task = argparse.Namespace(
        source_dictionary=dictionary, target_dictionary=dictionary, label_dictionary=None
    )
    model = RobertaModel.build_model(settings, task)
    model.register_classification_head(HEAD, num_classes=num_labels)
    criterion = CRITERION_REGISTRY["per_sentence_sentence_prediction"]
    return model, criterion(SentencePredictionConfig(classification_head_name=HEAD), task)


def make_batches(
    pairs: List[Tuple[str, List[str]]], labels: List[str], dictionary: Any, args: argparse.Namespace
) -> List[Sample]:
    """Deals the pairs out in random order."""
    order = torch.randperm(len(pairs)).tolist()
    batches = []
    for start in range(0, len(pairs) - args.sentences + 1, args.sentences):
        chosen = [pairs[i] for i in order[start : start + args.sentences]]
        rows = [
            [dictionary.bos(), *map(dictionary.index, words[: args.length - 2]), dictionary.eos()]
            for _, words in chosen
        ]
        tokens = torch.full((len(rows), max(map(len, rows))), dictionary.pad())
        for row, indices in zip(tokens, rows):
            row[: len(indices)] = torch.tensor(indices)
        sample = {
            "net_input": {"src_tokens": tokens, "src_lengths": tokens.ne(dictionary.pad()).sum(1)},
            "target": torch.tensor([labels.index(label) for label, _ in chosen]),
            "nsentences": len(rows),
            "ntokens": sum(map(len, rows)),
        }
        batches.append(sample)
    return batches


def train(model: torch.nn.Module, criterion: Any, batches: List[Sample], steps: int) -> None:
    """Trains with Adam; says how far it got."""
    model.train()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4)
    for step in range(steps):
        loss, sample_size, _ = criterion(model, batches[step % len(batches)])
        optimizer.zero_grad()
        (loss / sample_size).backward()
        optimizer.step()
        if step % 20 == 0 or step == steps - 1:
            print(f"step {step}: loss {loss.item() / sample_size:.3f}", flush=True)
