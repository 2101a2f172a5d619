"""torch's convolutions of every kind, and networks of their weights."""

import torch
from hypothesis import strategies as st
from torch import nn

from bondwise.topology import registry
from nets import reference

NAMES = registry.names(kernels=True)
MODES = ("zeros", "reflect", "replicate", "circular")


def module_of(axes, inp, out, kernel, transposed=False, **options):
    """torch's convolution in float64."""
    kind = getattr(nn, f"Conv{'Transpose' * transposed}{axes}d")
    return kind(inp, out, kernel, **options).double().requires_grad_(False)


def filled(conv, net, cores):
    """The module with the weight that the cores stand for, by numpy: blocks on the diagonal."""
    W, groups = reference(net, cores), conv.groups
    out, inp = (n // groups for n in W.shape)
    blocks = [W[g * out : (g + 1) * out, g * inp : (g + 1) * inp] for g in range(groups)]
    kernels = [block.reshape(out, -1, *conv.kernel_size) for block in blocks]
    if conv.transposed:
        kernels = [k.transpose(0, 1) for k in kernels]
    conv.weight.data = torch.cat(kernels).contiguous()
    return conv


@st.composite
def convolutions(draw):
    """Any convolution that torch takes, with a network of it and the input's size."""
    axes, transposed = draw(st.integers(1, 3)), draw(st.booleans())
    groups = draw(st.sampled_from([1, 1, 2, 3]))
    small = st.integers(1, 3)

    def each(numbers):
        return tuple(draw(numbers) for _ in range(axes))

    kernel, stride, dilation = each(st.integers(1, 4)), each(small), each(small)
    options = {
        "stride": stride,
        "dilation": dilation,
        "groups": groups,
        "bias": draw(st.booleans()),
    }
    if transposed:
        options["padding"] = tuple(min(draw(st.integers(0, 2)), k // 2) for k in kernel)
        pairs = zip(stride, dilation, strict=True)
        options["output_padding"] = tuple(draw(st.integers(0, max(pair) - 1)) for pair in pairs)
    else:
        options["padding_mode"] = draw(st.sampled_from(MODES))
        padding = each(st.integers(0, 2))
        same = ["same"] if set(stride) == {1} else []
        options["padding"] = draw(st.sampled_from([padding, "valid", *same]))
    name = draw(st.sampled_from(NAMES))
    out, inp = draw(st.sampled_from([(4, 6), (6, 4), (5, 1)]))
    size = each(st.integers(10, 11))
    return name, (axes, inp * groups, out * groups, kernel, transposed), options, size
