"""Who makes a model smaller, each to the same share of its numbers. Peers are imported late.

A method maps a dense model (its own copy), a subject and ``keep``, the share of the whole model's
parameters, to a model with at most that many.
"""

import copy
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn

from convs import vbmf
from convs.count import numbers
from convs.models import Subject, plain_crepe

Heal = Callable[[nn.Module, nn.Module, torch.Tensor, int], nn.Module]
Make = Callable[[nn.Module, Subject, float], nn.Module]
SMALL = 0.01  # of a model's numbers
NEEDS = {"tltorch": "tensorly-torch==0.5.0", "torch_pruning": "torch-pruning==1.6.1"}


@dataclass(frozen=True)
class Method:
    """Its name on the page, how it makes a model, what it needs, whether it has a keep.

    ``heal`` is its own way to heal, in the place of the loop that all share.
    """

    label: str
    make: Make
    needs: str = ""
    sized: bool = True
    heal: Heal | None = None


def weighted(model: nn.Module) -> dict[str, nn.Conv2d | nn.Linear]:
    """The layers that are made smaller, by path."""
    return {
        path: module
        for path, module in model.named_modules()
        if isinstance(module, nn.Conv2d | nn.Linear)
    }


def large(model: nn.Module) -> dict[str, nn.Conv2d | nn.Linear]:
    """Without those of less than a hundredth of the numbers, which no one would cut by a formula.

    A first convolution of nine numbers a channel would lose most of its channels to one share for
    all layers, and so the peer all of its accuracy.
    """
    least = SMALL * numbers(model)
    return {p: m for p, m in weighted(model).items() if m.weight.numel() >= least}


def put(model: nn.Module, path: str, layer: nn.Module) -> None:
    above, _, name = path.rpartition(".")
    setattr(model.get_submodule(above), name, layer)


def vbmf_tucker(model: nn.Module, _: Subject, keep: float, scale: bool = True) -> nn.Module:
    """Tucker-2 (linear layers: SVD) at the ranks of VBMF, all times one factor for the size."""
    layers = large(model)
    ranks = {path: vbmf.vbmf_ranks(layer.weight.detach()) for path, layer in layers.items()}
    dense = numbers(model)

    def chosen(factor: float) -> dict[str, tuple[int, ...]]:
        grown = {p: vbmf.scaled(layers[p].weight, r, factor) for p, r in ranks.items()}
        return {p: r for p, r in grown.items() if _pays(layers[p], r)}

    def size(factor: float) -> int:
        saved = sum(
            layers[p].weight.numel() - vbmf.cost(layers[p].weight, r)
            for p, r in chosen(factor).items()
        )
        return dense - saved

    factor = vbmf.largest(lambda f: size(f) <= keep * dense, 0.0, 64.0) if scale else 1.0
    for path, own in chosen(factor).items():
        put(model, path, vbmf.factorized(layers[path], own))
    return model


def _pays(layer: nn.Conv2d | nn.Linear, ranks: tuple[int, ...]) -> bool:
    return vbmf.cost(layer.weight, ranks) < layer.weight.numel()


def tensorly(model: nn.Module, _: Subject, keep: float, factorization: str) -> nn.Module:
    """FactorizedConv.from_conv at one fraction for all layers; linear layers: SVD at the same."""
    import tltorch

    dense = numbers(model)
    layers = large(model)

    def layer_at(path: str, fraction: float, decompose: bool) -> nn.Module:
        own = layers[path]
        if isinstance(own, nn.Linear):
            rank = max(1, round(fraction * own.weight.numel() / sum(own.weight.shape)))
            return vbmf.factorized(own, (rank,)) if decompose else _Counted(own, rank)
        kernel = "spatial" if factorization == "tucker" else None
        rank: float = fraction
        if factorization == "cp":  # a fraction may become a rank of zero there
            shape = own.weight.shape
            rank = max(1, round(fraction * shape.numel() / sum(shape)))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return tltorch.FactorizedConv.from_conv(
                copy.deepcopy(own),  # it shares the bias with what it is made from
                rank=rank,
                factorization=factorization,
                implementation="factorized",
                fixed_rank_modes=kernel,
                decompose_weights=decompose,
            )

    def size(fraction: float) -> int:
        made = sum(numbers(layer_at(path, fraction, False)) for path in layers)
        return dense - sum(map(numbers, layers.values())) + made

    fraction = vbmf.largest(lambda f: size(f) <= keep * dense, 1e-3, 1.0, 12)
    for path in layers:
        put(model, path, layer_at(path, fraction, True))
    return model


