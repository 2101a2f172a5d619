"""Interventions: a model that runs with some values of its bonds changed, while one looks."""

from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from bondwise.errors import DataError, SelectionError, ShapeError
from bondwise.flow.data import Batch, evaluating, feed
from bondwise.flow.watch import Entering, watching
from bondwise.layers.module import TensorLayer
from bondwise.read.bonds import Bond, bond, check_rows, chosen_indices
from bondwise.read.contributions import added, readout

Change = Callable[[Bond, Tensor], Tensor]
"""What is added to the output, (*batch, out), for inputs (*batch, in)."""


@dataclass(frozen=True, eq=False)
class Edit:
    """A change of what some values of a bond add to the output of their layer.

    All edits act on ``y_S = sum over S of W_b x``, so they mean the same for any network, whatever
    the order in which it is contracted, and gradients flow through them.

    Attributes:
        bond: in the gauge whose values are meant.
        indices: which values of it.
        change: what is added to the output.
        name: of the change, in words.
        at: the positions (along the second last axis of the inputs) that it acts on; None for all.
    """

    bond: Bond
    indices: tuple[int, ...]
    change: Change
    name: str
    at: tuple[int, ...] | None = None

    def where(self, positions: Iterable[int]) -> "Edit":
        """The same at some positions only."""
        return replace(self, at=tuple(int(k) for k in positions))


def zero(bond: Bond, indices: Iterable[int]) -> Edit:
    """Leave out what the values add.

    Args:
        bond: in some gauge.
        indices: which values.

    Raises:
        ShapeError: a value that the bond does not have, one that is twice there, or none.

    >>> from bondwise import TensorLinear, lowrank
    >>> zero(bond(TensorLinear(lowrank(6, 4, 2))), [1]).name
    'times 0'
    """
    return scale(bond, indices, 0.0)


def scale(bond: Bond, indices: Iterable[int], by: float) -> Edit:
    """Multiply what the values add; 0 leaves it out, 1 changes nothing, -1 turns it round.

    Args:
        bond: in some gauge.
        indices: which values.
        by: the factor.

    Raises:
        ShapeError: as for `zero`.

    >>> from bondwise import TensorLinear, lowrank
    >>> layer, x = TensorLinear(lowrank(6, 4, 2)), torch.randn(3, 4)
    >>> with edited(layer, scale(bond(layer), [0, 1], 3.0)):
    ...     y = layer(x)
    >>> torch.allclose(y, 3 * layer(x), atol=1e-5)
    True
    """
    chosen = tuple(chosen_indices(bond, indices))
    return Edit(bond, chosen, lambda b, x: (by - 1) * added(b, x, chosen), f"times {by:g}")


def mean(bond: Bond, indices: Iterable[int], inputs: Tensor) -> Edit:
    """Put what the values add on average in its place.

    Args:
        bond: in some gauge.
        indices: which values.
        inputs: of the layer, (*any, in), over which the mean is taken.

    Raises:
        DataError: no inputs.

    >>> from bondwise import TensorLinear, lowrank
    >>> mean(bond(TensorLinear(lowrank(6, 4, 2))), [0], torch.randn(5, 4)).indices
    (0,)
    """
    chosen = tuple(chosen_indices(bond, indices))
    if not inputs.numel():
        raise DataError("No inputs came for a mean; give some, (samples, in).")
    middle = inputs.reshape(-1, inputs.shape[-1]).float().mean(0)
    there = added(bond, middle, chosen)  # W_S is linear: the mean of its outputs
    return Edit(bond, chosen, lambda b, x: there.to(x.device) - added(b, x, chosen), "mean")


