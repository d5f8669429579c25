"""The tokeniser that belongs to an encoder: raw text to the words of its dict.txt."""

import contextlib
import shutil
from pathlib import Path
from typing import Any, Callable, List

from fairseq_sam.checkpoints.conversion.source import ConversionError, read_json_object

FILE_NAME = "tokenizer.json"


def write_tokenizer(source: Path, out: Path) -> None:
    """Writes ``tokenizer.json``: the source's own, or one made from its vocabulary.

    Raises:
        ConversionError: there is nothing to make it of, or the package ``tokenizers`` is missing.
    """
    if (source / FILE_NAME).is_file():
        with contextlib.suppress(shutil.SameFileError):
            shutil.copyfile(str(source / FILE_NAME), str(out / FILE_NAME))
    elif (source / "vocab.txt").is_file():
        tokenizers = _library(source)
        made = tokenizers.BertWordPieceTokenizer(
            str(source / "vocab.txt"),
            lowercase=_setting(source, "do_lower_case", True),
            strip_accents=_setting(source, "strip_accents", None),  # None: where it lowers case
            handle_chinese_chars=_setting(source, "tokenize_chinese_chars", True),
        )
        made.save(str(out / FILE_NAME))
    elif (source / "merges.txt").is_file():
        files = [str(source / "vocab.json"), str(source / "merges.txt")]
        _library(source).ByteLevelBPETokenizer(*files).save(str(out / FILE_NAME))
    else:
        raise ConversionError(f"{source}: has none of {FILE_NAME}, vocab.txt, merges.txt")


def load_tokenizer(path: Path) -> Callable[[str], List[str]]:
    """Returns a function from a line of text to its pieces, without special pieces.

    Raises:
        ConversionError: no such file, a damaged one, or the package ``tokenizers`` is missing.
    """
    if not path.is_file():
        raise ConversionError(f"{path}: no such file")
    tokenizers = _library(path)
    try:
        tokenizer = tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises nothing narrower
        raise ConversionError(f"{path}: cannot be read ({error})") from error
    tokenizer.no_truncation()
    tokenizer.no_padding()

    def pieces(line: str) -> List[str]:
        return list(tokenizer.encode(line, add_special_tokens=False).tokens)

    return pieces


def _library(wanted_for: Path) -> Any:
    try:
        import tokenizers
    except ImportError:
        raise ConversionError(f"{wanted_for}: needs tokenizers: pip install tokenizers") from None
    return tokenizers


def _setting(source: Path, name: str, default: Any) -> Any:
    path = source / "tokenizer_config.json"
    return read_json_object(path).get(name, default) if path.is_file() else default
