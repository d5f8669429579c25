"""A stand-in for the model that remembers what it put out during one criterion call."""

from typing import Any, Optional

from torch import Tensor

from fairseq_sam import FairseqSamError


class ModelAnswered(FairseqSamError):
    """Ends a criterion's forward pass as soon as the model has put something out."""


class RecordedModel:
    """Behaves like ``model`` towards a criterion, and keeps the output of its one forward pass.

    With it a stock criterion's own ``forward`` yields its logging output, and the same forward pass
    yields the per-sentence losses. The log-probabilities of that output are computed once, whoever
    asks for them, so the vocabulary-sized tensor exists once.

    Args:
        model: the model.
        stop: raise :class:`ModelAnswered` after the forward pass, to spare the criterion's loss.

    Attributes:
        net_output: what the model returned.
        num_calls: how often the criterion called the model.
    """

    net_output: Any
    num_calls: int

    def __init__(self, model: Any, stop: bool = False) -> None:
        # Past __setattr__, which hands attributes on to the model.
        self.__dict__.update(_model=model, _stop=stop, _lprobs=None, net_output=None, num_calls=0)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Runs the model."""
        output = self._model(*args, **kwargs)
        self.__dict__.update(net_output=output, num_calls=self.num_calls + 1, _lprobs=None)
        if self._stop:
            raise ModelAnswered
        return output

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["_model"], name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self._model, name, value)

    def get_normalized_probs(self, net_output: Any, *args: Any, **kwargs: Any) -> Tensor:
        """The model's ``get_normalized_probs``; ``log_probs=True`` on its output is remembered."""
        plain = net_output is self.net_output and not args and kwargs == {"log_probs": True}
        if not plain:
            probs: Tensor = self._model.get_normalized_probs(net_output, *args, **kwargs)
            return probs
        lprobs: Optional[Tensor] = self._lprobs
        if lprobs is None:
            lprobs = self._model.get_normalized_probs(net_output, log_probs=True)
            self.__dict__["_lprobs"] = lprobs
        return lprobs
