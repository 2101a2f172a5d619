"""The form in which a layer of terms goes into an ONNX graph: the one that is fastest there.

As built, a layer chooses its plan by the number of rows, and low rank gathers its inputs by their
pivots. A graph has one form for all sizes, and a gather along the last axis costs onnxruntime more
than the multiplications that it saves. So cores are whole in a graph, and a layer is either its
network, along one order of products, or its whole weight. Both are made of the numbers as they are
stored: a runtime works them out once, when it reads the file, which stays small.
"""

from collections.abc import Hashable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from math import prod
from sys import maxsize
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bondwise.checkpoint.onnx.contest import Contest, fastest
from bondwise.checkpoint.onnx.inputs import Inputs
from bondwise.compute.path import run
from bondwise.compute.plan import Plan
from bondwise.compute.product import prepare
from bondwise.layers.entries import dense
from bondwise.layers.linear import TensorLinear
from bondwise.layers.module import TensorLayer, tensor_layers
from bondwise.layers.networks import Cores, row_plans
from bondwise.layers.prepare.met import meet
from bondwise.layers.terms import Kind, Places, Spec, Term
from bondwise.network.network import Network

NETWORK, WHOLE = "network", "whole"
MOST = 0.95  # of dense's multiplications, for a network of matrices alone to be the faster one
SHOWN = (1, 8)  # samples that a layer is measured with
TOKENS = 128  # of each, where a model reads text

Numbers = tuple[Tensor, ...]


@dataclass(frozen=True)
class Planned(Cores):
    """A network that runs by one plan whatever the number of rows, its cores whole.

    Attributes:
        plan: the one.
    """

    plan: Plan

    def _ways(self) -> tuple[bool, tuple[tuple[int, Plan], ...]]:
        return False, ((maxsize, self.plan),)


@dataclass(frozen=True)
class Whole(Kind):
    """Several terms as one weight, which is made of them.

    Attributes:
        kinds: theirs.
    """

    kind: ClassVar[str] = WHOLE
    kinds: tuple[Kind, ...]

    @property
    def shape(self) -> tuple[int, int]:  # pyright: ignore[reportIncompatibleVariableOverride]
        """(out, in)."""
        return self.kinds[0].shape

    @property
    def names(self) -> tuple[str, ...]:
        """Those of each kind, with its place before them."""
        return tuple(f"w{k}_{name}" for k, own in enumerate(self.kinds) for name in own.names)

    @property
    def shapes(self) -> tuple[tuple[int, ...], ...]:
        """Those of all kinds."""
        return tuple(shape for own in self.kinds for shape in own.shapes)

    def dense(self, numbers: Numbers, places: Places) -> Tensor:
        """The sum."""
        given, at = iter(numbers), iter(places)
        parts = [
            own.dense(tuple(next(given) for _ in own.names), tuple(next(at) for _ in own.kept))
            for own in self.kinds
        ]
        return sum(parts[1:], parts[0])

    def apply(
        self, numbers: Numbers, places: Places, x: Tensor, bias: Tensor | None = None
    ) -> Tensor:
        """One product."""
        return F.linear(x, self.dense(numbers, places), bias)

    def macs(self, rows: int) -> int:
        """As dense."""
        return rows * prod(self.shape)

    def spec(self) -> Spec:
        """Those of all kinds; it is never written."""
        return {"kind": self.kind, "terms": [own.spec() for own in self.kinds]}


@dataclass(frozen=True, eq=False)
class Formed:
    """A model whose layers are as a graph has them.

    Attributes:
        model: a copy that shares all numbers with the one it was made of.
        forms: `NETWORK` or `WHOLE`, by path.
    """

    model: nn.Module
    forms: dict[str, str]


def formed(model: nn.Module, inputs: Inputs, source: str) -> Formed:
    """A copy of a model whose layers have the forms that are fastest in onnxruntime.

    Networks that are matrices alone are judged by their multiplications. Others are measured here,
    on one thread, for one sample and for eight.

    Args:
        model: in evaluation mode; it is not changed.
        inputs: what it takes.
        source: what an error calls it.

    Raises:
        CheckpointError: a layer cannot be exported.
    """
    tensors = [*model.parameters(), *model.buffers()]
    twin = deepcopy(model, {id(own): own for own in tensors}).eval()
    layers = dict(tensor_layers(twin))
    options = {id(layer): _options(layer) for layer in layers.values()}
    sizes = _met(twin, layers, inputs) if any(len(own) > 1 for own in options.values()) else {}
    won = _measured(layers, options, sizes, source)
    forms: dict[str, str] = {}
    for path, layer in layers.items():
        form = options[id(layer)][won.get(id(layer), 0)]
        forms[path] = form.name
        twin.set_submodule(path, form.layer)
    return Formed(twin, forms)


@dataclass(frozen=True, eq=False)
class Form:
    """One that a layer may have.

    Attributes:
        name: `NETWORK` or `WHOLE`.
        layer: in it, made of the numbers as they are stored.
        timed: the same, its weights worked out beforehand.
    """

    name: str
    layer: TensorLayer
    timed: nn.Module


