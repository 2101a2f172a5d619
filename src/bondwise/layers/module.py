"""The module that holds a weight as a list of terms, whatever its host."""

from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from math import ceil, prod
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd  # pyright: ignore[reportPrivateUsage]

from bondwise.compute.fast.ready import Way
from bondwise.draw.notebook import html
from bondwise.errors import CheckpointError, SelectionError, ShapeError
from bondwise.layers import places
from bondwise.layers.entries import dense as dense_term
from bondwise.layers.made import Made
from bondwise.layers.networks import Cores
from bondwise.layers.older import modern
from bondwise.layers.serve.served import Served
from bondwise.layers.terms import Kind, Places, Spec, Term, stored_bits
from bondwise.network.network import Network

GUARD, EXTRA = "weight", "_extra_state"
Piece = tuple[Kind, tuple[Tensor, ...], Places | None]  # of a weight: a term as it is now
_ALIASES = ("weight_orig", "weight_g", "weight_v", "weight_u")  # of torch's hooks on a weight


@dataclass(frozen=True)
class Part:
    """What a layer knows of one of its terms.

    Attributes:
        kind: what it is.
        names: of its parameters, one for each tensor of numbers.
        held: the parameters that there are: none for a tensor without numbers, as that of a core
            that is an identity, since FSDP cannot shard it.
        shapes: of all tensors of numbers.
    """

    kind: Kind
    names: tuple[str, ...]
    held: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]

    @classmethod
    def of(cls, at: int, kind: Kind) -> "Part":
        """The term at a place: its names are those of its kind for the first.

        A later one's begin with its place, and so do the first one's where a method has its name.
        """
        plain = at == 0 and not any(hasattr(TensorLayer, name) for name in kind.names)
        names = tuple(name if plain else f"t{at}_{name}" for name in kind.names)
        held = (n for n, shape in zip(names, kind.shapes, strict=True) if prod(shape))
        return cls(kind, names, tuple(held), kind.shapes)


