"""The functional risk: what a model outputs, and the gradient with respect to it, held from w.

With a loss ℓ of the model's outputs F(w), sharpness-aware training follows J(w + a)ᵀ ∇ℓ(F(w + a)),
J being the Jacobian of F. The functional risk keeps the second factor at w (Singh et al. 2025;
J-SAM, Baek et al. 2024):

    J(w + a)ᵀ u,   u = ∂ℓ/∂F at w

so that flatness of the function counts, and not how sure the outputs are. It is the gradient of
S(w + a) = ⟨u, F(w + a)⟩ with u constant. Where it stands among the risks: docs/how_it_works.md.
"""

import contextlib
from typing import Any, Iterator, List, Optional, Tuple, cast

import torch
from torch import Tensor, nn

from fairseq_sam import FairseqSamError
from fairseq_sam.perturbation import foreach
from fairseq_sam.perturbation.replay import autocast_off, mapped


class OutputsBypassed(FairseqSamError, RuntimeError):
    """The loss depends on the weights past the model's outputs."""


class _Enough(BaseException):
    """Ends a pass when the model has been called for the last time: no loss is needed."""


class Outputs:
    """The outputs of a model in the passes of one step.

    Args:
        model: a step may call it several times, in the same order in each pass.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._gradients: List[Optional[Tensor]] = []
        self._num_calls = 0
        self._at_w: Optional[Tensor] = None
        self.captures = True
        """Whether backward passes are those of the loss, whose gradient is u."""

    @contextlib.contextmanager
    def recorded(self) -> Iterator[None]:
        """Context of the pass at w, backward included: finds u."""

        def note(module: nn.Module, args: Any, output: Any) -> Any:
            self._num_calls += 1
            return mapped(output, self._watched)

        handle = self._model.register_forward_hook(note)
        try:
            yield
        finally:
            handle.remove()

    def _watched(self, output: Any) -> Any:
        """Returns an alias, so that only what the loss does with it is seen, not the model."""
        if not _is_floating(output):
            return output
        number = len(self._gradients)
        self._gradients.append(None)
        if not output.requires_grad:
            return output
        value, alias = output.detach(), output.view_as(output)

        def capture(gradient: Tensor) -> None:
            if self.captures:
                before = self._gradients[number]
                self._gradients[number] = gradient if before is None else before + gradient
                product = _product(gradient, value)
                self._at_w = product if self._at_w is None else self._at_w + product

        alias.register_hook(capture)
        return alias

    @contextlib.contextmanager
    def followed(self, sums: List[Tensor]) -> Iterator[None]:
        """Context of a pass that ends with the model's last call.

        Args:
            sums: gets S as its only entry, multiplied as the loss of the pass at w was when it went
                backward; none where no output has a gradient.
        """
        seen: List[Tensor] = []
        calls: List[nn.Module] = []

        def follow(module: nn.Module, args: Any, output: Any) -> None:
            mapped(output, lambda each: seen.append(each) if _is_floating(each) else None)
            calls.append(module)
            if len(calls) == self._num_calls:
                raise _Enough

        handle = self._model.register_forward_hook(follow)
        try:
            yield
        except _Enough:
            pass
        finally:
            handle.remove()
        if len(seen) != len(self._gradients):
            raise RuntimeError(
                f"the model has {len(seen)} outputs where it had {len(self._gradients)} at w"
            )
        products = [
            _product(u, F)
            for u, F in zip(self._gradients, seen)
            if u is not None and F.requires_grad
        ]
        if products:
            sums.append(torch.stack(products).sum())

    @contextlib.contextmanager
    def looked_at(self) -> Iterator[None]:
        """Context of a pass at w in which the model has no graph, and backward ends at its outputs.

        It finds u as :meth:`recorded` does, in the time of a forward pass.
        """
        with_graph = torch.is_grad_enabled()

        def without_graph(module: nn.Module, args: Any) -> None:
            torch.set_grad_enabled(False)

        def watch(module: nn.Module, args: Any, output: Any) -> Any:
            torch.set_grad_enabled(with_graph)
            self._num_calls += 1
            return mapped(output, lambda each: self._watched(_as_leaf(each)))

        handles = [
            self._model.register_forward_pre_hook(without_graph),
            self._model.register_forward_hook(watch),
        ]
        try:
            yield
        finally:
            torch.set_grad_enabled(with_graph)
            for handle in handles:
                handle.remove()

    def at_w(self, like: Tensor) -> Tensor:
        """Returns ⟨u, F(w)⟩, multiplied as the loss of the pass at w was when it went backward."""
        return torch.zeros_like(like) if self._at_w is None else self._at_w


def check_outputs(gradients: List[Optional[Tensor]], followed: List[Optional[Tensor]]) -> None:
    """Checks that the gradient of S at w is that of the loss; waits for the GPU.

    A gradient that is zero, or not finite, can tell nothing.

    Args:
        gradients: of the loss.
        followed: of S.

    Raises:
        OutputsBypassed: they differ.
    """
    pairs = [(g, f) for g, f in zip(gradients, followed) if g is not None]
    length = torch.linalg.vector_norm(foreach.norms([g for g, _ in pairs])) if pairs else None
    if length is None or not 0 < float(length) < float("inf"):
        return
    tolerance = 1e-3 if all(g.dtype in (torch.float32, torch.float64) for g, _ in pairs) else 0.05
    apart = foreach.norms([g if f is None else g - f for g, f in pairs])
    missing = any(f is None and bool(g.any()) for g, f in pairs)
    if missing or not float(torch.linalg.vector_norm(apart)) <= tolerance * float(length):
        raise OutputsBypassed("the loss depends on trained weights past the model's outputs")


def _is_floating(output: Any) -> bool:
    return isinstance(output, Tensor) and output.is_floating_point()


def _as_leaf(output: Any) -> Any:
    return output.detach().requires_grad_() if _is_floating(output) else output


class _Product(torch.autograd.Function):
    """⟨u, F⟩, whose gradient is u. Entries of −∞ that a loss leaves out (u = 0) count nothing."""

    @staticmethod
    def forward(ctx: Any, gradient: Tensor, output: Tensor) -> Tensor:
        ctx.save_for_backward(gradient)
        ctx.dtype = output.dtype
        return (gradient * output).nansum()

    @staticmethod
    def backward(ctx: Any, *above: Tensor) -> Tuple[None, Tensor]:
        (gradient,) = ctx.saved_tensors
        return None, (gradient * above[0]).to(ctx.dtype)


def _product(gradient: Tensor, output: Tensor) -> Tensor:
    """Returns ⟨u, F⟩ in float32 at least."""
    with autocast_off(output.device):
        u = foreach.at_least_float32(gradient.detach())
        product: Tensor = cast(Any, _Product.apply)(u, output)
        return product
