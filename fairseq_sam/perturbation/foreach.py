"""Operations on lists of tensors that torch fuses, with what older torch lacks filled in.

And gradients on their way: out of ``p.grad``, summed over passes, and back.
"""

from typing import Dict, Iterator, List, Optional, Sequence

import torch
from torch import Tensor

Gradients = List[Optional[Tensor]]

CHUNK = 2**22
"""Entries that are handled together where a copy of them is needed on the way."""

CHUNK_ON_CPU = 2**19
"""Of these there are fewer, which stay in the cache."""

ROW = 2**12
"""Entries of a tensor whose squares a CPU adds up one by one."""


def at_least_float32(tensor: Tensor) -> Tensor:
    """Returns the tensor in float32, or in float64 where it is that already."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def chunks(tensors: Sequence[Tensor]) -> Iterator[slice]:
    """Cuts a list into runs of about :data:`CHUNK` entries, one tensor at least.

    >>> list(chunks([torch.zeros(CHUNK_ON_CPU), torch.zeros(1), torch.zeros(2)]))
    [slice(0, 1, None), slice(1, 3, None)]
    """
    most = CHUNK_ON_CPU if tensors and tensors[0].device.type == "cpu" else CHUNK
    start, size = 0, 0
    for i, tensor in enumerate(tensors):
        if i > start and size + tensor.numel() > most:
            yield slice(start, i)
            start, size = i, 0
        size += tensor.numel()
    if tensors:
        yield slice(start, len(tensors))


class Room:
    """Memory for what is needed for a moment, again and again; on a CPU new memory costs time."""

    def __init__(self) -> None:
        self._memory = torch.empty(0)

    def like(self, tensors: Sequence[Tensor]) -> List[Tensor]:
        """Returns tensors of these shapes, whose values are not those of before."""
        dtypes = {tensor.dtype for tensor in tensors}
        if len(dtypes) != 1 or tensors[0].device.type != "cpu":
            return [torch.empty_like(tensor) for tensor in tensors]
        sizes, (dtype,) = [tensor.numel() for tensor in tensors], dtypes
        if self._memory.dtype != dtype or self._memory.numel() < sum(sizes):
            self._memory = torch.empty(sum(sizes), dtype=dtype)
        parts = self._memory[: sum(sizes)].split(sizes)
        return [part.view(tensor.shape) for part, tensor in zip(parts, tensors)]


def norm(tensor: Tensor, order: int = 2, room: Optional[Room] = None) -> Tensor:
    """Returns the L2 (or L1) norm of a tensor, in float32 at least: a scalar.

    torch's own adds up all entries one by one on a CPU: of 2**24 of them the L1 norm in float32 is
    half a percent too small.
    """
    dtype = torch.float64 if tensor.dtype == torch.float64 else torch.float32
    if tensor.device.type != "cpu" or tensor.numel() <= ROW:
        alone: Tensor = torch.linalg.vector_norm(tensor, order, dtype=dtype)
        return alone
    entries = tensor.reshape(-1)
    if order == 1:
        room = room or Room()
        parts = entries.split(CHUNK_ON_CPU)
        sums = [torch.abs(part, out=room.like([part])[0]).sum(dtype=dtype) for part in parts]
        return torch.stack(sums).sum()
    rest = entries.numel() % ROW
    rows = entries[: entries.numel() - rest].view(-1, ROW)
    lengths = torch.linalg.vector_norm(rows, dim=1, dtype=dtype)
    if rest:
        last = torch.linalg.vector_norm(entries[-rest:], dtype=dtype)
        lengths = torch.cat([lengths, last.view(1)])
    length: Tensor = torch.linalg.vector_norm(lengths)
    return length


class Generators(Dict[torch.device, torch.Generator]):
    """Generators of a seed, one a device."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self._seed = seed

    def __missing__(self, device: torch.device) -> torch.Generator:
        """Makes the one of a device."""
        self[device] = torch.Generator(device).manual_seed(self._seed)
        return self[device]


class Draws:
    """Random numbers of a step's own, which follow from torch's state.

    Torch's generators would give the very numbers that the dropout masks are made of. And where a
    model draws none, their state is the same in all steps, as the replay puts it back: so the steps
    that began from the same state are counted, those only that went well, and each draws other
    numbers. (Seeding torch as before brings the numbers of before to new objects only.)
    """

    def __init__(self) -> None:
        self._state, self._count = -1, 0
        self._now: Optional[int] = None
        self._index = 0

    def begin(self) -> None:
        """Begins a step."""
        self._now, self._index = None, 0

    def end(self) -> None:
        """Ends a step that went well."""
        if self._now is not None:
            self._count = self._count + 1 if self._now == self._state else 1
            self._state = self._now

    def generators(self) -> Generators:
        """Returns what to draw from."""
        drawn = int(torch.randint(2**62, (), device="cpu"))
        self._now = drawn if self._now is None else self._now
        count = self._count if self._now == self._state else 0
        self._index += 1
        return Generators(drawn + 1000 * count + self._index)

    def normal_like(self, tensors: Sequence[Tensor]) -> List[Tensor]:
        """Draws N(0, I), one tensor for each, in float32 at least."""
        generators = self.generators()
        return [
            torch.randn(
                tensor.shape,
                generator=generators[tensor.device],
                device=tensor.device,
                dtype=torch.float64 if tensor.dtype == torch.float64 else torch.float32,
            )
            for tensor in tensors
        ]


