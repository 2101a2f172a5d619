"""The linear layer: a sum of terms applied to its inputs."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from bondwise.compute.fast.ready import Way
from bondwise.compute.path import unlike
from bondwise.compute.run import Numbers
from bondwise.errors import ShapeError
from bondwise.fit.fit import fit
from bondwise.fit.metric import Metric
from bondwise.layers import networks
from bondwise.layers.hosts.registry import numbers_of
from bondwise.layers.module import TensorLayer
from bondwise.layers.serve.linear_ways import linear_ways
from bondwise.layers.stacked import stacked
from bondwise.layers.terms import Spec, Term
from bondwise.network.network import Network


class TensorLinear(TensorLayer):
    """A linear layer whose weight is a sum of terms: ``(*batch, in) -> (*batch, out)``.

    ``y = (W_0 + W_1 + ..) x + b``. A network runs by the plan of fewest multiplications for the
    number of rows that come.

    Args:
        net: the network of the weight (out x in).
        cores: one tensor per core; None draws them for training.
        bias: (out,), True to draw one, None or False for none.
        device: where the cores are.
        dtype: what they are in.

    Raises:
        ShapeError: cores or a bias of other shapes than the network's.

    >>> from bondwise import lowrank
    >>> layer = TensorLinear(lowrank(6, 4, 2), bias=True)
    >>> layer(torch.zeros(3, 4)).shape
    torch.Size([3, 6])
    """

    group = "linear"
    bias: nn.Parameter | None

    def __init__(
        self,
        net: Network,
        cores: Sequence[Numbers] | None = None,
        bias: Tensor | bool | None = None,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        networks.check_network(net, "lowrank(6, 4, 2)")
        own = networks.drawn(net, device, dtype) if cores is None else networks.network(net, cores)
        self._hold([own], bias, "linear", device, dtype)

    @classmethod
    def of(
        cls,
        terms: Sequence[Term],
        bias: Tensor | bool | None = None,
        *,
        host: str = "linear",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> "TensorLinear":
        """The layer of some terms, each out x in.

        Args:
            terms: one or more; their numbers are copied.
            bias: as in the constructor.
            host: the name of the host in whose place it stands.
            device: where the numbers go.
            dtype: what they are in.

        >>> from bondwise.layers.entries import dense
        >>> TensorLinear.of([dense(torch.eye(3))])(torch.ones(3))
        tensor([1., 1., 1.], grad_fn=...)
        """
        layer = cls.__new__(cls)
        layer._hold(terms, bias, host, device, dtype)
        return layer

    def _hold(
        self,
        terms: Sequence[Term],
        bias: Tensor | bool | None,
        host: str,
        device: torch.device | str | None,
        dtype: torch.dtype | None,
    ) -> None:
        TensorLayer.__init__(self, terms, device=device, dtype=dtype)
        self._host = host
        self.out_features, self.in_features = self.shape
        self.register_parameter(
            "bias", bias_of(bias, self.out_features, self.in_features, self.like)
        )

    @property
    def host(self) -> str:
        """The name of the host in whose place it stands."""
        return self._host

    def forward(self, x: Tensor) -> Tensor:
        """``x W^T + b``."""
        width = self.in_features
        if not x.ndim or x.shape[-1] != width:
            raise unlike(x, width)
        if self.served is not None:
            y = self.served.output(x, None, x.numel() // width)
            if y is not None:
                return y
        parts, device = self.parts, x.device
        y = parts[0].kind.apply(self._numbers(parts[0]), self._at(0, device), x, self.bias)
        for k, part in enumerate(parts[1:], start=1):
            y = y + part.kind.apply(self._numbers(part), self._at(k, device), x).to(y.dtype)
        return y

    def samples(self, rows: Sequence[int], met: Sequence[Tensor]) -> list[Tensor]:
        """Inputs that it is prepared for: of so many rows, and of as many as it has met."""
        own, width = self.like, self.in_features
        counts = sorted({*rows, *(x.numel() // width for x in met if x.numel())})
        return [torch.randn(n, width, device=own.device).to(own.dtype) for n in counts]

    def ways(self, x: Tensor) -> Iterator[Way]:
        """How it can run for such an input; the first is as built."""
        return linear_ways(self, x.shape[0])

    def as_stack(self, order: Sequence[int] | None = None) -> nn.Sequential:
        """The same as sparse linear layers, one for each core."""
        return stacked(self, order, self.bias)

    def spec(self) -> Spec:
        """All that an empty layer of this kind is built from, as plain JSON."""
        return super().spec() | {"bias": self.bias is not None}

    @classmethod
    def from_spec(
        cls, spec: Spec, terms: Sequence[Term], device: Any = None, dtype: torch.dtype | None = None
    ) -> "TensorLinear":
        """An empty layer, to be filled from a checkpoint."""
        bias = bool(spec["bias"])
        return cls.of(terms, bias, host=spec["host"], device=device, dtype=dtype)

    @classmethod
    def from_linear(
        cls, linear: nn.Module, net: Network, metric: Tensor | Metric | None = None
    ) -> "TensorLinear":
        """The network fitted to a linear layer (``nn.Linear`` or GPT-2's ``Conv1D``); bias copied.

        Raises:
            FitError: the weight or the metric cannot be fitted.
            SelectionError: it is no such layer.
        """
        host, matrix = numbers_of(linear, cls)
        fitted = fit(matrix, net, metric)
        made = host.build(linear, [networks.network(fitted.network, fitted.cores)])
        assert isinstance(made, cls)
        return made


def bias_of(bias: Tensor | bool | None, out: int, inp: int, like: Tensor) -> nn.Parameter | None:
    """A bias of ``out`` numbers as a parameter: a copy of the one given, or drawn as torch does.

    Args:
        bias: (out,), True to draw one, None or False for none.
        out: how many outputs there are.
        inp: how many numbers each of them is a sum over.
        like: of the device and dtype that it gets.

    Raises:
        ShapeError: a bias of another shape.
    """
    if bias is None or bias is False:
        return None
    if bias is True:
        drawn = torch.empty(out, device=like.device, dtype=like.dtype)
        return nn.Parameter(drawn.uniform_(-(inp**-0.5), inp**-0.5))
    if not isinstance(bias, Tensor):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise ShapeError(f"bias={bias!r} came; write a tensor, True, False or None.")
    if tuple(bias.shape) != (out,):
        raise ShapeError(f"A bias of shape {tuple(bias.shape)} came; write one of ({out},).")
    own = bias.detach().to(device=like.device, dtype=like.dtype).clone()
    frozen = isinstance(bias, nn.Parameter) and not bias.requires_grad
    return nn.Parameter(own, requires_grad=not frozen)