class TensorLayer(nn.Module):
    """A dense weight (out x in) as a sum of terms.

    The output depends on the parameters alone: nothing is kept from one call to the next, unless
    `bondwise.prepare` is asked for it.

    Parameters of the first term have the names of its kind: ``core_0, core_1, ..`` of a network
    (2-D, as `bondwise.network.ranks.layouts` lays them out), ``entries``, or ``t0_dense``, since
    ``dense`` is a method. Those of the next terms have the term's number before them:
    ``t1_entries``, ``t2_core_0``, .. Positions are plain attributes that move with the layer. In a
    state dict they are its extra state: bytes with a checksum, so that positions that were averaged
    or cast are refused.

    ``weight`` is the dense weight, out x in, made when it is read; that of a convolution has the
    shape that torch gives it. Assigning a whole weight makes it the one term of the layer. A state
    dict has a guard under that name, a tensor of one element: a reader that does not know this
    layer meets a size that cannot be right.
    """

    group: ClassVar[str] = ""  # what a pattern calls it
    weight: Tensor
    hides_positions = False  # from a state dict, while a checkpoint without them is read
    served: Served | None = None  # what `bondwise.prepare` chose; never in copies or files

    def __init__(
        self, terms: Sequence[Term], *, device: Any = None, dtype: torch.dtype | None = None
    ) -> None:
        super().__init__()
        if not terms:
            raise ShapeError("No term came; write at least one, such as networks.network(..).")
        self.shape = terms[0].kind.shape
        self.parts: tuple[Part, ...] = ()
        self._places: tuple[Places | None, ...] = ()
        for term in terms:
            self.add(term, device=device, dtype=dtype)

    @property
    def host(self) -> str:
        """The name of the host that it came from."""
        raise NotImplementedError

    @property
    def terms(self) -> tuple[Term, ...]:
        """The terms, with the layer's own parameters."""
        return tuple(
            Term(part.kind, self._numbers(part), own)
            for part, own in zip(self.parts, self._places, strict=True)
        )

    def add(self, term: Any, *, device: Any = None, dtype: torch.dtype | None = None) -> None:
        """Append a term: the weight is then the sum of those before and of this one.

        Args:
            term: of the weight's shape; its numbers are copied.
            device: where the numbers go; the layer's by default.
            dtype: that they get; the layer's by default.

        Raises:
            ShapeError: it is of another shape.

        >>> from bondwise import TensorLinear, lowrank
        >>> from bondwise.layers.entries import columns
        >>> layer = TensorLinear(lowrank(6, 4, 2))
        >>> layer.add(columns(torch.tensor([1]), torch.ones(6, 1), (6, 4)))
        >>> [name for name, _ in layer.named_parameters()]
        ['core_0', 'core_1', 't1_entries']
        """
        if not isinstance(term, Term):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise ShapeError(
                f"A {type(term).__name__} came as a term; write one such as networks.network(net, "
                "cores) or entries.columns(positions, values, shape) of bondwise.layers."
            )
        term = self._own(term)
        if term.kind.shape != self.shape:
            raise ShapeError(
                f"A term of shape {term.kind.shape} came for a weight of {self.shape}; "
                "write one of that shape."
            )
        like = self.like if self.parts else None
        device = device if like is None or device is not None else like.device
        dtype = dtype if like is None or dtype is not None else like.dtype
        part = Part.of(len(self.parts), term.kind)
        for name, own in zip(part.names, term.numbers, strict=True):
            if name not in part.held:
                continue
            value = own.detach().to(device=device, dtype=dtype).contiguous().clone()
            self.register_parameter(name, nn.Parameter(value))
        self.parts += (part,)
        where = self.like.device
        own = term.places
        if own is not None and where.type != "meta":
            own = tuple(place.detach().to(where, copy=True) for place in own)
        self._places += (own,)
        self._changed()

    def _own(self, term: Term) -> Term:
        """A term as this layer holds it."""
        return term

    def _changed(self) -> None:
        """Called when the terms are others than they were."""
        self.served = None

    def call(self, x: Tensor) -> tuple[Hashable, int]:
        """What kind of call an input makes, of those that are prepared apart; and its rows."""
        return None, x.numel() // self.shape[1]

    def samples(self, rows: Sequence[int], met: Sequence[Tensor]) -> list[Tensor]:
        """Inputs that it is prepared for: of so many rows, and like those that it has met."""
        del rows, met
        return []

    def ways(self, x: Tensor) -> Iterator[Way]:
        """How it can run for such an input; the first is as built."""
        raise NotImplementedError

    def train(self, mode: bool = True) -> Any:
        """As for any module; what was prepared goes with the first step towards training."""
        if mode:
            self.served = None
        super().train(mode)
        return self

    def __getstate__(self) -> dict[str, Any]:
        return {name: own for name, own in self.__dict__.items() if name != "served"}

    def _replicate_for_data_parallel(self) -> Any:
        replica = super()._replicate_for_data_parallel()
        replica.served = None
        return replica

    def remove(self) -> Term:
        """Take the last term away, and give it back.

        Raises:
            ShapeError: it is the only one.
        """
        if len(self.parts) < 2:
            raise ShapeError("The only term of a weight cannot be removed; add another first.")
        last = self.terms[-1]
        for name in self.parts[-1].held:
            delattr(self, name)
        self.parts, self._places = self.parts[:-1], self._places[:-1]
        self._changed()
        return last

    @property
    def like(self) -> Tensor:
        """A tensor of the layer's device and dtype."""
        return getattr(self, self.parts[0].held[0])

    @property
    def network(self) -> Network:
        """The network of the first term that is one.

        Raises:
            ShapeError: none is.
        """
        return self._core_kind()[1].network

    @property
    def has_network(self) -> bool:
        """Whether a term is a network."""
        return any(isinstance(part.kind, Cores) for part in self.parts)

    def cores(self) -> tuple[Tensor, ...]:
        """The cores of that network, in core-axis order."""
        at, kind = self._core_kind()
        return kind.cores(self._numbers(self.parts[at]), self._at(at, self.like.device))

    def matrices(self) -> tuple[Tensor, ...]:
        """The parameters of that network, one 2-D tensor per core."""
        return self._numbers(self.parts[self._core_kind()[0]])

    def beside(self) -> tuple[Term, ...]:
        """All terms but that network."""
        at = self._core_kind()[0]
        return tuple(term for k, term in enumerate(self.terms) if k != at)

    @property
    def placed(self) -> bool:
        """Whether the positions of all terms are known."""
        return all(own is not None for own in self._places)

    @property
    def trains(self) -> bool:
        """Whether numbers of a term ask for gradients."""
        return any(own.requires_grad for own in self.stored()[0])

    def dense(self) -> Tensor:
        """The dense weight, out x in: the sum of all terms; differentiable."""
        return self._masked(_total(self._pieces()))

    def _masked(self, weight: Tensor) -> Tensor:
        """The sum of the terms, but for what a host gives without asking them."""
        return weight

    @property
    def weight_shape(self) -> tuple[int, ...]:
        """That of `weight`."""
        return self.shape

    def _weight(self, matrix: Tensor) -> Tensor:
        """What ``layer.weight`` is, of the sum of the terms."""
        return self._masked(matrix)

    def _matrix(self, weight: Tensor) -> Tensor:
        """The matrix, out x in, of a weight that is assigned."""
        return weight

    def stored(self) -> tuple[list[Tensor], int]:
        """The tensors of numbers that stand for the weight, and the bits of their positions."""
        numbers = [getattr(self, name) for part in self.parts for name in part.held]
        return numbers, sum(stored_bits(part.kind) for part in self.parts)

    @property
    def stored_numbers(self) -> int:
        """Numbers stored for this weight, positions counted as the bits they take."""
        return stored_numbers([self])

    @property
    def dense_bytes(self) -> int:
        """Bytes that the dense weight takes in the layer's dtype."""
        return prod(self.shape) * self.like.element_size()

    def resident_bytes(self) -> int:
        """Bytes in memory: parameters, buffers, and positions as they are used."""
        own = [*self.parameters(recurse=False), *self.buffers(recurse=False)]
        at = [place for some in self._places for place in some or ()]
        return sum(t.numel() * t.element_size() for t in (*own, *at))

    def macs(self, rows: int) -> int:
        """Multiplications for so many rows of input, of all terms."""
        return sum(part.kind.macs(rows) for part in self.parts)

    def dense_macs(self, rows: int) -> int:
        """Multiplications of the dense layer for so many rows of input."""
        return rows * prod(self.shape)

    def spec(self) -> Spec:
        """All that an empty layer of this kind is built from, as plain JSON."""
        return {"host": self.host, "terms": [part.kind.spec() for part in self.parts]}

    def extra_repr(self) -> str:
        """The terms, the bonds of a network and the stored numbers, as printed in a model."""
        stored = sum(numbers.numel() for numbers in self.stored()[0])
        return ", ".join([*(_words(part.kind) for part in self.parts), f"stored={stored}"])

    def _repr_html_(self) -> str:
        """The network as a notebook shows it, with what is stored of it."""
        out, inp = self.shape
        words = f"{type(self).__name__}, {out} x {inp}, {self.stored_numbers:,} numbers stored"
        return html(self.network, words) if self.has_network else f"<p>{words}</p>"

    def _core_kind(self) -> tuple[int, Cores]:
        for k, part in enumerate(self.parts):
            if isinstance(part.kind, Cores):
                return k, part.kind
        raise ShapeError(f"{type(self).__name__} has no network among its terms: {self!r}.")

    def _numbers(self, part: Part) -> tuple[Tensor, ...]:
        if len(part.held) == len(part.names):
            return tuple(getattr(self, name) for name in part.names)
        like = getattr(self, part.held[0])
        numbers: list[Tensor] = []
        for name, shape in zip(part.names, part.shapes, strict=True):
            numbers.append(getattr(self, name) if name in part.held else like.new_empty(shape))
        return tuple(numbers)

    def _at(self, term: int, device: torch.device) -> Places:
        """The positions of a term, where its data is."""
        return _there(self._places[term], device)

    def _pieces(self) -> list[Piece]:
        """What the weight is the sum of, as the parameters are now."""
        numbers = [self._numbers(part) for part in self.parts]
        kinds = [part.kind for part in self.parts]
        return list(zip(kinds, numbers, self._places, strict=True))

    def _apply(self, *args: Any, **kwargs: Any) -> "TensorLayer":
        self.served = None
        super()._apply(*args, **kwargs)
        device = self.like.device
        if device.type != "meta":
            self._places = tuple(
                None if own is None else tuple(place.to(device) for place in own)
                for own in self._places
            )
        return self

    def __getattr__(self, name: str) -> Any:
        if name == EXTRA:  # transformers fills whatever a state dict names by getattr and setattr
            return self.get_extra_state()
        if name != GUARD:
            return super().__getattr__(name)
        if torch.compiler.is_compiling():
            return self._weight(_total(self._pieces()))
        made = partial(_made, self._pieces(), self._weight)
        return Made(made, self.like, self.weight_shape, self._ask)

    def _ask(self, graded: bool) -> None:
        """What ``layer.weight.requires_grad_(..)`` does: the same for all that it is made from."""
        for own in self.stored()[0]:
            own.requires_grad_(graded)

    def __setattr__(self, name: str, value: Any) -> None:
        if isinstance(value, Tensor):
            self.__dict__.pop("served", None)
        if name == GUARD:
            self._assign(value)
        elif name == EXTRA:
            self.set_extra_state(value.detach())
        else:
            super().__setattr__(name, value)

    def register_parameter(self, name: str, param: Any) -> None:
        """As for any module; a weight is assigned, and what would stand for it is refused.

        Raises:
            SelectionError: it is a weight as torch's pruning or norms keep it.
        """
        if name == GUARD:
            self._assign(param)
        elif name in _ALIASES:
            raise SelectionError(
                f"{name} came for a layer of terms, whose weight is made when it is read; name a "
                f"parameter that it has, such as {self.parts[0].names[0]}, or merge it first."
            )
        else:
            super().register_parameter(name, param)

    def _assign(self, value: object) -> None:
        """A whole weight in place of all terms; the guard of a checkpoint is passed over."""
        if isinstance(value, Tensor) and value.numel() == 1 and value.ndim == 1:
            return
        shape = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
        fits = shape in (self.weight_shape, self.shape)
        if not isinstance(value, Tensor) or not fits or not value.is_floating_point():
            kind = f" and {value.dtype}" if isinstance(value, Tensor) else ""
            raise ShapeError(
                f"A weight of {shape}{kind} came; write a tensor of {self.weight_shape} of numbers "
                "with a point."
            )
        if isinstance(value, Made):
            value = value + 0  # what was read from another layer
        for part in self.parts:
            for name in part.held:
                delattr(self, name)
        own = value if isinstance(value, nn.Parameter) else nn.Parameter(value.detach())
        if shape != self.shape:
            own = nn.Parameter(self._matrix(own.detach()), own.requires_grad)
        self.parts, self._places = (Part.of(0, dense_term(own).kind),), ((),)
        super().register_parameter(self.parts[0].names[0], own)
        self._changed()

    def get_extra_state(self) -> Tensor:
        """The positions, packed: a fresh tensor; without data where they are not known yet."""
        kinds = self._kept()
        if any(own is None for own in self._places):
            return torch.empty(places.size(kinds), dtype=torch.uint8, device="meta")
        stored = [
            own
            for part, at in zip(self.parts, self._places, strict=True)
            for own in part.kind.stored(at or ())
        ]
        return places.packed(stored)

    def set_extra_state(self, state: object) -> None:
        """Take positions, once they are known to be right.

        Raises:
            ShapeError: they were changed, or repeat, are out of order or lie outside.
        """
        self.served = None
        if isinstance(state, Tensor) and state.is_meta:
            return
        device = self.like.device
        where = torch.device("cpu") if device.type == "meta" else device
        found = self.positions(state)
        self._places = tuple(tuple(place.to(where) for place in own) for own in found)

    def positions(self, state: object) -> tuple[Places, ...]:
        """Those of each term, as they are used, that an extra state holds.

        Raises:
            ShapeError: they were changed, or repeat, are out of order or lie outside.
        """
        rest = iter(places.unpacked(state, self._kept()))
        stored = [tuple(next(rest) for _ in part.kind.kept) for part in self.parts]
        return tuple(p.kind.places(own) for p, own in zip(self.parts, stored, strict=True))

    def _kept(self) -> list[tuple[int, torch.dtype]]:
        return [own for part in self.parts for own in part.kind.kept]

    def _save_to_state_dict(
        self, destination: dict[str, Any], prefix: str, keep_vars: bool
    ) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if not self._kept() or self.hides_positions:
            del destination[f"{prefix}{EXTRA}"]
        like = self.like
        if not like.is_meta:  # what a checkpoint is to fill has no guard
            destination[f"{prefix}{GUARD}"] = torch.zeros(1, dtype=like.dtype, device=like.device)

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: dict[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        self.served = None
        guard, extra = f"{prefix}{GUARD}", f"{prefix}{EXTRA}"
        if getattr(state_dict.get(guard), "shape", None) == (1,):
            del state_dict[guard]
        modern(state_dict, prefix, [part.kind for part in self.parts])
        for name in (name for part in self.parts for name in set(part.names) - set(part.held)):
            state_dict.pop(f"{prefix}{name}", None)  # until schema 2 there was a tensor of no size
        positions = state_dict.pop(extra, None)
        shapes = {n: s for p in self.parts for n, s in zip(p.names, p.kind.shapes, strict=True)}
        given = {name: state_dict.get(f"{prefix}{name}") for name in shapes}
        if any(t is not None and tuple(t.shape) != shapes[name] for name, t in given.items()):
            positions = self.get_extra_state()  # torch says which: they are another network's
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )
        if extra in missing_keys and (positions is not None or not self._kept()):
            missing_keys.remove(extra)
        if positions is not None:
            try:
                self.set_extra_state(positions)
            except ShapeError as error:
                raise CheckpointError(f"{prefix.rstrip('.') or 'The layer'}: {error}") from error


