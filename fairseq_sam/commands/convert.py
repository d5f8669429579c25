"""``fairseq-sam convert``: a pretrained encoder from Hugging Face's files to fairseq's."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path

from fairseq_sam.commands.quiet import only_warnings
from fairseq_sam.commands.refusals import CommandError, load_fairseq

_EPILOG = """\
examples:
  fairseq-sam convert all-MiniLM-L6-v2 --output minilm/model.pt
  python scripts/data/wordpiece.py minilm < train.txt > train.pieces
  fairseq-preprocess --only-source --srcdict minilm/dict.txt --trainpref train.pieces --destdir data
  fairseq-train data --user-dir $(fairseq-sam user-dir) $(cat minilm/flags.txt) \\
      --finetune-from-model minilm/model.pt ...

SOURCE is a folder with config.json; model.safetensors, pytorch_model.bin or model.onnx; and
vocab.txt (BERT) or vocab.json and merges.txt (RoBERTa). Beside FILE, in a folder that is made if
need be, come dict.txt, tokenizer.json, and flags.txt, which holds the flags that build the model.
The scripts want FILE to be called model.pt. A BERT needs this plugin's --arch bert (segment
embeddings, its own eps in layer normalisation); a RoBERTa is fairseq's own. The hidden states are
those of the source.
"""


_BESIDE = ("dict.txt", "tokenizer.json", "flags.txt")
"""What is written beside the checkpoint."""


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Adds this subcommand's parser."""
    parser = subparsers.add_parser(
        "convert",
        help="make a fairseq checkpoint of a pretrained BERT or RoBERTa",
        description="Converts Hugging Face's files of a BERT or RoBERTa into fairseq's.",
        epilog=_EPILOG,
    )
    parser.add_argument("source", type=Path, metavar="SOURCE", help="folder with config.json")
    parser.add_argument(
        "--output",
        type=_checkpoint_file,
        required=True,
        metavar="FILE",
        help="the checkpoint to write: FOLDER/model.pt; its dictionary and flags come beside it",
    )
    parser.add_argument("--force", action="store_true", help="overwrite FILE if it exists")
    parser.set_defaults(run=run)


def _checkpoint_file(text: str) -> Path:
    if Path(text).suffix != ".pt":
        raise argparse.ArgumentTypeError(
            f"{text} is not allowed: it must be a file ending in .pt, such as FOLDER/model.pt"
        )
    return Path(text)


def run(args: argparse.Namespace) -> int:
    """Converts and says what was written."""
    target = args.output
    kept = (args.source / "tokenizer.json").resolve()
    for path in (target, *(target.parent / name for name in _BESIDE)):
        if path.exists() and not args.force and path.resolve() != kept:
            raise CommandError(f"{path}: exists (--force overwrites it)")
    load_fairseq()
    from fairseq_sam.checkpoints.conversion.encoder_checkpoint import convert

    try:
        with only_warnings():
            converted = convert(args.source, target)
    except OSError as error:
        raise CommandError(
            f"{error.filename or target}: cannot write ({error.strerror})"
        ) from error
    print(f"{target}: {converted.num_words} words; {shlex.join(converted.flags)}")
    if converted.new_head:
        print(
            "the source has no head of a language model that ends in its words' embedding, as "
            "fairseq's: the checkpoint's is a random one"
        )
    return 0
