"""Adding something to the embeddings of the source's words, in any fairseq model.

fairseq's own R3F hands ``token_embeddings`` to the model, which its RoBERTa drops silently and its
current Transformer does not know. A hook on the embedding reaches every model, and complains where
there is nothing to reach.
"""

import contextlib
from typing import Any, Callable, Iterator, List

from torch import Tensor, nn

from fairseq_sam import FairseqSamError
from fairseq_sam.training.parameters import unwrap

Perturbation = Callable[[Tensor, Tensor], Tensor]
"""From embeddings ``[batch, tokens, size]`` and the mask of real tokens ``[batch, tokens, 1]`` to
what is added to the embeddings."""


class NotPerturbable(FairseqSamError, RuntimeError):
    """The model's embeddings cannot be perturbed, or not along a gradient; the message says why."""


@contextlib.contextmanager
def perturbed_embeddings(model: Any, perturbation: Perturbation) -> Iterator[None]:
    """Context of one forward pass, whose source embeddings are perturbed.

    A model looks up its source first. What it looks up later, a decoder's words, stays as it is,
    even where both share one embedding. So does what a decoder looks up where the source is sound.

    Args:
        model: any model whose source embeddings are an ``nn.Embedding`` called ``embed_tokens``.
        perturbation: what to add, before the model scales its embeddings.

    Raises:
        NotPerturbable: the source has no such embedding, or the model did not use it.
    """
    pending = [True]

    def add(module: Any, inputs: Any, output: Tensor) -> Any:
        if not pending:
            return None
        pending.clear()
        real = inputs[0].ne(-1 if module.padding_idx is None else module.padding_idx)
        mask = real.unsqueeze(-1)
        return output + (perturbation(output, mask) * mask).to(output)

    handles = [module.register_forward_hook(add) for module in _source_embeddings(model)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
    if pending:
        raise NotPerturbable(
            "the model has no word embeddings to perturb: an nn.Embedding called embed_tokens for "
            "its source"
        )


def _source_embeddings(model: nn.Module) -> List[nn.Module]:
    """Returns the word embeddings; a decoder's own only where it is the whole model."""
    model = unwrap(model)
    own = {"decoder"} if hasattr(model, "encoder") else set()
    return [
        module
        for name, module in model.named_modules()  # a shared one by its first name, the encoder's
        if name.split(".")[-1] == "embed_tokens"
        and isinstance(module, nn.Embedding)
        and name.split(".")[0] not in own
    ]
