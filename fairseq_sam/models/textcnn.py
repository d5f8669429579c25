"""``--arch textcnn``: a convolutional network for sentence classification (Kim 2014).

For fairseq's task ``sentence_prediction`` and its criterions.
"""

from argparse import ArgumentTypeError
from dataclasses import dataclass, field
from typing import Any, Dict, List, Tuple

import torch
import torch.nn.functional as F
from fairseq import utils
from fairseq.models import BaseFairseqModel, register_model
from torch import Tensor, nn

from fairseq_sam.flags.checked_fields import CheckedConfig, check, checked
from fairseq_sam.flags.number_types import count, share


def _widths(text: str) -> str:
    """Refuses what are not whole numbers above 0 with commas between them."""
    try:
        for width in text.split(","):
            count(width)
    except ArgumentTypeError:
        raise ArgumentTypeError(
            f"{text} is not allowed: it must be whole numbers above 0 with commas between them"
        ) from None
    return text


@dataclass
class TextCNNConfig(CheckedConfig):
    """Kim's settings; those of GA-SAM's Appendix B.1 are 500, 500 and length 200."""

    embed_dim: int = checked(count, 300, "size of the word embeddings")
    embed_path: str = field(
        default="",
        metadata={
            "help": "word vectors to begin with: a first line, then lines of word and numbers"
        },
    )
    feature_maps: int = checked(count, 100, "feature maps of each window")
    windows: str = checked(_widths, "3,4,5", "widths of the filters, in words")
    dropout: float = checked(share, 0.5, "dropout before the classifier")
    max_positions: int = checked(count, 512, "set by the task")


@register_model("textcnn", dataclass=TextCNNConfig)
class TextCNN(BaseFairseqModel):  # type: ignore[misc]
    """Embeddings, convolutions over windows of words, the maximum over time, a linear classifier.

    Every window with at least one word of the sentence in it counts, padded by zero vectors on both
    sides as in Kim's code; windows of nothing but padding do not, so a sentence's scores do not
    depend on its batch. Of Kim's variants this is CNN-rand, or with ``--embed-path``
    CNN-non-static; his bound on the norm of the classifier's rows (s = 3) is not here. Embeddings
    begin as in his code, uniformly between -0.25 and 0.25 (from N(0, 1) MR is hardly learnt).

    Args:
        embed_tokens: the word embeddings ``[words, size]``.
        windows: widths of the filters, in words.
        feature_maps: of each width.
        dropout: share of features dropped before the classifier.
        max_positions: tokens of the longest sentence.
    """

    def __init__(
        self,
        embed_tokens: nn.Embedding,
        windows: List[int],
        feature_maps: int,
        dropout: float,
        max_positions: int = 512,
    ) -> None:
        super().__init__()
        self.embed_tokens = embed_tokens
        self.padding_idx = int(embed_tokens.padding_idx or 0)
        self.windows = windows
        self.convolutions = nn.ModuleList(
            nn.Conv1d(embed_tokens.embedding_dim, feature_maps, width, padding=width - 1)
            for width in windows
        )
        self.classification_heads = nn.ModuleDict()
        self.num_features = feature_maps * len(windows)
        self.dropout = dropout
        self.args = None  # fairseq 0.12.2's sentence_prediction looks at it
        self._max_positions = max_positions

    @classmethod
    def build_model(cls, cfg: TextCNNConfig, task: Any) -> "TextCNN":
        """Builds a model from its flags.

        Raises:
            SystemExit: with one line that names a flag, its value and what is allowed.
        """
        check(cfg, TextCNNConfig)
        dictionary = task.source_dictionary
        embed_tokens = nn.Embedding(len(dictionary), cfg.embed_dim, dictionary.pad())
        nn.init.uniform_(embed_tokens.weight, -0.25, 0.25)
        nn.init.zeros_(embed_tokens.weight[dictionary.pad()])
        if cfg.embed_path:
            vectors = _read_vectors(cfg.embed_path, cfg.embed_dim)
            utils.load_embedding(vectors, dictionary, embed_tokens)
        windows = [int(width) for width in cfg.windows.split(",")]
        return cls(embed_tokens, windows, cfg.feature_maps, cfg.dropout, cfg.max_positions)

    def register_classification_head(self, name: str, num_classes: int) -> None:
        """Adds a linear classifier."""
        self.classification_heads[name] = nn.Linear(self.num_features, num_classes)

    def forward(
        self, src_tokens: Tensor, classification_head_name: str, **kwargs: Any
    ) -> Tuple[Tensor, Dict[str, Any]]:
        """Returns scores ``[batch, classes]`` before the softmax, and nothing more.

        Args:
            src_tokens: ``[batch, tokens]``, padded on either side.
            classification_head_name: which classifier.
            **kwargs: of other models; without effect.
        """
        features = F.dropout(self.extract_features(src_tokens), self.dropout, self.training)
        return self.classification_heads[classification_head_name](features), {}

    def extract_features(self, src_tokens: Tensor) -> Tensor:
        """Returns the features ``[batch, maps * windows]``: maxima over time, after a ReLU."""
        real = src_tokens.ne(self.padding_idx).unsqueeze(1)
        words = self.embed_tokens(src_tokens).transpose(1, 2)
        # A perturbation may have moved the vector of the padding away from zero.
        words = words * real
        maxima = []
        for width, convolution in zip(self.windows, self.convolutions):
            ones = torch.ones(1, 1, width, dtype=words.dtype, device=words.device)
            occupied = F.conv1d(real.to(words.dtype), ones, padding=width - 1) > 0.5
            found = convolution(words).masked_fill(~occupied, -torch.inf)
            maxima.append(F.relu(found.amax(dim=2)))
        return torch.cat(maxima, dim=1)

    def get_normalized_probs(
        self, net_output: Tuple[Tensor, Any], log_probs: bool, sample: Any = None
    ) -> Tensor:
        """Returns (log-)probabilities ``[batch, classes]`` in float32 at least."""
        logits = net_output[0]
        dtype = torch.float64 if logits.dtype == torch.float64 else torch.float32
        softmax = F.log_softmax if log_probs else F.softmax
        return softmax(logits, dim=-1, dtype=dtype)

    def max_positions(self) -> int:
        """Returns how many tokens a sentence may have: as many as the task says."""
        return self._max_positions


def _read_vectors(path: str, size: int) -> Dict[str, Tensor]:
    try:
        vectors: Dict[str, Tensor] = utils.parse_embedding(path)
    except (OSError, ValueError) as error:
        raise SystemExit(f"error: argument --embed-path: {path}: {error}") from error
    for word, vector in vectors.items():
        if len(vector) != size:
            raise SystemExit(
                f"error: argument --embed-path: {path}: {word} has {len(vector)} numbers; "
                f"--embed-dim wants {size}"
            )
    return vectors