def _options(layer: TensorLayer) -> list[Form]:
    """The forms that a layer may have; the first where nothing is measured."""
    terms = [_plain(term) for term in layer.terms]
    plain = _made(layer, terms)
    if layer.host == "embedding":  # rows of it are looked up, which is never the whole weight
        return [Form(NETWORK, plain, plain)]
    whole = Form(WHOLE, _whole(layer, terms), _made(layer, [dense(layer.dense().detach())]))
    if not layer.has_network:
        return [whole]
    if not isinstance(layer, TensorLinear):
        return [Form(NETWORK, plain, plain), whole]
    at = next(k for k, term in enumerate(terms) if isinstance(term.kind, Cores))
    plans = [plan for plan in _plans(layer.network) if not plan.whole]
    forms = list[Form]()
    for plan in plans:
        own = [*terms[:at], _by(plan, terms[at]), *terms[at + 1 :]]
        forms.append(Form(NETWORK, _made(layer, own), _Path(plan, layer)))
    if len(plans) == len(terms) == 1 and _matrices(plans[0]):
        return forms if _macs(plans[0]) <= MOST * prod(layer.shape) else [whole]
    return [*forms, whole]


class _Path(nn.Module):
    """A layer along a plan whose weights are made beforehand."""

    def __init__(self, plan: Plan, layer: TensorLinear) -> None:
        super().__init__()
        self.plan = plan
        self.weights = nn.ParameterList(own.detach() for own in prepare(plan, layer.cores()))
        self.bias = layer.bias
        self.beside = _made(layer, layer.beside()) if layer.beside() else None

    def forward(self, x: Tensor) -> Tensor:
        """As the layer, but for a bias that is added twice where there are other terms."""
        y = run(self.plan, [*self.weights], x, self.bias)
        return y if self.beside is None else y + self.beside(x)


def _plans(net: Network) -> Iterator[Plan]:
    """Those of a network for all numbers of rows, each order once."""
    seen = set[Hashable]()
    for _, plan in row_plans(net):
        order = plan.program.resized(1)
        if order not in seen:
            seen.add(order)
            yield plan


def _matrices(plan: Plan) -> bool:
    """Whether the path is matrices alone, one after the other."""
    moved = plan.program.result is not None and plan.program.result.order
    return not moved and all(step.kind == "linear" and not step.moved for step in plan.path)


def _macs(plan: Plan) -> float:
    """Multiplications for a row."""
    return sum(step.macs for step in plan.path) / plan.batch


def _plain(term: Term) -> Term:
    """A term that gathers nothing by pivots."""
    if not isinstance(term.kind, Cores) or not term.kind.gathers:
        return term
    return _by(row_plans(term.kind.network)[-1][1], term)


def _by(plan: Plan, term: Term) -> Term:
    kind = term.kind
    assert isinstance(kind, Cores)
    assert term.places is not None
    made = Planned(kind.network, kind.pinned, plan)
    return Term(made, term.numbers, made.places(kind.stored(term.places)))


def _whole(layer: TensorLayer, terms: Sequence[Term]) -> TensorLayer:
    places = [place for term in terms for place in term.places or ()]
    numbers = [own for term in terms for own in term.numbers]
    kind = Whole(tuple(term.kind for term in terms))
    return _made(layer, [Term(kind, tuple(numbers), tuple(places))])


def _made(layer: TensorLayer, terms: Sequence[Term]) -> TensorLayer:
    """The layer with other terms for its weight."""
    like = layer.like
    with torch.random.fork_rng(devices=[]):  # a bias is drawn, and replaced
        made = type(layer).from_spec(layer.spec(), terms, like.device, like.dtype)  # pyright: ignore
    if getattr(layer, "bias", None) is not None:
        made.bias = layer.bias
    return made.eval()


def _met(
    model: nn.Module, layers: Mapping[str, TensorLayer], inputs: Inputs
) -> dict[str, list[tuple[int, ...]]]:
    """The sizes of what each layer meets, samples or rows first."""
    found: dict[str, list[tuple[int, ...]]] = {}
    for batch in SHOWN:
        values = inputs.example(batch, None if inputs.longest is None else TOKENS)
        given = values if inputs.named else tuple(values.values())
        for path, own in meet(model, layers, given).inputs.items():
            found.setdefault(path, []).extend(_size(layers[path], x) for x in own)
    return found


def _size(layer: TensorLayer, x: Tensor) -> tuple[int, ...]:
    if isinstance(layer, TensorLinear):
        return max(1, x.numel() // layer.in_features), layer.in_features
    return tuple(x.shape)


def _measured(
    layers: Mapping[str, TensorLayer],
    options: Mapping[int, Sequence[Form]],
    sizes: Mapping[str, list[tuple[int, ...]]],
    source: str,
) -> dict[int, int]:
    """Which option of each layer was fastest; equal layers are measured once."""
    contests: dict[Hashable, Contest] = {}
    keys: dict[int, Hashable] = {}
    for path, layer in layers.items():
        own = options[id(layer)]
        met = list(dict.fromkeys(sizes.get(path, ())))
        met = [size for size in met if size[1:] == met[0][1:]]
        if len(own) < 2 or not met:
            continue
        key = (str(layer.spec()), layer.like.dtype, tuple(met))
        keys[id(layer)] = key
        if key not in contests:
            contests[key] = Contest([form.timed for form in own], met)
    won = dict(zip(contests, fastest(list(contests.values()), source), strict=True))
    return {which: won[key] for which, key in keys.items()}