def resample(bond: Bond, indices: Iterable[int], seed: int = 0) -> Edit:
    """Put what the values add at another token of the batch in its place, drawn without return.

    The same tokens for all layers and values that are given one seed.

    Args:
        bond: in some gauge.
        indices: which values.
        seed: of the draw.

    Raises:
        ShapeError: as for `zero`.

    >>> from bondwise import TensorLinear, lowrank
    >>> resample(bond(TensorLinear(lowrank(6, 4, 2))), [0], seed=1).name
    'resampled'
    """
    chosen = tuple(chosen_indices(bond, indices))

    def change(b: Bond, x: Tensor) -> Tensor:
        own = added(b, x, chosen)
        flat = own.reshape(-1, own.shape[-1])
        order = torch.randperm(len(flat), generator=torch.Generator().manual_seed(seed))
        return flat[order.to(flat.device)].reshape(own.shape) - own

    return Edit(bond, chosen, change, "resampled")


def steer(bond: Bond, indices: Iterable[int], by: float) -> Edit:
    """Add to the output along the directions of the values, whatever comes in.

    Args:
        bond: in some gauge.
        indices: which values.
        by: the length that is added along each direction (`readout`), in the output's own units.

    Raises:
        ShapeError: as for `zero`.

    >>> from bondwise import TensorLinear, lowrank
    >>> layer, x = TensorLinear(lowrank(6, 4, 2)), torch.zeros(4)
    >>> with edited(layer, steer(bond(layer), [0], by=2.0)):
    ...     round(layer(x).norm().item(), 3)
    2.0
    """
    chosen = tuple(chosen_indices(bond, indices))
    along = by * readout(bond).directions[list(chosen)].sum(0)

    def change(_b: Bond, x: Tensor) -> Tensor:
        return along.to(x.device).expand(*x.shape[:-1], -1)

    return Edit(bond, chosen, change, f"steered by {by:g}")


def patch(bond: Bond, indices: Iterable[int], inputs: Tensor) -> Edit:
    """Put what the values add for other inputs in its place: from another prompt.

    Args:
        bond: in some gauge.
        indices: which values.
        inputs: of the layer when it ran on the other prompt (`recorded`), of the shape of those
            that will come, or of one sample for all.

    Raises:
        ShapeError: when it runs, on inputs of another length.

    >>> from bondwise import TensorLinear, lowrank
    >>> layer, one, other = TensorLinear(lowrank(6, 4, 2)), torch.randn(3, 4), torch.randn(3, 4)
    >>> with edited(layer, patch(bond(layer), [0, 1], other)):
    ...     y = layer(one)
    >>> torch.allclose(y, layer(other), atol=1e-5)
    True
    """
    chosen = tuple(chosen_indices(bond, indices))
    other = added(bond, inputs, chosen)

    def change(b: Bond, x: Tensor) -> Tensor:
        own = added(b, x, chosen)
        if own.ndim != other.ndim or own.shape[-2:] != other.shape[-2:]:
            raise ShapeError(
                f"A patch from inputs of shape {tuple(inputs.shape)} met inputs of shape "
                f"{tuple(x.shape)} in layer {b.layer!r}; give prompts of as many tokens."
            )
        return other.to(own.device).expand(own.shape) - own

    return Edit(bond, chosen, change, "patched")


def attach(model: nn.Module, edits: Sequence[Edit]) -> list[RemovableHandle]:
    """Make edits act from now on; each handle's ``remove()`` ends one.

    Args:
        model: whose layers the edits are of.
        edits: as `zero`, `scale`, `mean`, `resample`, `steer` and `patch` make them.

    Raises:
        SelectionError: a layer that the model does not have, whose network is another, or that is
            a convolution.

    >>> from bondwise import TensorLinear, lowrank
    >>> layer = TensorLinear(lowrank(6, 4, 2))
    >>> [handle] = attach(layer, [zero(bond(layer), [0])])
    >>> handle.remove()
    """
    layers = [_layer_of(model, edit) for edit in edits]
    check_rows(model, (edit.bond.layer for edit in edits))
    return [layer.register_forward_hook(_hook(e)) for layer, e in zip(layers, edits, strict=True)]