def check_module(model: object) -> None:
    """Refuse what is no module.

    Raises:
        SelectionError: saying what to give.
    """
    if not isinstance(model, nn.Module):
        also = ", such as the .model of what came" if hasattr(model, "model") else ""
        raise SelectionError(
            f"A {type(model).__name__} came as the model; give a torch.nn.Module{also}."
        )


def check_model(model: object) -> None:
    """Refuse what is no model: another thing, or a layer on its own, which nothing holds.

    Raises:
        SelectionError: saying what to give.
    """
    check_module(model)
    if isinstance(model, nn.Linear | nn.Embedding | _ConvNd | TensorLayer):
        raise SelectionError(
            f"A {type(model).__name__} on its own came as the model; put it in one, such as "
            "nn.Sequential(layer)."
        )


def stored_numbers(layers: Iterable[TensorLayer]) -> int:
    """Numbers that the weights of some layers store; what they share counts once.

    Positions count as the bits they take, in numbers of the layers' dtype, rounded up.

    >>> from bondwise import TensorLinear, lowrank
    >>> stored_numbers([TensorLinear(lowrank(6, 4, 2))])
    20
    """
    own = {id(layer): layer.stored() for layer in layers}.values()
    numbers = {id(t): t for some, _ in own for t in some}.values()
    width = max((8 * t.element_size() for t in numbers), default=1)
    return sum(t.numel() for t in numbers) + ceil(sum(bits for _, bits in own) / width)


