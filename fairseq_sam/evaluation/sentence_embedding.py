"""Embeddings of sentences by a trained encoder."""

from typing import Callable, Dict, List, Sequence

import torch
from torch import Tensor

from fairseq_sam.criterions.contrastive import pool
from fairseq_sam.evaluation.trained_model import LoadError, TrainedModel


class SentenceEmbedder:
    """From raw sentences to embeddings, without dropout; every sentence is computed once.

    Args:
        trained: an encoder that is called with ``features_only=True`` (RoBERTa, ``--arch bert``).
        pieces: splits a line into words of its dictionary.
        pooling: ``mean`` of all tokens, special ones too, or ``cls``, the first.
        batch_size: sentences in one forward pass.

    Attributes:
        num_pieces: how many words the sentences had so far.
        num_unknown: how many of them the dictionary does not have.

    Raises:
        LoadError: the model is no such encoder.
    """

    def __init__(
        self,
        trained: TrainedModel,
        pieces: Callable[[str], List[str]],
        pooling: str = "mean",
        batch_size: int = 64,
    ) -> None:
        if not hasattr(trained.model, "classification_heads"):
            kind = type(trained.model).__name__
            raise LoadError(f"{kind} is not an encoder of RoBERTa's kind")
        self._model = trained.model.eval()
        self._dictionary = trained.task.source_dictionary
        self._pieces, self._pooling, self._batch_size = pieces, pooling, batch_size
        self._longest = int(trained.model.max_positions())
        self._known: Dict[str, Tensor] = {}
        self.num_pieces = self.num_unknown = 0

    def __call__(self, sentences: Sequence[str]) -> Tensor:
        """Returns embeddings ``[sentences, dim]`` on the CPU; too long a sentence is cut."""
        new = {text: self._tokens(text) for text in sentences if text not in self._known}
        by_length = sorted(new, key=lambda text: len(new[text]))
        for start in range(0, len(by_length), self._batch_size):
            texts = by_length[start : start + self._batch_size]
            for text, row in zip(texts, self._embed([new[text] for text in texts])):
                self._known[text] = row
        return torch.stack([self._known[text] for text in sentences])

    def _tokens(self, text: str) -> Tensor:
        words = self._dictionary
        inner = [words.index(piece) for piece in self._pieces(text)]
        self.num_pieces += len(inner)
        self.num_unknown += inner.count(words.unk())
        return torch.tensor([words.bos(), *inner[: self._longest - 2], words.eos()])

    @torch.no_grad()
    def _embed(self, rows: List[Tensor]) -> Tensor:
        pad = self._dictionary.pad()
        device = next(self._model.parameters()).device
        tokens = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=pad)
        tokens = tokens.to(device)
        features = self._model(src_tokens=tokens, features_only=True)[0]
        return pool(features, tokens.ne(pad), self._pooling).cpu()
