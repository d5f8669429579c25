"""The tasks of the evidence table: small models on real data that overfit within minutes of a core.

What is fixed here was fixed before the runs: docs/results/protocol.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import Any, Dict, Iterator, Sequence

from fairseq_sam.experiments.command_lines import Command, commands
from fairseq_sam.experiments.recipes.classification import PAIR, binarised
from fairseq_sam.experiments.recipes.glue import TASKS as GLUE
from fairseq_sam.experiments.recipes.lstm_ptb import text_of

FOLDS = range(1, 11)
SPLITS = ("train", "valid", "test")
LANGUAGES = ("de", "en")


@dataclass(frozen=True)
class Task:
    """A task: its model, how long it is trained, and how it is scored.

    Attributes:
        title: of the report.
        flags: those of fairseq-train, without optimizer and criterion.
        criterion: the stock one, of which the per-sentence one is used.
        epochs: in all.
        start_epoch: first one with the perturbation; those before are the same for all methods.
        metrics: of the table, the first one being what the methods are compared by.
        alpha: R-Drop's.
        train: how many examples are trained on, 0 for all.
        base: the base optimizer.
        glue: the GLUE task that it is, on which a pretrained model is fine-tuned; "" for others.
        score: the commands that score a run.
    """

    title: str
    flags: str
    criterion: str
    epochs: int
    start_epoch: int
    metrics: str
    alpha: int = 1
    train: int = 0
    base: str = "adam"
    glue: str = ""
    score: str = """
{python} {root}/scripts/scoring/calibration.py --checkpoint {run}/checkpoints/checkpoint_best.pt \\
    --data {bin} --output {run}/scores.json
"""


_GENERATE = """
{{python}} -m fairseq_cli.generate {{bin}} --user-dir {{root}}/fairseq_sam --gen-subset {0} \\
    --path {{run}}/checkpoints/checkpoint_best.pt --source-lang de --target-lang en --beam 5 \\
    --nbest 5 --remove-bpe --max-tokens 4000 --distributed-world-size 1 > {{run}}/nbest.{0}.txt"""
_LENGTH_PENALTY = """
{python} {root}/scripts/scoring/length_penalty.py --lang en --lowercase \\
    --valid {run}/nbest.valid.txt --valid-reference {prepared}/valid.en \\
    --test {run}/nbest.test.txt --test-reference {prepared}/test.raw.en \\
    --output {run}/translations.json
"""
_CORRELATIONS = """
{python} {root}/scripts/scoring/predictions.py --checkpoint {run}/checkpoints/checkpoint_best.pt \\
    --data {bin} --subset test --metrics pearson,spearman --output {run}/scores.json