def norms(tensors: Sequence[Tensor], order: int = 2) -> Tensor:
    """Returns the :func:`norm` of each tensor: shape [len(tensors)]."""
    if all(t.is_cuda and t.dtype in (torch.float32, torch.float64) for t in tensors):
        each = list(torch._foreach_norm(list(tensors), order))
    else:
        room = Room()  # a fused norm accumulated in half precision overflows at 65504
        each = [norm(tensor, order, room) for tensor in tensors]
    dtype = torch.float64 if any(n.dtype == torch.float64 for n in each) else torch.float32
    return torch.stack([n.to(device=each[0].device, dtype=dtype) for n in each])


def product_norms(tensors: Sequence[Tensor], factors: Sequence[Tensor]) -> Tensor:
    """Returns the L2 norm of each tensor times its factor, a scalar or one that broadcasts."""
    if all(factor.dim() == 0 for factor in factors):
        each = norms(tensors)
        return each * torch.stack([factor.to(each) for factor in factors])
    return norms([at_least_float32(t) * f for t, f in zip(tensors, factors)])


def sign(tensors: Sequence[Tensor], room: Room) -> List[Tensor]:
    """Returns the sign of each tensor, in the room given where that is quicker."""
    if hasattr(torch, "_foreach_sign") and all(tensor.is_cuda for tensor in tensors):
        return list(torch._foreach_sign(list(tensors)))
    return [torch.sign(t, out=place) for t, place in zip(tensors, room.like(tensors))]


def copy_(targets: Sequence[Tensor], sources: Sequence[Tensor]) -> None:
    """Copies each source into its target."""
    if not targets:  # which torch refuses
        return
    if hasattr(torch, "_foreach_copy_"):
        torch._foreach_copy_(list(targets), list(sources))
    else:
        for target, source in zip(targets, sources):
            target.copy_(source)


def clamp_(tensors: Sequence[Tensor], bounds: Sequence[Tensor]) -> None:
    """Clips each tensor to [-bound, bound]; a bound broadcasts over its tensor."""
    negative = list(torch._foreach_neg(list(bounds)))
    if hasattr(torch, "_foreach_clamp_max_"):
        torch._foreach_clamp_max_(list(tensors), list(bounds))
        torch._foreach_clamp_min_(list(tensors), negative)
    else:
        for tensor, low, high in zip(tensors, negative, bounds):
            torch.clamp(tensor, low, high, out=tensor)


def discard_non_finite_(tensors: Sequence[Tensor], finite: Tensor) -> None:
    """Replaces non-finite entries by 0 where ``finite`` is false, without a host-device sync.

    Args:
        tensors: changed in place.
        finite: a boolean scalar: whether all entries are known to be finite. It is looked at only
            on the CPU, where looking costs nothing.
    """
    if finite.device.type == "cpu" and bool(finite):
        return
    for tensor in tensors:
        torch.nan_to_num_(tensor, nan=0.0, posinf=0.0, neginf=0.0)


def zero_unless_(tensors: Sequence[Tensor], condition: Tensor) -> None:
    """Sets finite tensors to 0 where a condition is false, without a host-device sync.

    Args:
        tensors: changed in place.
        condition: a boolean scalar; as ``finite`` of :func:`discard_non_finite_`.
    """
    if condition.device.type == "cpu" and bool(condition):
        return
    torch._foreach_mul_(list(tensors), [condition.to(tensor) for tensor in tensors])


def take_gradients(weights: Sequence[Tensor]) -> Gradients:
    """Returns the weights' gradients, dense, and leaves none behind."""
    taken = [weight.grad for weight in weights]
    for weight in weights:
        weight.grad = None
    return [g.to_dense() if g is not None and g.is_sparse else g for g in taken]


def put_gradients(weights: Sequence[Tensor], gradients: Gradients) -> None:
    """Makes these the weights' gradients."""
    for weight, gradient in zip(weights, gradients):
        weight.grad = gradient


def add_gradients_(total: Gradients, gradients: Gradients) -> None:
    """Adds into ``total`` in place; a gradient that only one side has is kept as it is."""
    if not total:
        total.extend(gradients)
        return
    both = [(t, g) for t, g in zip(total, gradients) if t is not None and g is not None]
    if both:
        torch._foreach_add_([t for t, _ in both], [g for _, g in both])
    total[:] = [g if t is None else t for t, g in zip(total, gradients)]
