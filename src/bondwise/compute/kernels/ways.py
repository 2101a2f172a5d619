"""The ways to run a convolution: by its whole kernel, or by a stack of smaller ones."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

from torch import Tensor

from bondwise.compute.fast.ready import WIDE, Ready, Way, widened, widens
from bondwise.compute.kernels.convolve import Convolved, ConvPlan, ordered, permuted
from bondwise.compute.kernels.geometry import Geometry, Sizes
from bondwise.compute.kernels.lay import (
    Frame,
    Lay,
    as_last,
    last,
    lies_last,
    packed,
    packs,
    plain,
)
from bondwise.compute.kernels.stacks import conv_plans
from bondwise.compute.product import contract
from bondwise.network.network import Network


@dataclass(frozen=True)
class Call:
    """A convolution at one input.

    Attributes:
        geometry: of the convolution.
        shape: of the input, (n, channels, *spatial).
        last: whether the channels of the output are to lie last: as those of the input do, but for
            inputs of one axis, of which torch knows no such order.
    """

    geometry: Geometry
    shape: Sizes
    last: bool

    @classmethod
    def of(cls, geometry: Geometry, x: Tensor) -> "Call":
        """That of an input."""
        return cls(geometry, tuple(x.shape), geometry.axes > 1 and lies_last(x))

    @property
    def size(self) -> Sizes:
        """Of the input, one for each axis."""
        return self.shape[2:]


@dataclass(frozen=True)
class Style:
    """How the weights of all steps are laid out.

    Attributes:
        name: as a table shows it.
        kernels: of steps that convolve.
        points: of those whose kernels have one tap.
        last: whether channels are last in between.
        wide: whether float32 is computed in, for shorter numbers.
    """

    name: str
    kernels: Lay
    points: Lay
    last: bool
    wide: bool = False

    def lay(self, geometry: Geometry) -> Lay:
        """That of one step."""
        return self.points if geometry.taps == 1 else self.kernels


def whole_ways(weight: Callable[[], Tensor], like: Tensor, call: Call) -> Iterator[Way]:
    """Ways to run a convolution by its whole kernel; the first is torch's own.

    Args:
        weight: gives it, as torch has it.
        like: of its device and dtype.
        call: what it is run for.

    >>> import torch
    >>> call = Call(Geometry((3,), (1,), ((1, 1),), (1,)), (2, 4, 9), last=False)
    >>> weight = torch.ones(5, 4, 3)
    >>> found = [way.make() for way in whole_ways(lambda: weight, weight, call)]
    >>> {float(ready.run(torch.ones(2, 4, 9), None).sum()) for ready in found}
    {1000.0}
    """
    frame = Frame.of(call.geometry, call.size)
    yield Way(
        "dense", partial(_whole, weight, call, Style("", plain, plain, False), "dense", Frame())
    )
    for style in (*styles(like, call), *finer_styles(like, call)):
        if style.kernels is style.points and (style.name or frame != Frame()):
            name = f"dense{style.name or ', along rows'}"
            yield Way(name, partial(_whole, weight, call, style, name, frame))


def stack_ways(
    net: Network, cores: Callable[[], Sequence[Tensor]], like: Tensor, call: Call
) -> Iterator[Way]:
    """Ways to run a convolution as a stack of smaller ones.

    Each order comes in the plainest layouts, and has the others in `Way.finer`.

    Args:
        net: the network of the kernel.
        cores: gives them, whole, in core-axis order.
        like: of their device and dtype.
        call: what it is run for.
    """
    for plan in conv_plans(net, call.geometry, call.size):
        name = named(plan)
        rest = [_way(plan, cores, call, style, name) for style in finer_styles(like, call)]
        for at, style in enumerate(styles(like, call)):
            yield _way(plan, cores, call, style, name, () if at else rest)


def named(plan: ConvPlan) -> str:
    """Its steps: "stack 2 (0 1)" meets core 2 first, and then the product of the first two."""
    words = [" ".join(map(str, step.cores)) for step in plan.steps]
    return "stack " + " ".join(
        f"({word})" if len(step.cores) > 1 else word
        for word, step in zip(words, plan.steps, strict=True)
    )


def styles(like: Tensor, call: Call) -> Iterator[Style]:
    """Layouts that are always tried: those that need no copy, and what is fastest inside."""
    own, wide = _kinds(like, call)
    for long in (*([False] if own else []), *([True] if wide else [])):
        more = ", in float32" if long else ""
        if not call.last:
            yield Style(more, plain, plain, last=False, wide=long)
        yield Style(f", channels last{more}", last, last, last=True, wide=long)


def finer_styles(like: Tensor, call: Call) -> Iterator[Style]:
    """Layouts for what is among the fastest: in blocks of oneDNN, or in the numbers as kept."""
    own, wide = _kinds(like, call)
    for long in (*([False] if own else []), *([True] if wide else [])):
        more = ", in float32" if long else ""
        if packs(like.new_empty(0, dtype=WIDE) if long else like, call.geometry):
            yield Style(f", packed{more}", packed, packed, last=True, wide=long)
            yield Style(f", packed kernels{more}", packed, last, last=True, wide=long)
    if wide:
        yield Style(", cast to float32", cast, cast, last=call.last, wide=True)


def _kinds(like: Tensor, call: Call) -> tuple[bool, bool]:
    """Whether to compute in the numbers that are stored, and whether in float32."""
    wide = widens(like)
    return not wide or packs(like, call.geometry), wide


def cast(weight: Tensor, geometry: Geometry, shape: Sizes) -> Ready:  # noqa: ARG001
    """The weight as it is kept, made of the input's dtype in every call."""
    own = weight.contiguous()
    return Ready("", (own,), lambda x, bias: geometry.run(x, own.to(x.dtype), bias))