def tensor_layers(model: nn.Module) -> Iterator[tuple[str, TensorLayer]]:
    """Every layer of terms with each of its paths."""
    for path, module in model.named_modules(remove_duplicate=False):
        if isinstance(module, TensorLayer):
            yield path, module


def _there(places: Places | None, device: torch.device) -> Places:
    if places is None:
        raise CheckpointError(
            "The positions of a layer of terms were never loaded; load the checkpoint with "
            "bondwise.load or from_pretrained."
        )
    return tuple(p if p.device == device else p.to(device) for p in places) if places else places


def _total(pieces: Sequence[Piece]) -> Tensor:
    device = pieces[0][1][0].device
    found = [kind.dense(numbers, _there(own, device)) for kind, numbers, own in pieces]
    return found[0] + sum(found[1:])


def _made(pieces: Sequence[Piece], masked: Callable[[Tensor], Tensor]) -> Tensor:
    if pieces[0][1][0].is_meta:
        raise SelectionError(
            "A weight was read whose terms have no data here (meta, or offloaded by device_map); "
            "load the model whole."
        )
    return masked(_total(pieces))


def _words(kind: Kind) -> str:
    if isinstance(kind, Cores):
        form = ", gauge-free" if any(kind.pinned) else ""
        return f"'{kind.network}', ranks={kind.network.bonds}{form}"
    return str(kind)
