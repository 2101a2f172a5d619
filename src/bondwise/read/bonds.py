"""Which bonds a model has, what kind each is, and a network with some values of a bond alone."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from difflib import SequenceMatcher
from math import prod

import opt_einsum
import torch
from torch import Tensor, nn

from bondwise.compute.stack import cheapest_order
from bondwise.errors import NetworkError, SelectionError, ShapeError
from bondwise.gauge.bonds import Branch, unfolding
from bondwise.layers.hosts.convolution import geometry_of
from bondwise.layers.module import TensorLayer
from bondwise.network.network import Index, Network

CUT, BLOCKS, TERMS = "cut", "blocks", "terms"


@dataclass(frozen=True, eq=False)
class Bond:
    """One bond of one layer, with the cores in the gauge in which it is read.

    The weight is a sum over the values of the bond, ``W = sum_b W_b``: each term has the bond
    fixed on all cores that it sits on. What a term means depends on the kind of bond:

    - "cut": without it the network falls in two, and ``W_b`` is a product of two sides. The gauge
      is any invertible matrix.
    - "blocks": it cuts every block of the weight on its own (block tensor trains), and has a gauge
      for each.
    - "terms": it sits on three or more cores (CP), whose terms are fixed but for their scales, or
      lies on a loop (rings), where no gauge is canonical.

    Attributes:
        layer: the path of the layer in its model.
        network: of the layer.
        cores: in core-axis order, in float32 or better.
        name: of the bond.
        gauge: in which the cores are.
    """

    layer: str
    network: Network
    cores: tuple[Tensor, ...] = field(repr=False)
    name: str
    gauge: str = "raw"

    @property
    def size(self) -> int:
        """How many values the bond has: its rank."""
        return self.network.bonds[self.name]

    @property
    def kind(self) -> str:
        """One of "cut", "blocks" and "terms"."""
        return kind(self.network, self.name)

    @property
    def order(self) -> tuple[int, ...]:
        """The sweep: cores as the input meets them, those of the cheapest stack."""
        return cheapest_order(self.network)


def bonds(model: nn.Module) -> list[Bond]:
    """All bonds of all tensorized layers, in the order of the model; a shared layer comes once.

    >>> from bondwise import TensorLinear, mpo
    >>> found = bonds(nn.Sequential(TensorLinear(mpo((2, 3), (2, 2), 4))))
    >>> [(bond.layer, bond.name, bond.size, bond.kind) for bond in found]
    [('0', 'a', 4, 'cut')]

    Raises:
        SelectionError: the model has no tensorized layer.
    """
    found = [
        Bond(path, layer.network, readable(layer), name)
        for path, layer in layers(model).items()
        for name in layer.network.bonds
    ]
    if not found:
        raise SelectionError(
            f"{type(model).__name__} has no bond to read; give a tensorized model, as "
            "bondwise.tensorize or bondwise compress makes it."
        )
    return found


def layers(model: nn.Module) -> dict[str, TensorLayer]:
    """The tensorized layers of a model by their paths, each once."""
    found = ((path, m) for path, m in model.named_modules() if isinstance(m, TensorLayer))
    return {path: layer for path, layer in found if layer.has_network}


def bond(model: nn.Module, layer: str = "", name: str | None = None) -> Bond:
    """One bond of a model, or of a layer given alone.

    Args:
        model: a tensorized model, or a tensorized layer.
        layer: the layer's path; "" where the layer itself is given.
        name: of the bond; None for the first one.

    Raises:
        SelectionError: no such layer or bond, with the nearest names; no tensorized layer at all.

    >>> from bondwise import TensorLinear, lowrank
    >>> bond(nn.Sequential(TensorLinear(lowrank(6, 4, 2))), "0").size
    2
    """
    known = layers(model)
    if layer not in known:
        if not known:
            bonds(model)  # says what is missing
        raise SelectionError(
            f"No tensorized layer {layer!r} in {type(model).__name__}; {nearest(layer, known)}."
        )
    own = known[layer]
    names = list(own.network.bonds)
    if not names:
        raise SelectionError(f"Layer {layer!r} is '{own.network}', without a bond; read another.")
    if name is not None and name not in names:
        raise SelectionError(f"No bond {name!r} in layer {layer!r}; {nearest(name, names)}.")
    return Bond(layer, own.network, readable(own), name or names[0])


def check_rows(model: nn.Module, names: Iterable[str]) -> None:
    """Refuse layers whose inputs are no rows of vectors: the patches of a convolution.

    Raises:
        SelectionError: naming the first.
    """
    for name in names:
        if geometry_of(model.get_submodule(name)) is not None:
            raise SelectionError(
                f"Layer {name!r} is a convolution, whose bonds are read from its weight alone; "
                "name layers that meet vectors, or read spectra(..), gauge(..) and gram(..) of it."
            )


def readable(layer: TensorLayer) -> tuple[Tensor, ...]:
    """A layer's cores as they are read: in float32 at least, without gradients."""
    cores = layer.cores()
    wide = torch.promote_types(cores[0].dtype, torch.float32)
    return tuple(core.detach().to(wide) for core in cores)


