"""Positions in a state dict: packed bytes with a checksum, so that what changed is refused."""

from collections.abc import Sequence
from zlib import crc32

import torch
from torch import Tensor

from bondwise.errors import ShapeError

CHECK = 4  # bytes of the checksum at the end


def packed(parts: Sequence[Tensor]) -> Tensor:
    """Bytes of integer tensors, one after the other, and their checksum: a fresh uint8 tensor.

    Every byte is a whole number up to 255, which bfloat16, float16 and ``copy_`` keep exactly.

    >>> packed([torch.tensor([1, 2], dtype=torch.int32)]).tolist()[:8]
    [1, 0, 0, 0, 2, 0, 0, 0]
    """
    rows = [part.detach().cpu().contiguous().view(torch.uint8).flatten() for part in parts]
    body = torch.cat([torch.empty(0, dtype=torch.uint8, device="cpu"), *rows])
    return torch.cat([body, _checksum(body)])


def unpacked(state: object, kinds: Sequence[tuple[int, torch.dtype]]) -> list[Tensor]:
    """The tensors that `packed` was given, of such lengths and dtypes.

    Raises:
        ShapeError: no tensor, of another size, no bytes, or bytes that were changed since.

    >>> unpacked(packed([torch.tensor([1, 2])]).bfloat16(), [(2, torch.int64)])
    [tensor([1, 2])]
    """
    count = size(kinds)
    if not isinstance(state, Tensor) or tuple(state.shape) != (count,):
        what = f"shape {tuple(state.shape)}" if isinstance(state, Tensor) else type(state).__name__
        raise ShapeError(f"positions of {what} came, {count} bytes were expected; {MEND}.")
    wide = state.detach().cpu().double()
    own = wide.clamp(0, 255).nan_to_num().to(torch.uint8)
    body = own[:-CHECK].clone()
    if not torch.equal(own.double(), wide) or not torch.equal(_checksum(body), own[-CHECK:]):
        raise ShapeError(
            f"positions came that are not those that were stored (averaged or cast?); {MEND}."
        )
    lengths = [length * dtype.itemsize for length, dtype in kinds]
    parts = zip(body.split(lengths), kinds, strict=True)
    return [part.clone().view(dtype) for part, (_, dtype) in parts]


MEND = "take them (_extra_state) from the file that was saved, as they are"


def size(kinds: Sequence[tuple[int, torch.dtype]]) -> int:
    """Bytes of what `packed` makes of tensors of such lengths and dtypes.

    >>> size([(2, torch.int32)])
    12
    """
    return sum(length * dtype.itemsize for length, dtype in kinds) + CHECK


def _checksum(body: Tensor) -> Tensor:
    value = crc32(bytes(body.tolist()))
    own = [value >> shift & 255 for shift in (0, 8, 16, 24)]
    return torch.tensor(own, dtype=torch.uint8, device="cpu")