@contextmanager
def edited(model: nn.Module, *edits: Edit) -> Generator[nn.Module]:
    """The model with edits, for a while; afterwards it is as it was, whatever happened.

    Edits of one layer each see its own inputs, and add up.

    Args:
        model: whose layers the edits are of.
        edits: as for `attach`.

    >>> from bondwise import TensorLinear, lowrank
    >>> from bondwise.read import bond
    >>> model = nn.Sequential(TensorLinear(lowrank(6, 4, 2)))
    >>> x = torch.randn(3, 4)
    >>> with edited(model, zero(bond(model, "0"), [0, 1])):
    ...     bool(model(x).abs().max() < 1e-6)
    True

    Raises:
        SelectionError: a layer that the model does not have, or whose network is another.
    """
    handles = attach(model, edits)
    try:
        yield model
    finally:
        for handle in handles:
            handle.remove()


def recorded(model: nn.Module, bonds: Iterable[Bond], batch: Batch) -> dict[str, Tensor]:
    """What enters the layers of some bonds when the model runs on a batch, by layer.

    Args:
        model: a tensorized model.
        bonds: of its layers.
        batch: one batch, as the model takes it.

    >>> from bondwise import TensorLinear, lowrank
    >>> model = nn.Sequential(TensorLinear(lowrank(6, 4, 2)))
    >>> recorded(model, [bond(model, "0")], torch.ones(3, 4))["0"].shape
    torch.Size([3, 4])
    """
    found: dict[str, Tensor] = {}

    def see(entering: Entering) -> None:
        found[entering.name] = entering.x.detach().clone()

    layers = {b.layer: model.get_submodule(b.layer) for b in bonds}
    check_rows(model, layers)
    with torch.no_grad(), evaluating(model), watching(layers, see):
        feed(model, batch)
    return found


def generated(model: nn.Module, tokenizer: Any, prompt: str, *edits: Edit, tokens: int = 32) -> str:
    """How a language model goes on from a prompt, greedily, with edits at work.

    Args:
        model: with ``generate``, as Hugging Face models have it.
        tokenizer: of the model.
        prompt: what it goes on from.
        edits: none for the model as it is.
        tokens: how many.

    Raises:
        DataError: the prompt has no token.
    """
    ids = tokenizer(prompt, return_tensors="pt").input_ids
    if not ids.numel():
        raise DataError("An empty prompt came; write a few words.")
    ids = ids.to(next(model.parameters()).device)
    with torch.no_grad(), evaluating(model), edited(model, *edits):
        out = model.generate(  # pyright: ignore[reportCallIssue]
            ids, max_new_tokens=tokens, do_sample=False, pad_token_id=tokenizer.eos_token_id
        )
    return tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True)


def _hook(edit: Edit) -> Callable[[nn.Module, tuple[Any, ...], Tensor], Tensor]:
    def hook(_module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        x = args[0]
        change = edit.change(edit.bond, x).to(output.dtype)
        if edit.at is None:
            return output + change
        length = x.shape[-2] if x.ndim > 1 else 1
        wrong = [k for k in edit.at if not -length <= k < length]
        if wrong:
            raise ShapeError(
                f"Position {wrong[0]} came for inputs of {length} positions in layer "
                f"{edit.bond.layer!r}; write some of 0 to {length - 1}."
            )
        only = torch.zeros(length, 1, device=output.device, dtype=output.dtype)
        only[list(edit.at)] = 1
        return output + change * only

    return hook


def _layer_of(model: nn.Module, edit: Edit) -> nn.Module:
    bond(model, edit.bond.layer, edit.bond.name)  # names the nearest where it is not there
    layer = model.get_submodule(edit.bond.layer)
    if not isinstance(layer, TensorLayer) or layer.network != edit.bond.network:
        raise SelectionError(
            f"Layer {edit.bond.layer!r} of the model is another network than the edit's, "
            f"'{edit.bond.network}'; read the bond from this model."
        )
    return layer