def part(bond: Bond, indices: Iterable[int]) -> tuple[Network, tuple[Tensor, ...]]:
    """The network that has some values of a bond alone: ``sum of W_b`` over them.

    Raises:
        ShapeError: a value that the bond does not have, or none.

    >>> from bondwise import TensorLinear, lowrank
    >>> net, cores = part(bond(TensorLinear(lowrank(6, 4, 3))), [0, 2])
    >>> net.bonds
    {'a': 2}
    """
    chosen = chosen_indices(bond, indices)
    net = bond.network.resize(**{bond.name: len(chosen)})
    at = torch.tensor(chosen, device=bond.cores[0].device)
    cores = tuple(
        core.index_select(names.index(bond.name), at) if bond.name in names else core
        for core, names in zip(bond.cores, net.names, strict=True)
    )
    return net, cores


def chosen_indices(bond: Bond, indices: Iterable[int]) -> list[int]:
    """Values of a bond as a list, looked at.

    Raises:
        ShapeError: a value that the bond does not have, one that is twice there, or none.
    """
    chosen = [int(k) for k in indices]
    wrong = [k for k in chosen if not 0 <= k < bond.size]
    if wrong or not chosen or len(set(chosen)) < len(chosen):
        came = f"index {wrong[0]}" if wrong else f"indices {chosen}"
        raise ShapeError(
            f"{came} came for bond {bond.name} of layer {bond.layer!r}; "
            f"write some of 0 to {bond.size - 1}, each once."
        )
    return chosen


def opened(net: Network, name: str, both: bool = False) -> Network:
    """The network whose rows begin with a bond, and its columns too where it is both.

    So the outputs are those of each term alone: ``(r out) x in``, or block diagonal,
    ``(r out) x (r in)``.
    """
    own = (Index(name, net.sizes[name]),)
    return Network(net.cores, own + net.rows, own + net.cols if both else net.cols)


@dataclass(frozen=True)
class Sides:
    """The two sides of a bond that cuts: which cores, and their networks with the bond as columns.

    For each value of the block indices the weight is ``first second^T`` over the bond, where first
    is the side of the bond's first core.
    """

    first: tuple[int, ...]
    second: tuple[int, ...]
    blocks: tuple[Index, ...]


