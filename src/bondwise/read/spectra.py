"""The spectrum of every bond: Schmidt values, entropy, effective rank, and what chance would give.

A bare entropy misleads: that of a weight with nothing in it is high, but not the highest, and
depends on the sizes. So every spectrum comes with the bands of its nulls (`bondwise.read.nulls`).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from math import exp, log

import torch
from torch import Tensor, nn

from bondwise.choose.select import Patterns, check_finite, matches
from bondwise.compute.run import dense
from bondwise.errors import SelectionError
from bondwise.layers.hosts.registry import matrix_of
from bondwise.layers.module import TensorLayer
from bondwise.network.network import Network
from bondwise.progress import Progress, silent
from bondwise.read.bonds import BLOCKS, CUT, TERMS, Bond, readable
from bondwise.read.nulls import NULLS, Band, Subject, bands, check
from bondwise.read.schmidt import (
    Fold,
    cut,
    entropy,
    folded,
    profile,
    schmidt_values,
    term_norms,
)


@dataclass(frozen=True, eq=False)
class Spectrum:
    """How the norm of a weight is spread over the values of one bond.

    Attributes:
        layer: its path in the model; "" for a layer given alone.
        bond: its name.
        kind: "cut", "blocks" or "terms", as of a `bondwise.read.bonds.Bond`.
        shown: what the values are, in a sentence.
        network: of the layer; for a dense weight, that as which it was folded for the look.
        values: descending, float64; with the units of the weight.
        nulls: a `bondwise.read.nulls.Band` for each null, by name.
    """

    layer: str
    bond: str
    kind: str
    shown: str
    network: Network
    values: Tensor = field(repr=False)
    nulls: dict[str, Band]

    @property
    def entropy(self) -> float:
        """In nats, of ``p = values^2 / sum values^2``; 0 where the weight is zero."""
        return float(entropy(self.values))

    @property
    def effective_rank(self) -> float:
        """``exp(entropy)``: so many equal values would have it (Roy and Vetterli 2007)."""
        return exp(self.entropy)

    @property
    def normalised(self) -> float:
        """Entropy by the largest that so many values can have: 0 to 1; 0 for a single value."""
        return self.entropy / log(len(self.values)) if len(self.values) > 1 else 0.0


@torch.no_grad()
def spectra(
    model: nn.Module,
    *,
    names: Patterns | None = None,
    fold: Fold = "auto",
    nulls: Sequence[str] = tuple(NULLS),
    draws: int = 20,
    seed: int = 0,
    progress: Progress = silent,
) -> list[Spectrum]:
    """The spectra of all bonds of a model, tensorized, dense or mixed, which is left as it is.

    The Schmidt values of a bond that cuts are the singular values of the weight, unfolded into the
    bond's two sides (Schmidt 1907; for weights Gao et al. 2020). A dense weight has bonds once it
    is folded to an MPO for the look. Where a bond cuts each block
    of a weight on its own, the spectrum is the root mean square over the blocks of their sorted
    values. Where it does not cut (rings, CP) it is that of the norms of the terms ``W_b``, which
    depend on the gauge.

    >>> from bondwise import TensorLinear, mpo
    >>> linear = nn.Linear(4, 4)
    >>> _ = nn.init.eye_(linear.weight)       # a Kronecker product: nothing on the bond
    >>> [found] = spectra(linear, draws=2)
    >>> found.bond, len(found.values), round(found.entropy, 6)
    ('a', 4, 0.0)
    >>> mixed = nn.Sequential(TensorLinear(mpo((2, 2, 2), (2, 2, 2), 4)), nn.Linear(8, 6))
    >>> [(s.layer, s.bond, len(s.values)) for s in spectra(mixed, draws=2)]
    [('0', 'a', 4), ('0', 'b', 4), ('1', 'a', 4)]

    Args:
        model: a model, or a layer alone.
        names: patterns as `bondwise.plan_model` takes for its targets; "linear" and "embedding"
            stand for tensorized layers too. By default all tensorized layers and all dense linear
            ones but the head.
        fold: how dense weights are folded: "auto", ``{pattern: (rows, cols)}`` or a function of
            path and module.
        nulls: which of "shuffled", "signs", "gaussian", "noise" and "gauge".
        draws: of each null.
        seed: of the draws; they depend on the names of layer and bond, not on what else is read.
        progress: called as (stage, done, total), a layer at a time.

    Raises:
        SelectionError: nothing to read, or a name, null or fold that is not known.
        ShapeError: modes that do not multiply to a weight's size.
        FitError: a weight holds values that are not finite.
        DataError: fewer than two draws.
    """
    check(nulls, draws)
    work = _chosen(model, names)
    config = getattr(model, "config", None)
    nets = {
        path: m.network if isinstance(m, TensorLayer) else folded(path, m, fold, config)
        for path, m in work.items()
    }
    found: list[Spectrum] = []
    progress("spectra", 0, len(work))
    for done, (path, module) in enumerate(work.items(), start=1):
        for bare, subject in _subjects(path, module, nets[path]):
            label = f"{bare.layer}|{bare.bond}"
            found.append(replace(bare, nulls=bands(subject, nulls, draws, seed, label)))
        progress("spectra", done, len(work))
    return found


def _subjects(path: str, module: nn.Module, net: Network) -> Iterator[tuple[Spectrum, Subject]]:
    """The spectrum of every bond of one layer, still without nulls."""
    if not isinstance(module, TensorLayer):
        yield from _of_dense(path, matrix_of(module), net)
        return
    cores = tuple(core.cpu() for core in readable(module))
    for core in cores:
        check_finite(path or "of the layer", core)
    weight = dense(net, cores)
    for name in net.bonds:
        bond = Bond(path, net, cores, name)
        if bond.kind == TERMS:
            values = term_norms(net, cores, name).sort(descending=True).values
            shown = "norms of the terms W_b in the gauge as given: the bond has no Schmidt values"
            subject = Subject(values, values.new_zeros(0), bond=bond)
        else:
            each = schmidt_values(bond)
            values = profile(each)
            shown = "Schmidt values of the network's weight at the bond"
            if bond.kind == BLOCKS:
                shown = f"root mean square over {len(each)} blocks of their sorted Schmidt values"
            subject = Subject(values, each, weight, cut(net, name), bond)
        yield Spectrum(path, name, bond.kind, shown, net, values, {}), subject


def _of_dense(path: str, weight: Tensor, net: Network) -> Iterator[tuple[Spectrum, Subject]]:
    check_finite(path or "of the layer", weight)
    weight = weight.double().cpu()
    rows, cols = (tuple(i.size for i in modes) for modes in (net.rows, net.cols))
    for name in net.bonds:
        unfolding = cut(net, name)
        assert unfolding is not None  # every bond of an MPO cuts it
        each = torch.linalg.svdvals(unfolding.matrix(weight))
        shown = f"Schmidt values of the dense weight folded to rows {rows} and columns {cols}"
        subject = Subject(profile(each), each, weight, unfolding)
        yield Spectrum(path, name, CUT, shown, net, subject.values, {}), subject


def _chosen(model: nn.Module, names: Patterns | None) -> dict[str, nn.Module]:
    """Layers to read by their first paths."""
    paths: dict[nn.Module, list[str]] = {}
    for path, module in model.named_modules(remove_duplicate=False):
        if _group(module):
            paths.setdefault(module, []).append(path)
    if names is None:
        head = getattr(model, "get_output_embeddings", lambda: None)()
        chosen = [
            m
            for m in paths
            if isinstance(m, TensorLayer) or (_group(m) == "linear" and m is not head)
        ]
    else:
        patterns = [names] if isinstance(names, str) else list(names)
        hits = {name: [m for m in paths if _means(name, paths[m], m)] for name in patterns}
        lost = [name for name, modules in hits.items() if not modules]
        if lost:
            raise SelectionError(
                f"{lost[0]!r} names no layer of {type(model).__name__} that can be read; those "
                f"that can are {', '.join(p[0] for p in list(paths.values())[:3]) or 'none'}."
            )
        wanted = {m for modules in hits.values() for m in modules}
        chosen = [m for m in paths if m in wanted]
    if not any(m.network.bonds if isinstance(m, TensorLayer) else True for m in chosen):
        raise SelectionError(
            f"{type(model).__name__} has no bond to read; give a model with linear or "
            "tensorized layers."
        )
    return {paths[m][0]: m for m in chosen}


def _means(pattern: str, paths: Sequence[str], module: nn.Module) -> bool:
    if isinstance(module, TensorLayer) and pattern == module.group:
        return True
    return any(matches(pattern, path, module) for path in paths)


def _group(module: nn.Module) -> str:
    """Of what can be read "linear" or "embedding", "" for the rest."""
    if isinstance(module, TensorLayer):
        return module.group
    kind = type(module).__name__
    floating = getattr(getattr(module, "weight", None), "is_floating_point", lambda: False)()
    if floating and (isinstance(module, nn.Linear) or kind == "Conv1D"):
        return "linear"
    return "embedding" if floating and isinstance(module, nn.Embedding) else ""
