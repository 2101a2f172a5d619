"""Layers with random numbers, as stored: their speed is that of any others."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from bondwise.choose.candidates import Terms
from bondwise.choose.seconds.place import Place
from bondwise.gauge.compact import gauge_form
from bondwise.gauge.forms import PinnedForm, PlainForm
from bondwise.gauge.pivots import pack
from bondwise.layers.convolution import TensorConv
from bondwise.layers.hosts.registry import built
from bondwise.layers.module import TensorLayer
from bondwise.layers.networks import Cores
from bondwise.layers.terms import Kind, Term
from bondwise.network.network import Network


def drawn(module: nn.Module, place: Place, terms: Terms, seed: int = 0) -> TensorLayer:
    """A layer of terms in the place of a module, gauge-free, with random numbers and positions.

    >>> from bondwise import lowrank
    >>> module = nn.Linear(4, 6)
    >>> drawn(module, Place.of(module), (lowrank(6, 4, 2),))
    TensorLinear('o a, a i -> (o) (i)', ranks={'a': 2}, gauge-free, stored=16)
    """
    draw = torch.Generator().manual_seed(seed)
    like = next(module.parameters())
    made: TensorLayer = built(module, [_term(term, draw, like) for term in terms])
    made.requires_grad_(False).eval()
    made.to(dtype=getattr(torch, place.dtype), device=like.device)
    if isinstance(made, TensorConv) and place.moves is not None:
        made.size = place.moves.size
    return made


def _term(term: Network | Kind, draw: torch.Generator, like: Tensor) -> Term:
    if isinstance(term, Network):
        term = Cores(term, gauge_form(term).pinned)
    numbers = tuple(_numbers(shape, draw, like) for shape in term.shapes)
    positions = _pivots(term, draw) if isinstance(term, Cores) else _positions(term, draw)
    return Term(term, numbers, term.places(positions) if positions else ())


def _numbers(shape: Sequence[int], draw: torch.Generator, like: Tensor) -> Tensor:
    """Of a size at which neither sums nor products leave the range of half precision."""
    numbers = torch.randn(tuple(shape), generator=draw)
    return (numbers / max(1, *shape) ** 0.5).to(like)


def _pivots(kind: Cores, draw: torch.Generator) -> tuple[Tensor, ...]:
    found = list[Tensor]()
    for form in kind.forms:
        if isinstance(form, PlainForm):
            continue
        blocks, rest, bond = form.view.shape
        if not isinstance(form, PinnedForm):
            found.append(torch.randint(rest, (bond,), generator=draw, dtype=torch.int32))
            continue
        each = [torch.randperm(rest, generator=draw)[:bond].sort().values for _ in range(blocks)]
        places = torch.cat([own + block * rest for block, own in enumerate(each)])
        found.append(pack(places, blocks * rest))
    return tuple(found)


def _positions(kind: Kind, draw: torch.Generator) -> tuple[Tensor, ...]:
    """Those of entries that are kept: so many of all there are."""
    if not kind.kept:
        return ()
    own: Any = kind
    places = torch.randperm(own.total, generator=draw)[: own.count].sort().values
    return (pack(places, own.total),)
