"""The same code in half precision and on a CUDA device."""

import pytest
import torch

import bondwise as bw
from bondwise.topology import registry


def check(layer, rows, dtype):
    """Against float64 with the same rounded cores and inputs."""
    x = torch.randn(rows, layer.in_features, dtype=dtype, device=layer.core_0.device)
    exact = x.double() @ layer.double_dense.T
    with torch.no_grad():
        y = layer(x)
    assert y.dtype == dtype
    # every product on the way rounds once, at most as many as there are cores, the weights too
    bound = (len(layer.network.cores) + 2) * torch.finfo(dtype).eps
    assert (y.double() - exact).norm() <= bound * exact.norm()


def layer_of(name, dtype, device="cpu"):
    torch.manual_seed(0)
    net = registry.find(name).sized(96, 64, 6)
    layer = bw.TensorLinear(net).eval().to(device=device, dtype=dtype)
    layer.double_dense = bw.dense(net, [core.detach().double() for core in layer.cores()])
    return layer


CUDA = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=CUDA)])
@pytest.mark.parametrize("name", registry.names())
def test_every_dtype_on_every_device(name, device, dtype):
    layer = layer_of(name, dtype, device)
    assert layer.dense().dtype == dtype
    for rows in (0, 1, 7, 300):
        check(layer, rows, dtype)
    layer.train()
    x = torch.randn(5, 64, dtype=dtype, device=device, requires_grad=True)
    layer(x).float().sum().backward()
    assert x.grad is not None
    assert layer.core_0.grad is not None


def test_an_unsupported_dtype_is_refused_as_torch_does():
    layer = layer_of("mpo", torch.float32)
    with pytest.raises(RuntimeError, match=r"dtype|scalar type"):
        layer(torch.ones(3, 64, dtype=torch.int64))
    with pytest.raises(RuntimeError, match=r"dtype|scalar type"):
        layer(torch.ones(3, 64, dtype=torch.float64))
