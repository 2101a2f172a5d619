"""Torch's convolutions: their weight as a matrix of out x (in * kernel), group below group."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from bondwise.compute.kernels.geometry import Geometry
from bondwise.layers import convolution
from bondwise.layers.convolution import TensorConv
from bondwise.layers.hosts.registry import Host, Modes, find, first
from bondwise.layers.terms import Term


def matrix(module: Any) -> Tensor:
    """The weight, (out, in / groups * kernel): the matrices of the groups below each other."""
    return Geometry.of(module).matrix(module.weight.detach())


def modes(module: Any) -> tuple[Modes, Modes]:
    """Those of one group: outputs; inputs, and the kernel's sizes."""
    inp, out = module.in_channels // module.groups, module.out_channels // module.groups
    return (out,), (inp, *module.kernel_size)


def inputs(module: Any, args: tuple[Any, ...], named: Mapping[str, Any]) -> Tensor:
    """What enters with its padding, (n, channels, *spatial): the rows are its patches."""
    x = first(module, args, named)
    padded = Geometry.of(module).pad(x)
    return x.view_as(x) if padded is x else padded  # another module has other patches of it


def lay(module: Any, matrix: Tensor) -> Tensor:
    """The matrix as torch has the weight."""
    return Geometry.of(module).weight(matrix)


def geometry_of(module: object) -> Geometry | None:
    """How a convolution moves, dense or of terms; None of any other module."""
    if isinstance(module, TensorConv):
        return module.geometry
    found = find(module) if isinstance(module, nn.Module) else None
    return Geometry.of(module) if found is not None and found.group == TensorConv.group else None


def build(module: Any, terms: Sequence[Term]) -> TensorConv:
    """A layer of terms; the bias is copied. A layer of terms may stand for the module."""
    transposed = "Transpose" in _base(module)
    names = ["kernel_size", "stride", "padding", "dilation", "padding_mode", "groups"]
    options = {name: getattr(module, name) for name in names + ["output_padding"] * transposed}
    layer = getattr(convolution, f"Tensor{_base(module)}")
    return layer.of(terms, module.bias, size=getattr(module, "size", None), **options)


def dense(layer: TensorConv) -> nn.Module:
    """The weight multiplied out."""
    kind = getattr(nn, type(layer).__name__.removeprefix("Tensor"))
    biased = layer.bias is not None
    made = kind(layer.in_channels, layer.out_channels, bias=biased, device="meta", **layer.options)
    weight = layer.geometry.weight(layer.dense().detach())
    made.weight = nn.Parameter(weight.contiguous(), layer.trains)
    if layer.bias is not None:
        made.bias = nn.Parameter(layer.bias.detach().clone(), layer.bias.requires_grad)
    return made.train(layer.training)


def convolves(model: nn.Module) -> bool:
    """Whether a model has a convolution, so that multiplications are counted for a sample."""
    return any(geometry_of(module) is not None for module in model.modules())


def _base(module: Any) -> str:
    """Conv2d, ConvTranspose1d, .. of a module that is one, or stands for one."""
    return f"Conv{'Transpose' if module.transposed else ''}{len(module.kernel_size)}d"


HOSTS = tuple(
    Host(
        f"{'transposed ' * transposed}convolution {axes}d",
        "convolution",
        f"torch.nn.modules.conv.Conv{'Transpose' * transposed}{axes}d",
        getattr(convolution, f"TensorConv{'Transpose' * transposed}{axes}d"),
        matrix,
        modes,
        inputs,
        build,
        dense,
        lay,
    )
    for transposed in (False, True)
    for axes in (1, 2, 3)
)
