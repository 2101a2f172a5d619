"""Prepared layers on a GPU: measured there, and captured in a CUDA graph."""

import pytest
import torch
from torch import nn

import bondwise as bw

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA"),
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_prepared_model_is_captured(dtype):
    model = nn.Sequential(
        bw.TensorLinear(bw.lowrank(64, 64, 8), bias=True),
        bw.TensorLinear(bw.mpo((8, 8), (8, 8), 4)),
    )
    model = model.to("cuda", dtype).eval()
    x = torch.randn(1, 64, device="cuda", dtype=dtype)
    with torch.no_grad():
        right = model(x)
        bw.prepare(model, x)
        model(x)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            y = model(x)
        graph.replay()
        torch.cuda.synchronize()
    torch.testing.assert_close(y, right, rtol=5e-2, atol=5e-2)
