"""Convolutions whose weight is a sum of terms: a network runs as a stack of smaller ones."""

from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import replace
from math import prod
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from bondwise.compute.fast.ready import Way
from bondwise.compute.kernels.convolve import SIZE, convolution_macs
from bondwise.compute.kernels.geometry import Geometry, Sizes, batched
from bondwise.compute.kernels.lay import as_last, lies_last
from bondwise.compute.kernels.stacks import kernel_modes
from bondwise.compute.run import Numbers
from bondwise.errors import ShapeError, as_whole
from bondwise.fit.kernels.groups import GroupMetric, fit_groups
from bondwise.layers import networks
from bondwise.layers.hosts.registry import numbers_of
from bondwise.layers.kernels import convolved, kernel_plan, of_kernel
from bondwise.layers.linear import bias_of
from bondwise.layers.module import TensorLayer
from bondwise.layers.serve.kernel_ways import conv_ways
from bondwise.layers.terms import Spec, Term
from bondwise.network.groups import group_count, grouped_network
from bondwise.network.network import Network
from bondwise.network.ranks import capped
from bondwise.topology.tucker2 import tucker2

BUSY = 2**30  # multiplications of a dense layer, as long as which it is measured
_NAMED = ("kernel_size", "stride", "padding", "dilation", "padding_mode", "output_padding")