"""
_TEXT_CNN = """--task sentence_prediction --num-classes 2 --arch textcnn --windows '3,4,5'
    --embed-dim 32 --feature-maps 32 --dropout 0.5 --shorten-method truncate
    --required-batch-size-multiple 1 --batch-size 50"""
_MINI_LM = """--task sentence_prediction --init-token 0 --shorten-method truncate
    --required-batch-size-multiple 1 --batch-size 32 --dropout 0.1 --attention-dropout 0.1
    --weight-decay 0.01 --lr 1e-4 --lr-scheduler inverse_sqrt --warmup-updates 60"""
_BY_ACCURACY = "--best-checkpoint-metric accuracy --maximize-best-checkpoint-metric"
_LANGUAGE_MODEL = """--task language_modeling --tokens-per-sample 35 --sample-break-mode none
    --batch-size 20 --required-batch-size-multiple 1 --clip-norm 0.25"""
_LSTM = f"""{_LANGUAGE_MODEL} --arch lstm_lm --decoder-layers 1 --decoder-embed-dim 64
    --decoder-hidden-size 64 --decoder-out-embed-dim 64 --decoder-attention 0
    --share-decoder-input-output-embed --dropout 0.2"""
_OF_TOKENS = "Perplexity,NLL,Token accuracy,ECE,Entropy,Logit norm"

_CLASSES: Dict[str, Any] = {
    "criterion": "sentence_prediction",
    "metrics": "Accuracy,NLL,ECE,Entropy,Logit norm,valid Accuracy",
}
_PTB: Dict[str, Any] = {
    "criterion": "cross_entropy",
    "train": 4000,
    "metrics": f"{_OF_TOKENS},valid Perplexity",
}

TASKS = {
    "mr": Task(
        title="Movie reviews, TextCNN, folds of MR",
        flags=f"{_TEXT_CNN} --max-positions 64 --lr 1e-3 {_BY_ACCURACY}",
        epochs=7,
        start_epoch=3,
        **_CLASSES,
    ),
    "imdb": Task(
        title="A part of IMDB, TextCNN",
        # Too few reviews validate for their accuracy to choose the checkpoint.
        flags=f"{_TEXT_CNN} --max-positions 256 --lr 4e-3",
        epochs=20,
        start_epoch=8,
        **_CLASSES,
    ),
    "de_en": Task(
        title="De-En, a small Transformer",
        flags="""--source-lang de --target-lang en --arch transformer
            --share-decoder-input-output-embed --encoder-layers 2 --decoder-layers 2
            --encoder-embed-dim 96 --decoder-embed-dim 96 --encoder-ffn-embed-dim 192
            --decoder-ffn-embed-dim 192 --encoder-attention-heads 4 --decoder-attention-heads 4
            --dropout 0.3 --label-smoothing 0.1 --adam-betas '(0.9, 0.98)' --lr 3e-3
            --lr-scheduler inverse_sqrt --warmup-updates 200 --clip-norm 1.0 --max-tokens 2000""",
        criterion="label_smoothed_cross_entropy",
        alpha=5,
        epochs=26,
        start_epoch=19,
        train=5000,
        metrics="BLEU,BLEU at the best length penalty,chrF2,length ratio,"
        f"{_OF_TOKENS},valid BLEU,valid NLL",
        score=Task.score + _GENERATE.format("valid") + _GENERATE.format("test") + _LENGTH_PENALTY,
    ),
    "ptb_lstm": Task(
        title="Penn Treebank, a small LSTM",
        flags=f"{_LSTM} --lr 1e-2",
        epochs=12,
        start_epoch=6,
        **_PTB,
    ),
    "ptb_lstm_sgd": Task(
        title="Penn Treebank, a small LSTM trained by SGD",
        flags=f"{_LSTM} --lr 15",
        epochs=24,
        start_epoch=14,
        base="sgd",
        **_PTB,
    ),
    "ptb_transformer": Task(
        title="Penn Treebank, a small Transformer",
        flags=f"""{_LANGUAGE_MODEL} --arch transformer_lm --decoder-layers 2
            --decoder-embed-dim 64 --decoder-ffn-embed-dim 128 --decoder-attention-heads 4
            --share-decoder-input-output-embed --dropout 0.2 --lr 5e-4""",
        epochs=10,
        start_epoch=4,
        **_PTB,
    ),
    "mrpc": Task(
        title="MRPC, MiniLM fine-tuned",
        flags=f"{_MINI_LM} --num-classes 2 {_BY_ACCURACY}",
        epochs=3,
        start_epoch=2,
        glue="MRPC",
        **_CLASSES,
    ),
    "stsb": Task(
        title="STS-B, MiniLM fine-tuned",
        flags=f"{_MINI_LM} --num-classes 1 --regression-target --best-checkpoint-metric loss",
        criterion="sentence_prediction",
        epochs=4,
        start_epoch=3,
        metrics="Pearson,Spearman",
        glue="STS-B",
        score=_CORRELATIONS,
    ),
}

_REVIEWS = """
{python} {root}/scripts/data/labelled_text.py --data {data} {fold} --out {dir}
{python} -m fairseq_cli.preprocess --only-source --trainpref {dir}/train.input0 \\
    --validpref {dir}/valid.input0 --testpref {dir}/test.input0 \\
    --destdir {dir}/bin/input0 --nwordssrc 8000
{python} -m fairseq_cli.preprocess --only-source --trainpref {dir}/train.label \\
    --validpref {dir}/valid.label --testpref {dir}/test.label \\
    --destdir {dir}/bin/label
"""
_PAIRS = """
{python} {root}/scripts/data/parallel_text.py --data {data} --source de --target en --out {dir} \\
    --limit {train} 1014
cat {dir}/train.de {dir}/train.en > {dir}/train.both
{subword_nmt} learn-bpe -s 2000 -i {dir}/train.both -o {dir}/bpe.codes
"""
_BPE = """
{subword_nmt} apply-bpe -c {dir}/bpe.codes < {dir}/{part}.{lang} > {dir}/{part}.bpe.{lang}
"""
_BINARISED_PAIRS = """
{python} -m fairseq_cli.preprocess --source-lang de --target-lang en --destdir {dir}/bin \\
    --trainpref {dir}/train.bpe --validpref {dir}/valid.bpe --testpref {dir}/test.bpe
"""
_BINARISED_TEXT = """
{python} -m fairseq_cli.preprocess --only-source --destdir {dir}/bin --trainpref {dir}/train \\
    --validpref {dir}/valid --testpref {dir}/test --nwordssrc 4000
"""
_SENTENCE_PAIRS = """
mkdir -p {dir}/pieces
{python} {root}/scripts/data/glue_task.py --data {data} --task {glue} --out {dir} --test \\
    {limit}
"""


def reviews(folds: Sequence[int], **values: Any) -> Iterator[Command]:
    """Yields what prepares all folds of MR, whichever are asked for first, or reviews without."""
    folder = values["dir"]
    places = [(["--fold", str(fold)], f"{folder}/fold{fold}") for fold in folds] or [([], folder)]
    for fold, place in places:
        yield from commands(_REVIEWS, **{**values, "fold": fold, "dir": place})


def pairs(**values: Any) -> Iterator[Command]:
    """Yields what prepares parallel text."""
    yield from commands(_PAIRS, **values)
    for part, language in product(SPLITS, LANGUAGES):
        yield from commands(_BPE, part=part, lang=language, **values)
    yield from commands(_BINARISED_PAIRS, **values)


def text(**values: Any) -> Iterator[Command]:
    """Yields what prepares a text to model; it is cut to ``train`` lines."""
    for part in SPLITS:
        lines = values["train"] if part == "train" else 1000000
        yield from text_of(part, lines=lines, **values)
    yield from commands(_BINARISED_TEXT, **values)


def sentence_pairs(**values: Any) -> Iterator[Command]:
    """Yields what prepares a GLUE task with pairs of sentences, in the pieces of a model."""
    yield from commands(_SENTENCE_PAIRS, **values)
    yield from binarised(SPLITS, PAIR, numbers=GLUE[values["glue"]].classes == 1, **values)
