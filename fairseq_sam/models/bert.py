"""``--arch bert``: fairseq's RoBERTa with what sets BERT (Devlin et al. 2019) apart from it.

RoBERTa has no segment embeddings, and fairseq's layer normalisation is fixed at eps = 1e-5 where
BERT has 1e-12. ``fairseq-sam convert`` writes checkpoints of this model.
"""

from typing import Any, Dict, Optional

import torch
from fairseq.models import register_model, register_model_architecture
from fairseq.models.roberta import RobertaModel, base_architecture
from fairseq.modules import LearnedPositionalEmbedding
from fairseq.utils import safe_getattr
from torch import Tensor, nn

from fairseq_sam.flags.number_types import count, positive


class PositionAndSegmentEmbedding(LearnedPositionalEmbedding):
    """Learned positions, to which the embedding of the token's segment is added.

    Args:
        positions: the embedding to take the place of.
        num_segments: how many segments there are; tokens of later ones count as the last.
        eos: the index that ends a segment.
    """

    def __init__(self, positions: LearnedPositionalEmbedding, num_segments: int, eos: int) -> None:
        super().__init__(positions.num_embeddings, positions.embedding_dim, positions.padding_idx)
        self.weight = positions.weight  # initialised as RoBERTa's
        self.segments = nn.Embedding(num_segments, positions.embedding_dim)
        self.eos = eos

    def forward(
        self,
        input: Tensor,
        incremental_state: Optional[Dict[str, Any]] = None,
        positions: Optional[Tensor] = None,
    ) -> Tensor:
        """Returns embeddings ``[batch, tokens, dim]`` of tokens ``[batch, tokens]``."""
        embedded: Tensor = super().forward(input, incremental_state, positions)
        ends = input.eq(self.eos).long()
        segment = (ends.cumsum(1) - ends).clamp(max=self.segments.num_embeddings - 1)
        return embedded + self.segments(segment)


@register_model("bert")
class BertModel(RobertaModel):
    """RoBERTa with segment embeddings and an eps of its own.

    A sentence is ``<s> … </s>``, a pair ``<s> … </s> … </s>`` (sentence_prediction with
    ``--init-token 0`` and no separator). What follows an end of sentence is another segment.
    """

    def __init__(self, args: Any, encoder: Any) -> None:
        super().__init__(args, encoder)
        sentence_encoder = encoder.sentence_encoder
        if args.num_segments > 1:
            sentence_encoder.embed_positions = PositionAndSegmentEmbedding(
                sentence_encoder.embed_positions, args.num_segments, encoder.dictionary.eos()
            )
            nn.init.normal_(sentence_encoder.embed_positions.segments.weight, std=0.02)
        for layer in self.modules():
            if hasattr(layer, "normalized_shape"):  # torch's and apex's layer normalisation
                layer.eps = args.layer_norm_eps

    @staticmethod
    def add_args(parser: Any) -> None:
        """Adds the flags of RoBERTa and two more."""
        RobertaModel.add_args(parser)
        parser.add_argument(
            "--layer-norm-eps",
            type=positive,
            metavar="E",
            help="added to the variance in layer normalisation (default: 1e-12)",
        )
        parser.add_argument(
            "--num-segments",
            type=count,
            metavar="N",
            help="number of segment embeddings; 1 for none (default: 2)",
        )

    @classmethod
    def build_model(cls, args: Any, task: Any) -> "BertModel":
        """Builds the model for a task."""
        bert_architecture(args)
        model: BertModel = super().build_model(args, task)
        return model

    def upgrade_state_dict_named(self, state_dict: Dict[str, Any], name: str) -> None:
        """Lets new classification heads start from the pooler that BERT was pretrained with."""
        prefix = f"{name}." if name else ""
        pooler = {
            part: state_dict.pop(f"{prefix}pooler.{part}")
            for part in ("weight", "bias")
            if f"{prefix}pooler.{part}" in state_dict
        }
        super().upgrade_state_dict_named(state_dict, name)
        for head in self.classification_heads:
            for part, pretrained in pooler.items():
                key = f"{prefix}classification_heads.{head}.dense.{part}"
                if state_dict[key].shape == pretrained.shape:
                    state_dict[key] = torch.clone(pretrained)


@register_model_architecture("bert", "bert")
def bert_architecture(args: Any) -> None:
    """BERT-base, unless flags say otherwise."""
    args.layer_norm_eps = _given(args, "layer_norm_eps", 1e-12)
    args.num_segments = _given(args, "num_segments", 2)
    base_architecture(args)


def _given(args: Any, name: str, default: Any) -> Any:
    value = safe_getattr(args, name, None)
    return default if value is None else value
