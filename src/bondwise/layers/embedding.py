"""The embedding: rows of a sum of terms."""

from collections.abc import Hashable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from bondwise.compute.fast.ready import Way
from bondwise.compute.run import Numbers
from bondwise.errors import ShapeError
from bondwise.layers import networks
from bondwise.layers.module import TensorLayer
from bondwise.layers.serve.row_ways import row_ways
from bondwise.layers.terms import Spec, Term
from bondwise.network.network import Network


class TensorEmbedding(TensorLayer):
    """An embedding whose table (entries x width) is a sum of terms: ``ids -> (*ids.shape, width)``.

    Rows of a network are looked up from the cores; the table is never built. ``padding_idx`` gets
    no gradient, and its row stays zero where it was zero in the source.

    Args:
        net: the network of the table.
        cores: one tensor per core; None draws them for training.
        padding_idx: a row, from the end where it is below 0, as in ``nn.Embedding``.
        zero_padding: whether that row gives zeros.
        device: where the cores are.
        dtype: what they are in.

    Raises:
        ShapeError: cores of other shapes than the network's, or a padding_idx that is no row.

    >>> from bondwise import lowrank
    >>> TensorEmbedding(lowrank(10, 4, 2))(torch.tensor([[1, 2, 3]])).shape
    torch.Size([1, 3, 4])
    """

    group = "embedding"

    def __init__(
        self,
        net: Network,
        cores: Sequence[Numbers] | None = None,
        padding_idx: int | None = None,
        *,
        zero_padding: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        own = networks.drawn(net, device, dtype) if cores is None else networks.network(net, cores)
        self._hold([own], padding_idx, zero_padding, device, dtype)

    @classmethod
    def of(
        cls,
        terms: Sequence[Term],
        padding_idx: int | None = None,
        *,
        zero_padding: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> "TensorEmbedding":
        """The embedding of some terms; the arguments are those of the constructor."""
        layer = cls.__new__(cls)
        layer._hold(terms, padding_idx, zero_padding, device, dtype)
        return layer

    def _hold(
        self,
        terms: Sequence[Term],
        padding_idx: int | None,
        zero_padding: bool,
        device: torch.device | str | None,
        dtype: torch.dtype | None,
    ) -> None:
        TensorLayer.__init__(self, terms, device=device, dtype=dtype)
        self.num_embeddings, self.embedding_dim = self.shape
        self.padding_idx = _row(padding_idx, self.num_embeddings)
        self.zero_padding = zero_padding

    @property
    def host(self) -> str:
        """The name of the host in whose place it stands."""
        return "embedding"

    def forward(self, ids: Tensor) -> Tensor:
        """Rows ``W[ids]``."""
        if ids.is_meta:  # a device that autocast does not know
            rows = self._rows(ids)
        else:
            with torch.autocast(ids.device.type, enabled=False):  # nn.Embedding heeds none
                rows = self._rows(ids)
        if self.padding_idx is None:
            return rows
        padding = torch.zeros_like(rows) if self.zero_padding else rows.detach()
        return torch.where((ids == self.padding_idx).unsqueeze(-1), padding, rows)

    def samples(self, rows: Sequence[int], met: Sequence[Tensor]) -> list[Tensor]:
        """Ids that it is prepared for: so many, and as many as it has met."""
        counts = sorted({*rows, *(ids.numel() for ids in met if ids.numel())})
        return [torch.randint(self.num_embeddings, (n,), device=self.like.device) for n in counts]

    def call(self, x: Tensor) -> tuple[Hashable, int]:
        """One kind, and how many ids there are."""
        return None, x.numel()

    def ways(self, x: Tensor) -> Iterator[Way]:  # noqa: ARG002
        """How it can run; the first is as built."""
        return row_ways(self)

    def dense_macs(self, rows: int) -> int:  # noqa: ARG002
        """None: rows are copied."""
        return 0

    def _rows(self, ids: Tensor) -> Tensor:
        if self.served is not None:
            rows = self.served.output(ids, *self.call(ids))
            if rows is not None:
                return rows
        parts, device = self.parts, ids.device
        found = (
            part.kind.rows(self._numbers(part), self._at(k, device), ids)
            for k, part in enumerate(parts)
        )
        rows = next(found)
        for more in found:
            rows = rows + more
        return rows

    def _masked(self, weight: Tensor) -> Tensor:
        """A row of zero padding is zero."""
        if self.padding_idx is None or not self.zero_padding:
            return weight
        at = torch.arange(self.num_embeddings, device=weight.device) == self.padding_idx
        return weight.masked_fill(at[:, None], 0.0)

    def spec(self) -> Spec:
        """All that an empty layer of this kind is built from, as plain JSON."""
        return super().spec() | {"padding_idx": self.padding_idx, "zero_padding": self.zero_padding}

    @classmethod
    def from_spec(
        cls, spec: Spec, terms: Sequence[Term], device: Any = None, dtype: torch.dtype | None = None
    ) -> "TensorEmbedding":
        """An empty layer, to be filled from a checkpoint."""
        padding = {key: spec[key] for key in ("padding_idx", "zero_padding")}
        return cls.of(terms, **padding, device=device, dtype=dtype)


def _row(padding_idx: int | None, count: int) -> int | None:
    if padding_idx is None:
        return None
    whole = isinstance(padding_idx, int) and not isinstance(padding_idx, bool)
    if whole and -count <= padding_idx < count:
        return padding_idx % count
    raise ShapeError(
        f"padding_idx={padding_idx!r} came; write None or a row, from {-count} to {count - 1}."
    )
