"""A weight laid out for one way of running it, and the ways that there are for a matrix."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

Run = Callable[[Tensor, Tensor | None], Tensor]
"""``(x, bias) -> y``: plain operations, without gradient."""

Lay = Callable[[Tensor], "Ready"]
"""Lays a matrix out."""

PACKED_ROWS = 4  # from which a packed weight can be worth the call
WIDE = torch.float32  # what lower precision is computed in where that is faster


@dataclass(frozen=True, eq=False)
class Ready:
    """A weight laid out for one way of running it.

    Attributes:
        name: of the way, as a table shows it.
        kept: the tensors that it runs by; those that are no views of parameters take memory.
        run: ``(x, bias) -> y``.
    """

    name: str
    kept: tuple[Tensor, ...]
    run: Run


@dataclass(frozen=True, eq=False)
class Way:
    """A way of running a weight, made only where it is measured or kept.

    Attributes:
        name: as a table shows it.
        make: lays the weight out.
        finer: others of its kind, to be measured where it is among the fastest.
    """

    name: str
    make: Callable[[], Ready]
    finer: "Callable[[], Iterable[Way]]" = tuple


def bytes_beside(kept: Iterable[Tensor], parameters: Iterable[Tensor]) -> int:
    """Bytes of tensors that share no memory with parameters; what is there twice counts once.

    >>> weight = torch.zeros(2, 3)
    >>> bytes_beside([weight.T, weight + 1], [weight])
    24
    """
    own = {_storage(each) for each in parameters}
    found = {_storage(each): _size(each) for each in kept}
    return sum(size for place, size in found.items() if place not in own)


def _storage(own: Tensor) -> int:
    return id(own) if own.layout != torch.strided else own.untyped_storage().data_ptr()


def _size(own: Tensor) -> int:
    if own.layout != torch.strided:  # packed: as many numbers as it stands for
        return own.numel() * own.element_size()
    return own.untyped_storage().nbytes()


def matrix_ways(
    weight: Callable[[], Tensor], like: Tensor, rows: int, name: str = "dense"
) -> Iterator[Way]:
    """Ways to multiply so many rows by a matrix, (.., in) -> (.., out).

    As it lies, transposed, packed by oneDNN, and in float32 for shorter numbers.

    Args:
        weight: gives the matrix, out x in.
        like: of its dtype and device.
        rows: how many.
        name: what a table calls them.

    >>> x, weight = torch.ones(8, 4), torch.ones(6, 4)
    >>> {float(w.make().run(x, None).sum()) for w in matrix_ways(lambda: weight, weight, 8)}
    {192.0}
    """
    for kind, lay in lays(like, rows):
        own = name + kind
        yield Way(own, partial(_laid, weight, lay, own))


def lays(like: Tensor, rows: int) -> Iterator[tuple[str, Lay]]:
    """How a matrix can be laid out, each with what is said of it; the likeliest first."""
    if widens(like):
        yield ", cast to float32", _cast_and_back
        yield ", in float32", _wide_and_back
    yield "", as_it_lies
    if packs(like, rows):
        yield ", packed", partial(packed, rows=rows)
    if not widens(like):
        yield ", transposed", transposed


def _laid(weight: Callable[[], Tensor], lay: Lay, name: str) -> Ready:
    return replace(lay(weight()), name=name)


def as_it_lies(weight: Tensor) -> Ready:
    """By ``F.linear``, the matrix row by row."""
    own = weight.contiguous()
    return Ready("", (own,), lambda x, bias: F.linear(x, own, bias))


def transposed(weight: Tensor) -> Ready:
    """By ``F.linear``, the matrix column by column."""
    own = weight.mT.contiguous().mT
    return Ready("", (own,), lambda x, bias: F.linear(x, own, bias))


def packed(weight: Tensor, rows: int) -> Ready:
    """By oneDNN, the matrix in the blocks that it wants for so many rows."""
    own = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), rows)
    product = torch.ops.mkldnn._linear_pointwise

    def run(x: Tensor, bias: Tensor | None) -> Tensor:
        return product(x, own, bias, "none", [], "")

    return Ready("", (own,), run)


def packs(weight: Tensor, rows: int) -> bool:
    """Whether oneDNN has a product for the dtype here, and so many rows are worth it."""
    return rows >= PACKED_ROWS and onednn_has("_reorder_linear_weight", weight)


def onednn_has(name: str, like: Tensor) -> bool:
    """Whether oneDNN is there, with an operation of that name for such numbers.

    >>> onednn_has("_no_such_operation", torch.ones(1))
    False
    """
    kernels: Any = torch.ops.mkldnn
    if like.device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return False
    has = {
        torch.float32: lambda: True,
        torch.bfloat16: kernels._is_mkldnn_bf16_supported,
        torch.float16: kernels._is_mkldnn_fp16_supported,
    }
    return hasattr(kernels, name) and like.dtype in has and bool(has[like.dtype]())


def widens(weight: Tensor) -> bool:
    """Whether float32 is a way to compute with these numbers."""
    short = weight.is_floating_point() and weight.dtype.itemsize < WIDE.itemsize
    return short and weight.device.type == "cpu"


def widened(ready: Ready) -> Ready:
    """What runs in float32, for inputs of fewer bits: their dtype comes out again."""

    def run(x: Tensor, bias: Tensor | None) -> Tensor:
        return ready.run(x.to(WIDE), None if bias is None else bias.to(WIDE)).to(x.dtype)

    return Ready(ready.name, ready.kept, run)


def cast(weight: Tensor) -> Ready:
    """By ``F.linear``, the matrix made of the inputs' dtype in every call."""
    own = weight.contiguous()
    return Ready("", (own,), lambda x, bias: F.linear(x, own.to(x.dtype), bias))


def _cast_and_back(weight: Tensor) -> Ready:
    return widened(cast(weight))


def _wide_and_back(weight: Tensor) -> Ready:
    return widened(as_it_lies(weight.to(WIDE)))
