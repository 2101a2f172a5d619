"""``nn.Embedding``: its table is the matrix, of which rows are looked up."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from bondwise.layers.embedding import TensorEmbedding
from bondwise.layers.hosts.registry import Host, Modes
from bondwise.layers.terms import Term


def matrix(module: nn.Embedding) -> Tensor:
    """The table, entries x width."""
    return module.weight.detach()


def modes(module: nn.Embedding) -> tuple[Modes, Modes]:
    """One mode on each side."""
    return (module.num_embeddings,), (module.embedding_dim,)


def inputs(module: Any, args: tuple[Any, ...], named: Mapping[str, Any]) -> None:
    """None: ids select rows, and no row of inputs meets the table."""


def build(module: Any, terms: Sequence[Term]) -> TensorEmbedding:
    """A table of terms; a padding row of zeros stays so. One of terms may stand for the module."""
    at = module.padding_idx
    zero = at is not None and not bool(module.weight[at].any())
    return TensorEmbedding.of(terms, at, zero_padding=zero)


def dense(layer: TensorEmbedding) -> nn.Embedding:
    """The table multiplied out."""
    table, at = layer.dense().detach(), layer.padding_idx
    made = nn.Embedding.from_pretrained(table, freeze=not layer.trains, padding_idx=at)
    return made.train(layer.training)


HOST = Host(
    "embedding",
    "embedding",
    "torch.nn.modules.sparse.Embedding",
    TensorEmbedding,
    matrix,
    modes,
    inputs,
    build,
    dense,
)
