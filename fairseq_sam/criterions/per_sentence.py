"""What makes a fairseq criterion per-sentence: one mixin, one method to write."""

import contextlib
from typing import Any, Dict, NamedTuple, Optional, Union

import torch
from fairseq.criterions import FairseqCriterion
from torch import Tensor

from fairseq_sam.criterions.float64 import preserve_float64
from fairseq_sam.criterions.recording import ModelAnswered, RecordedModel
from fairseq_sam.criterions.reductions import one_row_per_sentence, sum_tokens_per_sentence
from fairseq_sam.training.samples import num_rows, num_sentences


class PerSentenceLosses(NamedTuple):
    """What one forward pass yields.

    Attributes:
        losses: summed loss of each sentence in nats ``[batch]``, float32 at least, attached to the
            graph. Its sum is the stock criterion's loss, and has its gradient.
        sample_size: the stock criterion's, fairseq's denominator of the gradient.
        logging_output: the stock criterion's, to the bit.
    """

    losses: Tensor
    sample_size: Union[int, Tensor]
    logging_output: Dict[str, Any]


class PerSentenceCriterion(FairseqCriterion):
    """Mixin that gives a fairseq criterion the vector of its sentences' losses.

    Write it in front of the stock criterion, whose ``forward``, flags, logs and metrics stay as
    they are, and say in :meth:`unreduced_losses` what each sentence (or each token) contributes to
    the loss::

        @register_per_sentence("my_criterion")
        class PerSentenceMyCriterion(PerSentenceCriterion, MyCriterion):
            def unreduced_losses(self, model, net_output, sample):
                ...  # a tensor [batch] or [batch, tokens], zero at padding

    A "sentence" is one row of the batch: a sentence pair in translation, a labelled example (one
    text or a pair) in sentence prediction, one block of ``--tokens-per-sample`` tokens in language
    modelling and masked language modelling, whatever the block contains.

    Requirements: the criterion calls the model once per forward pass, and its loss is a sum over
    sentences. Others override :meth:`per_sentence_losses` itself.
    """

    def per_sentence_losses(
        self, model: Any, sample: Dict[str, Any], dtype: Optional[torch.dtype] = None
    ) -> PerSentenceLosses:
        """Runs one forward pass and returns the loss of every sentence (l_j in delta-SAM, Eq. 5).

        Autograd is the caller's: under ``torch.no_grad()`` nothing is recorded, otherwise any
        weighting of ``losses`` can be differentiated. The criterion's forward hooks are not run.

        Args:
            model: what fairseq hands to the criterion, wrapped for data parallelism or not.
            sample: fairseq's mini-batch.
            dtype: what a sentence's tokens are added up in, and the result's type. Default:
                float32, or float64 for a float64 model (then fairseq's own roundings to float32 are
                undone, in the logging output as well). With float64 the sums add no rounding error
                to that of the tokens, at hardly any cost.

        Returns:
            Losses, sample size and logging output; losses are local to this worker.

        Raises:
            RuntimeError: The criterion called the model more or less than once.
            ValueError: :meth:`unreduced_losses` returned another number of rows than sentences.
        """
        return self.one_pass(RecordedModel(model), sample, dtype)

    def one_pass(
        self, recorded: RecordedModel, sample: Dict[str, Any], dtype: Optional[torch.dtype] = None
    ) -> PerSentenceLosses:
        """:meth:`per_sentence_losses` of a model whose output is wanted as well.

        Args:
            recorded: not called yet; afterwards it holds the output.
            sample: fairseq's mini-batch.
            dtype: as in :meth:`per_sentence_losses`.
        """
        with preserve_float64(recorded):
            # The stock loss is dropped at once, with its graph: only the logs are wanted. The
            # class's forward: the instance's may be one that the seam has put there.
            sample_size, logging_output = type(self).forward(self, recorded, sample)[1:]
            unreduced = self._checked_losses(recorded, sample)
        losses = sum_tokens_per_sentence(unreduced, dtype=dtype)
        return PerSentenceLosses(losses, sample_size, logging_output)

    def losses_only(
        self, model: Any, sample: Dict[str, Any], dtype: Optional[torch.dtype] = None
    ) -> Tensor:
        """The same losses to the bit, without sample size and logs: for probing passes.

        Costs what the stock criterion's forward pass costs, where :meth:`per_sentence_losses` goes
        over the log-probabilities once more.

        Args:
            model: as in :meth:`per_sentence_losses`.
            sample: fairseq's mini-batch.
            dtype: as in :meth:`per_sentence_losses`.

        Returns:
            Summed losses in nats ``[batch]``, attached to the graph if there is one.
        """
        if type(self).per_sentence_losses is not PerSentenceCriterion.per_sentence_losses:
            return self.per_sentence_losses(model, sample, dtype).losses
        with preserve_float64(model):
            unreduced = self._checked_losses(self.answer(model, sample), sample)
        return sum_tokens_per_sentence(unreduced, dtype=dtype)

    def answer(self, model: Any, sample: Dict[str, Any]) -> RecordedModel:
        """Calls the model as the criterion does, and leaves out the criterion's loss.

        Args:
            model: as in :meth:`per_sentence_losses`.
            sample: fairseq's mini-batch.
        """
        recorded = RecordedModel(model, stop=True)
        with preserve_float64(model), contextlib.suppress(ModelAnswered):
            type(self).forward(self, recorded, sample)
        return recorded

    def _checked_losses(self, recorded: RecordedModel, sample: Dict[str, Any]) -> Tensor:
        if recorded.num_calls != 1:
            raise RuntimeError(
                f"{type(self).__qualname__} called the model {recorded.num_calls} times in one "
                "forward pass; override per_sentence_losses instead of unreduced_losses"
            )
        unreduced = self.unreduced_losses(recorded, recorded.net_output, sample)
        if not {"id", "nsentences"} & sample.keys():
            return unreduced
        count = num_sentences(sample)
        if unreduced.size(0) not in (count, num_rows(sample)):
            raise ValueError(
                f"{type(self).__qualname__}.unreduced_losses returned {unreduced.size(0)} rows for "
                f"{count} sentences; its first dimension must be the batch"
            )
        return unreduced[:count]  # the others only pad

    def unreduced_losses(self, model: Any, net_output: Any, sample: Dict[str, Any]) -> Tensor:
        """What the sentences, or their tokens, contribute to the summed loss.

        This default suits criterions with fairseq's ``compute_loss(..., reduce=False)`` and a
        batch-first model. Override it for others.

        Args:
            model: the model; ``get_normalized_probs(net_output, log_probs=True)`` is cached.
            net_output: what the model returned in this forward pass.
            sample: fairseq's mini-batch.

        Returns:
            Losses ``[batch]`` or ``[batch, ...]`` in nats, zero at padding.

        Raises:
            NotImplementedError: The criterion has no ``compute_loss`` to fall back on.
        """
        if not hasattr(self, "compute_loss"):
            raise NotImplementedError(f"{type(self).__qualname__} must define unreduced_losses")
        token_losses = self.compute_loss(model, net_output, sample, reduce=False)[0]
        return one_row_per_sentence(token_losses, sample["target"].size(0))