def _whole(
    weight: Callable[[], Tensor], call: Call, style: Style, name: str, frame: Frame
) -> Ready:
    """The whole kernel in one step."""
    shape = (*call.shape[:2], *frame.size(call.size))
    own = frame.weight(_widened(weight(), style))
    ready = style.kernels(own, frame.geometry(call.geometry), shape)
    run = partial(framed, frame, call.last, style.last, ready.run)
    return _as_given(Ready(name, ready.kept, run), style)


def _way(
    plan: ConvPlan,
    cores: Callable[[], Sequence[Tensor]],
    call: Call,
    style: Style,
    name: str,
    finer: Sequence[Way] = (),
) -> Way:
    name += style.name
    return Way(name, partial(_stacked, plan, cores, call, style, name), lambda: finer)


def _stacked(
    plan: ConvPlan, cores: Callable[[], Sequence[Tensor]], call: Call, style: Style, name: str
) -> Ready:
    """The steps of a stack, one after the other."""
    frame, size = Frame.of(call.geometry, call.size), call.size
    numbers, steps = cores(), list[tuple[Convolved, Ready]]()
    for step in plan.steps:
        own = call.geometry.along(step.axes, step.groups)
        weight = contract(step.weight, [_widened(numbers[at], style) for at in step.cores])
        weight = frame.weight(weight.reshape(step.shape))
        shape = (call.shape[0] * step.beside, step.channels, *frame.size(size))
        steps.append((step, style.lay(own)(weight, frame.geometry(own), shape)))
        size = own.extents(size)
    run = partial(framed, frame, call.last, style.last, partial(_along, steps, plan.last))
    kept = tuple(tensor for _, ready in steps for tensor in ready.kept)
    return _as_given(Ready(name, kept, run), style)


def _widened(own: Tensor, style: Style) -> Tensor:
    return own.to(WIDE) if style.wide and style.kernels is not cast else own


def _as_given(ready: Ready, style: Style) -> Ready:
    return widened(ready) if style.wide else ready


def framed(
    frame: Frame,
    given: bool,
    inside: bool,
    run: Callable[[Tensor, Tensor | None], Tensor],
    x: Tensor,
    bias: Tensor | None,
) -> Tensor:
    """What runs inside, on an input seen as its kernels want it; the output lies as the input."""
    x = frame.enter(x)
    if inside:
        x = as_last(x)
    return frame.leave(run(x, bias), given)


def _along(
    steps: Sequence[tuple[Convolved, Ready]],
    last: tuple[Sizes, Sizes] | None,
    x: Tensor,
    bias: Tensor | None,
) -> Tensor:
    """The steps in their order; the channels as modes in between."""
    count, end = x.shape[0], len(steps) - 1
    for at, (step, ready) in enumerate(steps):
        own = bias if at == end and last is None else None
        x = ready.run(ordered(x, count, step), own)
    if last is None:
        return x
    x = permuted(x, count, *last)
    return x if bias is None else x + bias.reshape(-1, *(1,) * (x.ndim - 2))
