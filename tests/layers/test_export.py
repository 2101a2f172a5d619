"""Layers of ordinary sizes outside eager mode: one graph for all batches, ONNX of few kinds."""

import pytest

from nets import passes_alone, thorough

EXPORTED = """
import warnings
import torch
import bondwise as bw
from bondwise.gauge.compact import compact
from bondwise.layers.networks import compacted

warnings.simplefilter("ignore")  # of the exporter
torch.manual_seed(0)
NETS = (bw.mpo((32, 24), (24, 32), 4), bw.lowrank(768, 768, 96), bw.mpo((8, 8, 12), (8, 8, 12), 4),
        bw.cp((32, 24), (24, 32), 64), bw.tucker((32, 24), (24, 32), 12),
        bw.btt((16, 48), (32, 24), 3), bw.btt(768, (3, 256), 100),
        bw.tree((8, 8, 12), (8, 8, 12), 3), bw.ring((8, 6), (6, 8), 2))[:LAST]


def layers():
    for net in NETS:
        layer = bw.TensorLinear(net, bias=True).eval()
        stored = compact(net, layer.cores())
        yield layer
        yield bw.TensorLinear.of([compacted(stored)], layer.bias).eval()


def check(found, layer, rows):
    x = torch.randn(rows, layer.in_features)
    torch.testing.assert_close(found(x), x @ layer.dense().T + layer.bias, atol=1e-4, rtol=1e-4)


def dims():
    return ({0: torch.export.Dim("rows")},)
"""
GRAPH = """
for layer in layers():
    x = torch.randn(5, layer.in_features)
    program = torch.export.export(layer, (x,), dynamic_shapes=dims())
    for rows in (1, 9, 600):
        check(program.module(), layer, rows)
"""
ONNX = """
import onnxruntime
for layer in layers():
    x = torch.randn(5, layer.in_features)
    made = torch.onnx.export(layer, (x,), dynamo=True, dynamic_shapes=dims(), verbose=False)
    kinds = {node.op_type for node in made.model_proto.graph.node}
    joins = {"Concat"}  # an identity and the numbers beside it
    assert kinds <= {"MatMul", "Gemm", "Gather", "Add", "Reshape", "Transpose"} | joins, kinds
    session = onnxruntime.InferenceSession(made.model_proto.SerializeToString())
    (name,) = (given.name for given in session.get_inputs())
    run = lambda x: torch.from_numpy(session.run(None, {name: x.numpy()})[0])
    for rows in (1, 7):
        check(run, layer, rows)
"""
COMPILED = """
for layer in layers():
    torch._dynamo.reset()
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph

    run = torch.compile(layer, fullgraph=True, dynamic=True, backend=backend)
    with torch.no_grad():
        for rows in (5, 2, 7, 64, 3, 300, 3000):
            check(run, layer, rows)
    assert len(graphs) == 1, len(graphs)
"""


@pytest.mark.compile
@pytest.mark.parametrize("last", [2, *thorough(None)], ids=["two", "all"])
@pytest.mark.parametrize("program", [GRAPH, ONNX, COMPILED], ids=["graph", "onnx", "compiled"])
def test_one_graph_for_every_batch_and_equal_numbers(program, last):
    if program == ONNX:
        pytest.importorskip("onnxruntime", reason="needs the extra onnx")
        pytest.importorskip("onnxscript", reason="needs the extra onnx")
    passes_alone(EXPORTED + program, LAST=last)