class _Counted(nn.Module):
    """As many parameters as two thin linear layers have."""

    def __init__(self, layer: nn.Linear, rank: int) -> None:
        super().__init__()
        self.all = nn.Parameter(torch.empty(rank * sum(layer.weight.shape) + layer.out_features))


def pruned(model: nn.Module, subject: Subject, keep: float, everywhere: bool) -> nn.Module:
    """Channels of least magnitude go (L2 of a group): one share a layer, or one ranking for all."""
    import torch_pruning

    plain = plain_crepe(model) if subject.name == "crepe" else model
    dense = numbers(plain)
    example = subject.calibration()[:2]
    last = list(weighted(plain).values())[-1]

    def at(ratio: float) -> nn.Module:
        own = copy.deepcopy(plain)
        head = list(weighted(own).values())[-1]
        assert type(head) is type(last)
        pruner = torch_pruning.pruner.MagnitudePruner(
            own,
            example,
            importance=torch_pruning.importance.MagnitudeImportance(p=2),
            global_pruning=everywhere,
            pruning_ratio=ratio,
            max_pruning_ratio=0.95,
            ignored_layers=[head],
        )
        pruner.step()
        return own

    # the smallest ratio that is small enough
    left = vbmf.largest(lambda kept: numbers(at(1 - kept)) <= keep * dense, 0.02, 1.0, 9)
    return at(1 - left).eval()


def ours(model: nn.Module, subject: Subject, keep: float, **options: Any) -> nn.Module:
    """``bw.tensorize`` as a user calls it; ``keep`` there is of the targeted weights."""
    import bondwise as bw

    dense = numbers(model)
    weights = sum(layer.weight.numel() for layer in weighted(model).values())
    of_weights = (keep * dense - (dense - weights)) / weights
    result = bw.tensorize(model, of_weights, data=subject.calibration(), **options)
    return result.model


def healed_by_us(model: nn.Module, dense: nn.Module, inputs: torch.Tensor, steps: int) -> nn.Module:
    """``bw.heal`` as a user calls it, on the same inputs for as many steps."""
    import bondwise as bw

    return bw.heal(model, dense, inputs, steps=steps).model


def _as_it_is(model: nn.Module, *_: object) -> nn.Module:
    return model


METHODS = {
    "dense": Method("dense", _as_it_is, sized=False),
    "vbmf-own": Method(
        "Tucker-2, VBMF's own ranks", partial(vbmf_tucker, scale=False), sized=False
    ),
    "vbmf": Method("Tucker-2, VBMF's ranks scaled", vbmf_tucker),
    "tl-tucker": Method(
        "TensorLy-Torch, Tucker", partial(tensorly, factorization="tucker"), "tltorch"
    ),
    "tl-cp": Method("TensorLy-Torch, CP", partial(tensorly, factorization="cp"), "tltorch"),
    "pruned": Method(
        "channels pruned, one share a layer", partial(pruned, everywhere=False), "torch_pruning"
    ),
    "pruned-global": Method(
        "channels pruned, one ranking", partial(pruned, everywhere=True), "torch_pruning"
    ),
    "ours": Method("bondwise", ours),
    "ours-heal": Method("bondwise, healed by `bw.heal`", ours, heal=healed_by_us),
}