class TensorConv(TensorLayer):
    """A convolution whose weight is a sum of terms: (n, in, *spatial) -> (n, out, *spatial).

    A network of the matrix ``weight.reshape(out, in / groups * kernel)`` runs as a stack of
    convolutions: 1 x 1, spatial, separable, depthwise and grouped ones, each core one step or some
    of them together, whichever takes fewest multiplications at the input's ``size``.

    Args:
        net: the network; its last column modes are the kernel's, one for each axis. Of groups an
            index of that size is open on both sides, and stands first in rows and columns.
        cores: one tensor per core; None draws them for training.
        bias: (out,), True to draw one, None or False for none.
        options: stride, padding, dilation, padding_mode and, of a transposed one, output_padding,
            as torch's convolutions take them; kernel_size where one mode is all of the kernel's.
        size: of the input, one for each axis, that the stack is chosen for.
        device: where the cores are.
        dtype: what they are in.

    Raises:
        ShapeError: cores, a bias or a kernel of other shapes than the network's.
    """

    group = "convolution"
    axes: ClassVar[int]
    transposed: ClassVar[bool] = False
    bias: nn.Parameter | None

    def __init__(
        self,
        net: Network,
        cores: Sequence[Numbers] | None = None,
        bias: Tensor | bool | None = None,
        *,
        size: Sizes | int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        **options: Any,
    ) -> None:
        networks.check_network(net, self._example())
        if len(net.cols) <= self.axes and "kernel_size" not in options:
            raise ShapeError(
                f"A network '{net}' came whose columns are no inputs and a kernel of {self.axes} "
                "sizes; its last column modes are the kernel's: write one such as "
                f"{self._example()}."
            )
        kernel = tuple(index.size for index in net.cols[-self.axes :])
        groups = group_count(net)
        given = {"kernel_size": kernel, "groups": groups} | options
        if cores is None:
            own = networks.drawn(net, device, dtype, fan=net.shape[1] // groups)
        else:
            own = networks.network(net, cores)
        self._hold([own], bias, given, size, device, dtype)

    @classmethod
    def of(
        cls,
        terms: Sequence[Term],
        bias: Tensor | bool | None = None,
        *,
        size: Sizes | int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        **options: Any,
    ) -> "TensorConv":
        """The layer of some terms, each (out, in / groups * kernel).

        Args:
            terms: one or more; their numbers are copied.
            bias: as in the constructor.
            size: as in the constructor.
            device: where the numbers go.
            dtype: what they are in.
            options: kernel_size, groups and those of the constructor.
        """
        layer = cls.__new__(cls)
        layer._hold(terms, bias, options, size, device, dtype)
        return layer

    def _hold(
        self,
        terms: Sequence[Term],
        bias: Tensor | bool | None,
        options: Mapping[str, Any],
        size: Sizes | int | None,
        device: torch.device | str | None,
        dtype: torch.dtype | None,
    ) -> None:
        self._move(options)  # before its terms, which run as it moves
        self._size = None if size is None else self._each("size", size)
        TensorLayer.__init__(self, [*map(of_kernel, terms)], device=device, dtype=dtype)
        out, inp = self.shape
        self.out_channels, self.in_channels = out, inp // prod(self.kernel_size) * self.groups
        if inp % prod(self.kernel_size) or out % self.groups:
            raise ShapeError(
                f"A weight of {self.shape} came for a kernel of {self.kernel_size} and "
                f"{self.groups} groups; its columns are the inputs of a group times the kernel."
            )
        made = bias_of(bias, self.out_channels, inp, self.like)
        self.register_parameter("bias", made)

    def _move(self, options: Mapping[str, Any]) -> None:
        """Take torch's arguments as torch's attributes."""
        unknown = sorted(set(options) - {*_NAMED, "groups"})
        if unknown:
            raise ShapeError(
                f"{unknown[0]}={options[unknown[0]]!r} came; write {', '.join(_NAMED)} or groups."
            )
        self.groups: int = options.get("groups", 1)
        self.kernel_size = self._each("kernel_size", options["kernel_size"])
        self.stride = self._each("stride", options.get("stride", 1))
        self.dilation = self._each("dilation", options.get("dilation", 1))
        padding = options.get("padding", 0)
        self.padding = padding if isinstance(padding, str) else self._each("padding", padding)
        self.output_padding = self._each("output_padding", options.get("output_padding", 0))
        self.padding_mode: str = options.get("padding_mode", "zeros")
        self._check()
        self.geometry = Geometry.of(self)

    @classmethod
    def _example(cls) -> str:
        return f"tucker2(8, 4, {(3,) * cls.axes}, 2)"

    def _each(self, name: str, value: Any) -> Sizes:
        one = as_whole(value)
        given = (one,) * self.axes if one is not None else value
        whole = [as_whole(n) for n in given] if isinstance(given, Sequence) else []
        found = tuple(n for n in whole if n is not None)
        least = 0 if name.endswith("padding") else 1
        if len(found) != self.axes or len(whole) != self.axes or min(found) < least:
            raise ShapeError(
                f"{name}={value!r} came for a convolution of {self.axes} axes; write an int from "
                f"{least} on, or one for each axis."
            )
        return found

    def _check(self) -> None:
        modes = ("zeros", "reflect", "replicate", "circular")
        if self.padding_mode not in modes[: 1 if self.transposed else None]:
            known = "zeros" if self.transposed else ", ".join(modes)
            raise ShapeError(f"padding_mode={self.padding_mode!r} came; write {known}.")
        most = [max(pair) for pair in zip(self.stride, self.dilation, strict=True)]
        more = zip(self.output_padding, most, strict=True)
        if any(n >= (top if self.transposed else 1) for n, top in more):
            raise ShapeError(
                f"output_padding={self.output_padding} came; it is smaller than the stride or the "
                "dilation, and of a transposed convolution alone."
            )
        if isinstance(self.padding, str):
            if self.padding not in ("same", "valid") or self.transposed:
                raise ShapeError(f"padding={self.padding!r} came; write numbers, same or valid.")
            if self.padding == "same" and any(step != 1 for step in self.stride):
                raise ShapeError("padding='same' came with a stride; write the padding as numbers.")

    @property
    def host(self) -> str:
        """The name of the host in whose place it stands."""
        return f"{'transposed ' if self.transposed else ''}convolution {self.axes}d"

    @property
    def options(self) -> dict[str, Any]:
        """What torch's constructor takes beside the channels and the bias."""
        names = _NAMED if self.transposed else _NAMED[:-1]
        found = {name: getattr(self, name) for name in names}
        return found | {"groups": self.groups}

    @property
    def size(self) -> Sizes | None:
        """Of the input, one for each axis, that the stack is chosen for."""
        return self._size

    @size.setter
    def size(self, given: Sequence[int] | int | None) -> None:
        self._size = None if given is None else self._each("size", given)
        self._changed()

    def _own(self, term: Term) -> Term:
        return of_kernel(term)

    def _changed(self) -> None:
        super()._changed()
        self.plans = tuple(kernel_plan(p.kind, self.geometry, self._size) for p in self.parts)

    def forward(self, x: Tensor, output_size: Sequence[int] | None = None) -> Tensor:
        """``W * x + b``; of a transposed one ``output_size`` is the size that is wanted.

        Raises:
            ShapeError: an input of another shape, or an output size that cannot be had.
        """
        x, alone = self.batched(x)
        geometry = self.geometry
        if output_size is not None:
            geometry = geometry.towards(tuple(x.shape[2:]), tuple(output_size)[-self.axes :])
        if not torch.compiler.is_compiling():  # torch says it too, in a graph
            geometry.check(x.shape[2:])
        if self.served is not None and geometry is self.geometry and len(x):
            y = self.served.output(x, *self.call(x))
            if y is not None:
                return y[0] if alone else y
        y = self._convolved(0, x, geometry, self.bias)
        for k in range(1, len(self.parts)):
            y = y + self._convolved(k, x, geometry).to(y.dtype)
        return y[0] if alone else y

    def _convolved(
        self, k: int, x: Tensor, geometry: Geometry, bias: Tensor | None = None
    ) -> Tensor:
        part, plan = self.parts[k], self.plans[k]
        if plan is not None and geometry is not self.geometry:
            plan = replace(plan, geometry=geometry)
        numbers, places = self._numbers(part), self._at(k, x.device)
        return convolved(part.kind, numbers, places, plan, geometry, x, bias)

    def batched(self, x: Tensor) -> tuple[Tensor, bool]:
        """An input with its batch, and whether that is new.

        Raises:
            ShapeError: an input of another shape.
        """
        return batched(x, self.axes, self.in_channels)

    def call(self, x: Tensor) -> tuple[Hashable, int]:
        """The size of an input and whether its channels are last; and how many samples it has."""
        return (tuple(x.shape[2:]), lies_last(x)), x.shape[0]

    def samples(self, rows: Sequence[int], met: Sequence[Tensor]) -> list[Tensor]:
        """Inputs of the sizes that it has met, as they lay; and with the channels last.

        Of more samples than keep a processor busy for a while there are so many.
        """
        del rows
        own, found = self.like, list[Tensor]()
        for x in (self.batched(x)[0] for x in met if x.numel()):
            channels, size = (self.out_channels, self.in_channels), tuple(x.shape[2:])
            most = max(1, BUSY // convolution_macs(self.geometry, *channels, size))
            like = torch.empty_like(x[:most], device=own.device, dtype=own.dtype)
            for each in (like, as_last(like))[: self.axes]:  # of one axis torch knows no such order
                if all(n.shape != each.shape or n.stride() != each.stride() for n in found):
                    found.append(torch.randn_like(each))
        return found

    def ways(self, x: Tensor) -> Iterator[Way]:
        """How it can run for such an input; the first is as built."""
        return conv_ways(self, x)

    def whole(self) -> Tensor:
        """The sum of all terms, shaped as torch has it."""
        return self._weight(self.dense().detach())

    def dense_macs(self, rows: int) -> int:
        """Multiplications of the dense convolution for so many samples of its `size`."""
        sizes = self.size or (SIZE,) * self.axes
        channels = self.out_channels, self.in_channels
        return rows * convolution_macs(self.geometry, *channels, sizes)

    def macs(self, rows: int) -> int:
        """Multiplications for so many samples of input of its `size`, of all terms."""
        out, inp = self.out_channels, self.in_channels
        sizes = self.size or (SIZE,) * self.axes
        dense = convolution_macs(self.geometry, out, inp, sizes)
        return rows * sum(dense if plan is None else plan.macs for plan in self.plans)

    @property
    def weight_shape(self) -> tuple[int, ...]:
        """As torch has it: (out, in / groups, *kernel), (in, out / groups, *kernel) transposed."""
        ends = self.out_channels, self.in_channels
        first, second = ends[::-1] if self.transposed else ends
        return (first, second // self.groups, *self.kernel_size)

    def _weight(self, matrix: Tensor) -> Tensor:
        return self.geometry.weight(matrix)

    def _matrix(self, weight: Tensor) -> Tensor:
        return self.geometry.matrix(weight)

    def spec(self) -> Spec:
        """All that an empty layer of this kind is built from, as plain JSON."""
        own = {"bias": self.bias is not None, "size": self.size, "options": self.options}
        return super().spec() | own

    @classmethod
    def from_spec(
        cls, spec: Spec, terms: Sequence[Term], device: Any = None, dtype: torch.dtype | None = None
    ) -> "TensorConv":
        """An empty layer, to be filled from a checkpoint."""
        size = None if spec["size"] is None else tuple(spec["size"])
        own = {"size": size, "device": device, "dtype": dtype}
        return cls.of(terms, bool(spec["bias"]), **own, **spec["options"])

    @classmethod
    def from_conv(
        cls, conv: nn.Module, net: Network | None = None, metric: GroupMetric = None
    ) -> "TensorConv":
        """A network fitted to a convolution; its bias is copied.

        Args:
            conv: torch's convolution of as many axes, transposed or not.
            net: of the whole, or of one group; None: `tucker2` of full rank per group, exact.
            metric: of the patches of a group, or one for each group.

        Raises:
            ShapeError: a network of another shape or kernel.
            FitError: the weight or the metric cannot be fitted.
            SelectionError: it is no such convolution.

        >>> import torch
        >>> from bondwise import TensorConv2d, tucker2
        >>> conv = nn.Conv2d(4, 8, 3, padding=1)
        >>> layer = TensorConv2d.from_conv(conv, tucker2(8, 4, (3, 3), (6, 4)))
        >>> layer(torch.zeros(1, 4, 5, 5)).shape
        torch.Size([1, 8, 5, 5])
        """
        host, matrix = numbers_of(conv, cls)
        geometry = Geometry.of(conv)
        groups = geometry.groups
        (out,), (inp, *kernel) = host.modes(conv)
        if net is None:
            net = capped(tucker2(out, inp, kernel, (out, inp)))
        networks.check_network(net, cls._example())
        if groups > 1 and group_count(net) == 1 and net.shape == (out, inp * prod(kernel)):
            net = grouped_network(net, groups)
        kernel_modes(net, geometry)
        if net.shape != (len(matrix), groups * matrix.shape[1]):
            raise ShapeError(
                f"A network of shape {net.shape} came for {groups} groups of {out} outputs and "
                f"{inp} inputs; write one such as tucker2({out}, {inp}, {tuple(kernel)}, 2)."
            )
        fitted = fit_groups(matrix, net, metric)
        made = host.build(conv, [networks.network(fitted.network, fitted.cores)])
        assert isinstance(made, cls)
        return made


class TensorConv1d(TensorConv):
    """See `TensorConv`; in the place of ``nn.Conv1d``.

    >>> from bondwise import tucker2
    >>> TensorConv1d(tucker2(8, 4, 5, 2), padding="same")(torch.zeros(1, 4, 9)).shape
    torch.Size([1, 8, 9])
    """

    axes = 1


class TensorConv2d(TensorConv):
    """See `TensorConv`; in the place of ``nn.Conv2d``.

    >>> from bondwise import lowrank
    >>> TensorConv2d(lowrank(8, (4, 3, 3), 2), stride=2)(torch.zeros(1, 4, 9, 9)).shape
    torch.Size([1, 8, 4, 4])
    """

    axes = 2


class TensorConv3d(TensorConv):
    """See `TensorConv`; in the place of ``nn.Conv3d``.

    >>> from bondwise import cp
    >>> TensorConv3d(cp(8, (4, 3, 3, 3), 2))(torch.zeros(1, 4, 5, 5, 5)).shape
    torch.Size([1, 8, 3, 3, 3])
    """

    axes = 3


class TensorConvTranspose1d(TensorConv):
    """See `TensorConv`; in the place of ``nn.ConvTranspose1d``.

    >>> from bondwise import tucker2
    >>> TensorConvTranspose1d(tucker2(8, 4, 5, 2), stride=2)(torch.zeros(1, 4, 9)).shape
    torch.Size([1, 8, 21])
    """

    axes = 1
    transposed = True


class TensorConvTranspose2d(TensorConv):
    """See `TensorConv`; in the place of ``nn.ConvTranspose2d``.

    >>> from bondwise import tucker2
    >>> TensorConvTranspose2d(tucker2(8, 4, (2, 2), 2), stride=2)(torch.zeros(1, 4, 9, 9)).shape
    torch.Size([1, 8, 18, 18])
    """

    axes = 2
    transposed = True


class TensorConvTranspose3d(TensorConv):
    """See `TensorConv`; in the place of ``nn.ConvTranspose3d``.

    >>> from bondwise import tucker2
    >>> TensorConvTranspose3d(tucker2(8, 4, (2, 2, 2), 2))(torch.zeros(1, 4, 3, 3, 3)).shape
    torch.Size([1, 8, 4, 4, 4])
    """

    axes = 3
    transposed = True
