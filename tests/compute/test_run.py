"""Every topology and odd networks against numpy's einsum in float64."""

import copy
from itertools import product

import pytest
import torch
from torch.func import grad, jvp, vmap
from torch.testing import assert_close

import bondwise as bw
from bondwise.compute.lookup import lookup
from bondwise.compute.plan import plan
from bondwise.compute.run import apply, dense
from bondwise.compute.stack import stack
from bondwise.errors import ShapeError
from nets import in_training, multiplied, passes_alone, random_cores, reference

BATCHES = [(), (1,), (0,), (5,), (2, 3), (2, 0, 3), (70,)]


def test_dense_and_every_plan_are_right_for_every_batch(net):
    cores = random_cores(net)
    W = reference(net, cores)
    assert_close(dense(net, cores), W)
    for made, shape in product([plan(net, batch) for batch in (1, 64, 4096)], BATCHES):
        x = torch.randn(*shape, net.shape[1], dtype=torch.float64)
        y = apply(made, cores, x)
        assert y.shape == (*shape, net.shape[0])
        assert_close(y, x @ W.T)


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")  # inside torch.func.jvp
@pytest.mark.parametrize("planned", [plan, in_training])
def test_forward_mode_and_vmap(net, planned):
    cores, made = random_cores(net), planned(net)
    W = reference(net, cores)
    x, dx = torch.randn(2, 4, net.shape[1], dtype=torch.float64)
    y, dy = jvp(lambda x: apply(made, cores, x), (x,), (dx,))
    assert_close((y, dy), (x @ W.T, dx @ W.T))
    assert_close(vmap(lambda x: apply(made, cores, x))(x), x @ W.T)
    many = [torch.stack([core, 2 * core]) for core in cores]
    twice = vmap(lambda cores: apply(made, cores, x))(many)
    assert_close(twice, torch.stack([x @ W.T, 2 ** len(cores) * x @ W.T]))


def test_gradients_by_torch_func_are_those_through_dense():
    net = bw.mpo((2, 3), (3, 2), 2)
    cores, x = random_cores(net), torch.randn(5, 6, dtype=torch.float64)
    every = tuple(range(1 + len(cores)))
    ours = grad(lambda x, *c: apply(plan(net), c, x).sin().sum(), every)(x, *cores)
    theirs = grad(lambda x, *c: (x @ dense(net, c).T).sin().sum(), every)(x, *cores)
    assert_close(ours, theirs)


def test_more_modes_and_indices_than_there_are_letters():
    modes = tuple(2 if k % 4 == 3 else 1 for k in range(28))
    net = bw.mpo(modes, modes, 2)
    cores = [core / 2 for core in random_cores(net)]
    W = cores[0]
    for core in cores[1:-1]:
        W = torch.einsum("oia,apqb->opiqb", W, core).flatten(0, 1).flatten(1, 2)
    W = torch.einsum("oia,apq->opiq", W, cores[-1]).flatten(0, 1).flatten(1, 2)
    x = torch.randn(3, net.shape[1], dtype=torch.float64)
    assert_close(dense(net, cores), W)
    assert_close(apply(plan(net), cores, x), x @ W.T)
    for order in (None, range(28)):
        assert_close(multiplied(stack(net, cores, order)), W)


def test_inputs_and_cores_need_not_be_contiguous(net):
    cores = [core.mT.contiguous().mT if core.ndim > 1 else core for core in random_cores(net)]
    x = torch.randn(net.shape[1], 6, 2, dtype=torch.float64).permute(2, 1, 0)
    assert_close(apply(plan(net), cores, x), x @ reference(net, cores).T)


def test_the_operands_are_left_as_they_were():
    net = bw.mpo((2, 3), (3, 2), 2)
    given = [torch.randn(4, 6, dtype=torch.float64), *random_cores(net)]
    before = copy.deepcopy(given)
    apply(plan(net), given[1:], given[0])
    assert all(torch.equal(one, two) for one, two in zip(given, before, strict=True))


@pytest.mark.parametrize("width", [5, 0, 7])
@pytest.mark.parametrize("training", [False, True])
def test_a_wrong_width_is_named(width, training):
    net = bw.mpo((4, 3), (2, 3), 3)
    made = in_training(net) if training else plan(net)
    cores = [core.requires_grad_(training) for core in random_cores(net)]
    with pytest.raises(ShapeError, match=rf"width {width}.* 6 columns"):
        apply(made, cores, torch.ones(3, width, dtype=torch.float64))


@pytest.mark.parametrize(
    "call",
    [
        dense,
        stack,
        lambda net, cores: apply(plan(net), cores, torch.ones(1, 6)),
        lambda net, cores: lookup(net, cores, torch.tensor([0])),
    ],
)
def test_wrong_cores_are_named(call):
    net, left = bw.lowrank(4, 6, 2), torch.ones(4, 2)
    call(net, [left, torch.ones(2, 6)])
    with pytest.raises(ShapeError, match="1 cores came"):
        call(net, [left])
    with pytest.raises(ShapeError, match=r"Core 1 .*\(6, 2\).*\(2, 6\)"):
        call(net, [left, torch.ones(6, 2)])


COMPILED = """
import torch
import bondwise as bw
from bondwise.compute.lookup import lookup
from bondwise.compute.plan import plan
from bondwise.compute.run import apply, dense

for net in (bw.mpo((4, 3), (3, 6), 3), bw.btt((4, 3), (3, 6), 3), bw.cp((4, 3), (3, 6), 2),
            bw.parse("b o i -> (b o) (b i)", b=3, o=2, i=4))[:LAST]:
    torch._dynamo.reset()
    made, graphs = plan(net), []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph

    cores = [torch.randn(shape, dtype=torch.float64) for shape in net.core_shapes]
    W = dense(net, cores)
    run = torch.compile(
        lambda cores, x: apply(made, cores, x), fullgraph=True, dynamic=True, backend=backend
    )
    for n in (5, 2, 7, 64, 3):
        x = torch.randn(n, net.shape[1], dtype=torch.float64)
        torch.testing.assert_close(run(cores, x), x @ W.T)
    assert len(graphs) == 1, len(graphs)
    rows = torch.compile(
        lambda cores, ids: lookup(net, cores, ids), fullgraph=True, dynamic=True, backend="eager"
    )
    for n in (5, 2, 7):
        ids = torch.randint(net.shape[0], (n,))
        torch.testing.assert_close(rows(cores, ids), W[ids])
"""


@pytest.mark.compile
@pytest.mark.parametrize("last", [1, pytest.param(None, marks=pytest.mark.thorough)])
def test_compiles_to_one_graph_for_all_batches(last):
    passes_alone(COMPILED, LAST=last)
