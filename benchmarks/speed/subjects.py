"""Who is timed: ours, dense, and each peer in each of its modes, all on the same cores.

A subject maps x (batch x in) to y (batch x out). Peers are imported where they are installed.
"""

import importlib
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from types import ModuleType

import opt_einsum
import torch
from torch import Tensor, nn

import bondwise as bw
from speed.grid import Case

OURS, DENSE, EINSUM = "ours", "dense", "opt_einsum"
BUILT, CACHED = "ours, as built", "opt_einsum, cached"
TLTORCH, TORCHTT = "TensorLy-Torch", "torchTT"
PEERS = (EINSUM, TLTORCH, TORCHTT)  # a subject's name begins with its peer's
PACKAGES = {TLTORCH: ("tltorch", "tensorly-torch==0.5.0"), TORCHTT: ("torchtt", "torchTT==0.5.0")}
MODES = ("factorized", "reconstructed")


@dataclass(frozen=True)
class Subject:
    """Something that multiplies by the weight, and the tensors that it would be trained by."""

    name: str
    run: Callable[[Tensor], Tensor]
    parameters: Sequence[Tensor]


@cache
def peer(name: str) -> ModuleType | None:
    """The package of a peer, or None where it is not installed."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torchTT: its C++ part, which no layer uses, is not there
        try:
            return importlib.import_module(PACKAGES[name][0])
        except ImportError:
            return None


def missing(names: Sequence[str] = PEERS) -> list[str]:
    """Peers that are not installed."""
    return [name for name in names if name in PACKAGES and peer(name) is None]


def how_to_install(names: Sequence[str]) -> str:
    """The one command; torch stays the one that constraints.txt names."""
    packages = " ".join(PACKAGES[name][1] for name in names)
    return f"pip install -c constraints.txt {packages}"


def makers(
    case: Case, cores: Sequence[Tensor], batch: int, peers: Sequence[str] = PEERS
) -> dict[str, Callable[[], Subject]]:
    """Every subject that the case has, by name, to be built one by one: a peer may refuse."""
    train = case.kind in ("training", "memory")
    made: dict[str, Callable[[], Subject]] = {
        OURS: lambda: ours(case.network, cores, train, None if train else batch),
        DENSE: lambda: dense(case.network, cores),
    }
    if not train:
        made[BUILT] = lambda: replace(ours(case.network, cores, train), name=BUILT)
    if EINSUM in peers:
        made[EINSUM] = lambda: expression(case.network, cores, batch)
        if not train:
            made[CACHED] = lambda: expression(case.network, cores, batch, cached=True)
    if TLTORCH in peers and peer(TLTORCH) and case.family in FACTORIZED:
        for mode in MODES:
            name = f"{TLTORCH}, {mode}"
            made[name] = lambda name=name, mode=mode: factorized(name, case, cores, mode)
    if TORCHTT in peers and peer(TORCHTT) and case.family == "mpo":
        made[f"{TORCHTT}, layer"] = lambda: train_layer(case.network, cores)
        made[f"{TORCHTT}, TT @ x"] = lambda: train_product(case.network, cores)
    return made


def ours(net: bw.Network, cores: Sequence[Tensor], train: bool, rows: int | None = None) -> Subject:
    """A layer as it is built, or prepared for so many rows."""
    layer = bw.TensorLinear(net, cores).train(train)
    if rows is not None:
        bw.prepare(layer, rows=rows)
    return Subject(OURS, layer, list(layer.parameters()))


def dense(net: bw.Network, cores: Sequence[Tensor]) -> Subject:
    out, inp = net.shape
    layer = nn.Linear(inp, out, bias=False, dtype=cores[0].dtype)
    with torch.no_grad():
        layer.weight.copy_(multiplied_out(net, cores))
    return Subject(DENSE, layer, [layer.weight])


def multiplied_out(net: bw.Network, cores: Sequence[Tensor]) -> Tensor:
    """The weight, multiplied in float32 or better."""
    wide = torch.promote_types(cores[0].dtype, torch.float32)
    return bw.dense(net, [core.to(wide) for core in cores])


def expression(
    net: bw.Network, cores: Sequence[Tensor], batch: int, *, cached: bool = False
) -> Subject:
    """``opt_einsum.contract_expression`` of cores and x, its path sought once for the batch.

    Cached, the cores are its constants: what it makes of them alone is made once.
    """
    rows, cols = ([index.name for index in side] for side in (net.rows, net.cols))
    symbols: dict[str, str] = {"": opt_einsum.get_symbol(0)}  # the batch
    for name in (name for core in net.names for name in core):
        symbols.setdefault(name, opt_einsum.get_symbol(len(symbols)))
    terms = ["".join(symbols[name] for name in core) for core in (*net.names, ("", *cols))]
    equation = f"{','.join(terms)}->{''.join(symbols[name] for name in ('', *rows))}"
    modes = tuple(index.size for index in net.cols)
    own = _parameters(cores)
    whole = [core.detach() for core in own] if cached else net.core_shapes
    found = opt_einsum.contract_expression(
        equation,
        *whole,
        (batch, *modes),
        optimize="auto-hq",
        **({"constants": range(len(own))} if cached else {}),
    )

    def run(x: Tensor) -> Tensor:
        given = (x.reshape(-1, *modes),) if cached else (*own, x.reshape(-1, *modes))
        return found(*given, backend="torch").reshape(len(x), -1)

    return Subject(CACHED if cached else EINSUM, run, own)


def factorized(name: str, case: Case, cores: Sequence[Tensor], mode: str) -> Subject:
    """``tltorch.FactorizedLinear`` holding our cores."""
    net = case.network
    rows, cols = (tuple(index.size for index in side) for side in (net.rows, net.cols))
    weight = FACTORIZED[case.family](net, cores, (rows, cols))
    layer = peer(TLTORCH).FactorizedLinear(
        cols,
        rows,
        bias=False,
        factorization=weight,
        implementation=mode,
        device=cores[0].device,
        dtype=cores[0].dtype,
    )
    return Subject(name, layer, list(layer.parameters()))


def _block_tt(net: bw.Network, cores: Sequence[Tensor], shape: tuple) -> nn.Module:
    ranks = (1, *net.bonds.values(), 1)
    own = _parameters(_four_axes(cores))
    return _formats().BlockTT(own, tensorized_shape=shape, rank=ranks)


def _cp(net: bw.Network, cores: Sequence[Tensor], shape: tuple) -> nn.Module:
    return _scaled_cp(_by_side(net, cores), shape)


def _low_rank(_: bw.Network, cores: Sequence[Tensor], shape: tuple) -> nn.Module:
    """A matrix of low rank is CP with one mode on each side."""
    return _scaled_cp([cores[0], cores[1].T.contiguous()], shape)


def _scaled_cp(factors: Sequence[Tensor], shape: tuple) -> nn.Module:
    rank = factors[0].shape[1]
    weights = nn.Parameter(torch.ones(rank, dtype=factors[0].dtype))
    return _formats().CPTensorized(weights, _parameters(factors), shape, rank=rank)


def _tucker(net: bw.Network, cores: Sequence[Tensor], shape: tuple) -> nn.Module:
    core, *factors = cores
    own = _parameters([core, *_by_side(net, factors, skip=1)])
    return _formats().TuckerTensorized(own[0], own[1:], shape, rank=tuple(core.shape))


FACTORIZED = {"mpo": _block_tt, "cp": _cp, "lowrank": _low_rank, "tucker": _tucker}


def _formats() -> ModuleType:
    return importlib.import_module("tltorch.factorized_tensors.tensorized_matrices")


def _by_side(net: bw.Network, factors: Sequence[Tensor], skip: int = 0) -> list[Tensor]:
    """One factor for every mode, rows first: ours come site by site."""
    held = {net.names[skip + k][0]: factor for k, factor in enumerate(factors)}
    return [held[index.name] for index in (*net.rows, *net.cols)]


def train_layer(net: bw.Network, cores: Sequence[Tensor]) -> Subject:
    """``torchtt.nn.LinearLayerTT`` holding our cores; it always adds a bias, here of zeros."""
    rows, cols = ([index.size for index in side] for side in (net.rows, net.cols))
    ranks = [1, *net.bonds.values(), 1]
    layer = importlib.import_module("torchtt.nn").LinearLayerTT(
        cols, rows, ranks, dtype=cores[0].dtype
    )
    layer.cores = nn.ParameterList(_parameters(_four_axes(cores)))
    return Subject(
        f"{TORCHTT}, layer",
        lambda x: layer(x.reshape(-1, *cols)).reshape(len(x), -1),
        list(layer.parameters()),
    )


def train_product(net: bw.Network, cores: Sequence[Tensor]) -> Subject:
    """``torchtt.TT @ x``, which adds no bias."""
    cols = [index.size for index in net.cols]
    own = _parameters(_four_axes(cores))
    operator = peer(TORCHTT).TT(own)
    return Subject(
        f"{TORCHTT}, TT @ x",
        lambda x: (operator @ x.reshape(-1, *cols)).reshape(len(x), -1),
        own,
    )


def _four_axes(cores: Sequence[Tensor]) -> list[Tensor]:
    """Cores of a train as (left bond, row, column, right bond), the ends with bonds of size 1."""
    first, *middle, last = cores
    return [first.unsqueeze(0), *middle, last.unsqueeze(-1)]


def _parameters(cores: Sequence[Tensor]) -> list[nn.Parameter]:
    return [nn.Parameter(core.detach().clone().contiguous()) for core in cores]