def sides(net: Network, name: str) -> Sides | None:
    """The two sides of a bond; None where it does not cut the network.

    >>> from bondwise import btt, mpo, ring
    >>> sides(mpo((2, 2, 2), (2, 2, 2), 4), "a")
    Sides(first=(0,), second=(1, 2), blocks=())
    >>> [index.name for index in sides(btt((2, 2), (3, 3), 1), "a").blocks]
    ['o2', 'i1']
    >>> sides(ring((2, 2), (2, 2), 4), "a") is None
    True
    """
    places = net.places[name]
    if len(places) != 2 or name in net.open:
        return None
    one, two = (_reach(net, start, name) for start in places)
    if one & two:
        return None
    left, right = ({i for k in side for i in net.cores[k]} for side in (one, two))
    shared = {i.name for i in (left & right) if i.name in net.open}
    ends = unfolding(net, Branch(places[0], places[1], (name,)), places[0])
    at_ends = set(net.names[places[0]]) & set(net.names[places[1]]) & net.open
    through = {i.name for i in net.rows} & {i.name for i in net.cols}
    loose = set(range(len(net.cores))) - one - two
    if not shared <= at_ends or shared & through or loose or ends.shape[2] != net.sizes[name]:
        return None
    blocks = tuple(Index(n, size) for n, size in net.sizes.items() if n in shared)
    return Sides(tuple(sorted(one)), tuple(sorted(two)), blocks)


def kind(net: Network, name: str) -> str:
    """Which kind of bond it is; see `Bond`."""
    found = sides(net, name)
    if found is None:
        return TERMS
    return BLOCKS if found.blocks else CUT


def matrices(bond: Bond) -> tuple[Tensor, Tensor]:
    """Both sides of a bond as matrices in float64, ``(blocks, rest, rank)``.

    The rest are the side's other open indices, in the network's order of first use.

    Raises:
        NetworkError: the bond does not cut the network.
    """
    found = sides(bond.network, bond.name)
    if found is None:
        raise NetworkError(_why(bond))
    return tuple(_matrix(bond, side, found.blocks) for side in (found.first, found.second))  # type: ignore[return-value]


def _matrix(bond: Bond, side: Sequence[int], blocks: Sequence[Index]) -> Tensor:
    """One side, contracted."""
    net = bond.network
    names = {name for k in side for name in net.names[k]}
    last = Index(bond.name, bond.size)
    rest = [n for n in net.sizes if n in names & net.open and n not in {b.name for b in blocks}]
    operands: list[Tensor | list[str]] = []
    for k in side:
        operands += [bond.cores[k].double(), list(net.names[k])]
    out = [*(b.name for b in blocks), *rest, bond.name]
    found: Tensor = opt_einsum.contract(*operands, out)
    return found.reshape(prod(b.size for b in blocks), -1, last.size)


def _reach(net: Network, start: int, without: str) -> set[int]:
    """The cores that summed indices join to one, with a bond taken away."""
    seen, todo = {start}, [start]
    while todo:
        names = {n for n in net.names[todo.pop()] if n in net.bonds and n != without}
        for k, others in enumerate(net.names):
            if k not in seen and names & set(others):
                seen.add(k)
                todo.append(k)
    return seen


def _why(bond: Bond) -> str:
    """Why a bond does not cut, in one sentence."""
    net = bond.network
    places = net.places[bond.name]
    cuts = [name for name in net.bonds if sides(net, name) is not None]
    said = f"sits on {len(places)} cores" if len(places) != 2 else "lies on a loop"
    other = f"; take {', '.join(cuts)}" if cuts else "; its raw gauge is what there is"
    return f"Bond {bond.name} of '{net}' {said} and does not cut it in two{other}."


def nearest(name: str, known: Iterable[str]) -> str:
    """The three names that are most alike, a part of a path beside as many of its last parts.

    >>> nearest("o_prj", ["layers.0.up_proj", "layers.0.o_proj"])
    'the nearest are layers.0.o_proj, layers.0.up_proj'
    """
    parts = name.count(".") + 1

    def unlike(other: str) -> float:
        return -SequenceMatcher(None, name, ".".join(other.split(".")[-parts:])).ratio()

    return f"the nearest are {', '.join(sorted(known, key=unlike)[:3])}"
