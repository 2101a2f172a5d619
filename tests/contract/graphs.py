"""Layers outside eager mode: compiled to one graph for all batches, exported; a script.

It runs in a process of its own: the import hook that checks shapes cannot be traced.
"""

import sys
import warnings

import torch
from torch.testing import assert_close

import bondwise as bw
from bondwise.layers.prepare import contest
from contract.subjects import Cell, cells, check, check_gradients, few, wanted

ROWS = (5, 2, 64, 300)


def compiled(cell: Cell) -> int:
    """How many graphs all batches take."""
    model, graphs = cell.model(), []

    def backend(graph, inputs):
        assert "nonzero" not in graph.code  # sizes that depend on values are decided before
        graphs.append(graph)
        return graph

    torch._dynamo.reset()
    run = torch.compile(model, fullgraph=True, dynamic=True, backend=backend)
    with torch.no_grad():
        for rows in ROWS:
            assert_close(run(cell.inputs(rows)), wanted(model[0], cell.inputs(rows)))
            for p in model.parameters():
                p.data = p.data * 1.1
    check(model, cell.inputs(5))
    return len(graphs)


def prepared(cell: Cell) -> None:
    """A prepared model: no graph break, and a graph for each plan; one row is always apart."""
    model, graphs = cell.model(), []
    bw.prepare(model, cell.inputs(64), rows=(1, 64))

    def backend(graph, inputs):
        graphs.append(graph)
        return graph

    torch._dynamo.reset()
    run = torch.compile(model, fullgraph=True, dynamic=True, backend=backend)
    with torch.no_grad():
        for rows in (1, 3, 64, 5, 300, 40, 1):
            x = cell.inputs(rows)
            assert_close(run(x), wanted(model[0], x), rtol=1e-4, atol=1e-4)
    assert len(graphs) <= 3, f"{len(graphs)} graphs"


def trained(cell: Cell) -> None:
    """Forward and backward as compilers see them: no views, no writes in place."""
    torch._dynamo.reset()
    model = cell.model().train()
    run = torch.compile(model, fullgraph=True, dynamic=True, backend="aot_eager")
    for rows in ROWS[:2]:
        check_gradients(model, cell.inputs(rows), run)


def exported(cell: Cell) -> None:
    """One graph with a batch of any size, whose weights are the parameters and nothing else."""
    model = cell.model()
    check(model, cell.inputs(5))
    dims = ({0: torch.export.Dim("rows")},)
    program = torch.export.export(model, (cell.inputs(6),), dynamic_shapes=dims)
    for rows in (1, 9, 300):
        x = cell.inputs(rows)
        assert_close(program.module()(x), wanted(model[0], x))
    assert set(dict(program.named_parameters())) == {name for name, _ in model.named_parameters()}
    kept = [value for value in program.constants.values() if isinstance(value, torch.Tensor)]
    assert not any(value.is_floating_point() for value in kept)


def main(which: str, every: bool) -> None:
    """All cells in one way; every one that fails is named."""
    warnings.simplefilter("ignore")  # of the exporter
    contest.LEAST, contest.FEWEST, contest.LOOKS = 0.0, 1, 1  # how fast is of no interest
    wrong = []
    for cell in cells():
        if not (every or few(cell)):
            continue
        try:
            if which == "prepared":
                prepared(cell)
            elif which == "exported":
                exported(cell)
            else:
                assert compiled(cell) == 1, "more than one graph"
                trained(cell)
        except Exception as error:
            wrong.append(f"{cell}: {type(error).__name__}: {str(error)[:300]}")
    assert not wrong, "\n".join([f"{len(wrong)} cells", *wrong])


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2] == "all")
