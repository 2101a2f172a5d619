"""Plan and cores and x give y, by matmuls only; and the one einsum that says what is meant."""

from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from typing import cast

import numpy as np
import opt_einsum
import torch
from jaxtyping import Float
from torch import Tensor

from bondwise.compute import path, whole
from bondwise.compute.plan import Plan
from bondwise.compute.product import prepare
from bondwise.errors import ShapeError
from bondwise.network.network import Network

Numbers = Tensor | np.ndarray


def as_tensor(value: Numbers) -> Tensor:
    """An array as a tensor that shares its memory where it can be written; a tensor as it is.

    >>> as_tensor(np.eye(2)).shape
    torch.Size([2, 2])
    """
    if isinstance(value, np.ndarray):
        return torch.from_numpy(value if value.flags.writeable else value.copy())  # pyright: ignore[reportUnknownMemberType]
    return value


def dense(net: Network, cores: Sequence[Numbers]) -> Float[Tensor, "out inp"]:
    """The weight that a network stands for: one einsum, rows and columns row-major.

    ``W[rows, cols] = sum core_0 * core_1 * ..``; an index that is open on both sides is written
    on the diagonal, so the weight is zero wherever its row value is not its column value.

    Args:
        net: the network.
        cores: one tensor per core, its axes in the order of the core's indices.

    >>> from bondwise import parse
    >>> blocks = torch.tensor([[[1., 2.]], [[3., 4.]]])
    >>> dense(parse("b o i -> (b o) (b i)", b=2, o=1, i=2), [blocks])
    tensor([[1., 2., 0., 0.],
            [0., 0., 3., 4.]])

    Raises:
        ShapeError: the cores are not as many, or not of the shapes, that the network has.
    """
    cores = [as_tensor(core) for core in cores]
    check_cores(net, cores)
    rows = [index.name for index in net.rows]
    operands = list(zip(cores, net.names, strict=True))
    for index in net.cols:
        if index.name in rows:
            eye = torch.eye(index.size, dtype=cores[0].dtype, device=cores[0].device)
            operands.append((eye, (index.name, f"{index.name}'")))
    cols = [f"{i.name}'" if i.name in rows else i.name for i in net.cols]
    return _einsum(operands, [*rows, *cols]).reshape(net.shape)


def blocks(net: Network, cores: Sequence[Tensor]) -> Float[Tensor, "out inp"]:
    """The blocks on the diagonal below each other: `dense` without the zeros between them.

    >>> from bondwise import parse
    >>> cores = [torch.tensor([[[1., 2.]], [[3., 4.]]])]
    >>> blocks(parse("b o i -> (b o) (b i)", b=2, o=1, i=2), cores)
    tensor([[1., 2.],
            [3., 4.]])
    """
    rows = [index.name for index in net.rows]
    cols = [index.name for index in net.cols if index.name not in rows]
    made = _einsum(zip(cores, net.names, strict=True), [*rows, *cols])
    return made.reshape(net.shape[0], -1)


def _einsum(operands: Iterable[tuple[Tensor, Sequence[str]]], output: list[str]) -> Tensor:
    """A product in the dtype of the operands: the definition heeds no autocast."""
    given: list[Tensor | list[str]] = []
    for tensor, names in operands:
        given += [tensor, list(names)]
    device = cast(Tensor, given[0]).device.type
    heeds = device != "meta" and not torch.compiler.is_compiling()
    cast_off = heeds and torch.is_autocast_enabled(device)
    with torch.autocast(device, enabled=False) if cast_off else nullcontext():
        return cast(Tensor, opt_einsum.contract(*given, output))


def apply(
    plan: Plan, cores: Sequence[Tensor], x: Float[Tensor, "*batch inp"]
) -> Float[Tensor, "*batch out"]:
    """``y = W x`` for every x of the batch, ``(*batch, in) -> (*batch, out)``, along the plan.

    Right for any batch size, whatever the plan was made for. Differentiable in cores and x, by
    ``torch.func`` too; what lies between the products is computed again for the gradient and not
    kept.

    Args:
        plan: for any batch.
        cores: one tensor per core, its axes in the order of the core's indices.
        x: the inputs, (*batch, in).

    >>> from bondwise import lowrank, plan
    >>> apply(plan(lowrank(3, 2, 1)), [torch.ones(3, 1), torch.ones(1, 2)], torch.tensor([1., 2.]))
    tensor([3., 3., 3.])

    Raises:
        ShapeError: x is not as wide as the weight, or the cores are not the network's.
    """
    check_shapes(plan.network, plan.core_shapes, cores)
    return contracted(plan, cores, x)


def contracted(
    plan: Plan, cores: Sequence[Tensor], x: Tensor, bias: Tensor | None = None
) -> Tensor:
    """`apply` without a look at the cores, and with a bias.

    Where gradients are asked for, the weight is made whole where that costs less, and not kept.
    """
    out, inp = plan.shape
    asked = path.graded(x, *cores)
    plan = whole.for_gradients(plan, x.numel() // inp) if asked else plan
    if not asked or not plan.whole or x.shape[-1:] != (inp,):
        return path.run(plan, prepare(plan, cores), x, bias)
    y = whole.linear(plan, cores, x.reshape(-1, inp)).reshape(*x.shape[:-1], out)
    return y if bias is None else y + bias.to(y.dtype)


def check_cores(net: Network, cores: Sequence[Tensor]) -> None:
    """Refuse cores that are not those of the network.

    Raises:
        ShapeError: their number or one of their shapes differs.
    """
    check_shapes(net, net.core_shapes, cores)


def check_shapes(net: Network, shapes: Sequence[tuple[int, ...]], cores: Sequence[Tensor]) -> None:
    """`check_cores` where the shapes are at hand, as in a plan.

    Raises:
        ShapeError: the number of cores or one of their shapes differs.
    """
    if len(cores) != len(shapes):
        raise ShapeError(f"{len(cores)} cores came for '{net}'; it has {len(shapes)}.")
    for k, (core, shape) in enumerate(zip(cores, shapes, strict=True)):
        if core.shape != shape:
            names = " ".join(net.names[k])
            raise ShapeError(
                f"Core {k} of '{net}' came with shape {tuple(core.shape)}; "
                f"its indices {names} make it {shape}."
            )
