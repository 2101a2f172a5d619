"""The embedding: a table that is a network, whose rows are looked up and never all built."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from bondwise.compute.lookup import lookup
from bondwise.gauge.compact import Compact, GaugeForm
from bondwise.layers.storage import Spec, TensorLayer, empty
from bondwise.network.network import Network


class TensorEmbedding(TensorLayer):
    """An embedding whose table (entries x width) is a network: ``ids -> (*ids.shape, width)``.

    Rows are looked up from the cores; the table is never built. ``padding_idx`` gets no gradient,
    and its row stays zero where it was zero in the source.

    >>> from bondwise import lowrank
    >>> TensorEmbedding(lowrank(10, 4, 2))(torch.tensor([[1, 2, 3]])).shape
    torch.Size([1, 3, 4])
    """

    kind = "embedding"

    def __init__(
        self,
        net: Network,
        cores: Sequence[Tensor] | None = None,
        padding_idx: int | None = None,
        *,
        zero_padding: bool = False,
        form: GaugeForm | None = None,
        pivots: Sequence[Tensor | None] = (),
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(net, cores, form=form, pivots=pivots, device=device, dtype=dtype)
        self.num_embeddings, self.embedding_dim = net.shape
        self.padding_idx, self.zero_padding = padding_idx, zero_padding

    def forward(self, ids: Tensor) -> Tensor:
        """Rows ``W[ids]``."""
        rows = lookup(self.network, self.cores(), ids)
        if self.padding_idx is None:
            return rows
        padding = torch.zeros_like(rows) if self.zero_padding else rows.detach()
        return torch.where((ids == self.padding_idx).unsqueeze(-1), padding, rows)

    def spec(self) -> Spec:
        """All that an empty layer of this kind is built from, as plain JSON."""
        return super().spec() | {"padding_idx": self.padding_idx, "zero_padding": self.zero_padding}

    @classmethod
    def from_spec(
        cls, spec: Spec, device: Any = None, dtype: torch.dtype | None = None
    ) -> "TensorEmbedding":
        """An empty layer, to be filled from a checkpoint."""
        padding = {key: spec[key] for key in ("padding_idx", "zero_padding")}
        return cls(**empty(spec, device, dtype), **padding)

    @classmethod
    def from_compact(cls, stored: Compact, embedding: nn.Embedding) -> "TensorEmbedding":
        """The layer that stores an embedding's table without its gauge."""
        at = embedding.padding_idx
        zero = at is not None and not bool(embedding.weight[at].any())
        return cls(
            stored.network,
            stored.free,
            at,
            zero_padding=zero,
            form=stored.form,
            pivots=stored.pivots,
        )
