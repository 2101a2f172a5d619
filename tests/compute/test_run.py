"""Every topology and odd networks against numpy's einsum in float64."""

import copy
import subprocess
import sys
from itertools import product

import pytest
import torch
from torch.func import grad, jvp, vmap
from torch.testing import assert_close

import bondwise as bw
from bondwise.compute.plan import plan
from bondwise.compute.run import apply, dense
from bondwise.errors import ShapeError

BATCHES = [(), (1,), (0,), (5,), (2, 3), (2, 0, 3), (70,)]


def test_dense_is_the_definition(net, reference, make_cores):
    cores = make_cores(net)
    assert_close(dense(net, cores), reference(net, cores))


def test_a_plan_is_right_for_every_batch(net, reference, make_cores):
    cores = make_cores(net)
    W = reference(net, cores)
    for made, shape in product([plan(net, batch) for batch in (1, 64, 4096)], BATCHES):
        x = torch.randn(*shape, net.shape[1], dtype=torch.float64)
        y = apply(made, cores, x)
        assert y.shape == (*shape, net.shape[0])
        assert_close(y, x @ W.T)


def test_gradients_are_those_through_dense(net, make_cores):
    cores = [core.requires_grad_() for core in make_cores(net)]
    x = torch.randn(3, net.shape[1], dtype=torch.float64, requires_grad=True)
    towards = torch.randn(3, net.shape[0], dtype=torch.float64)
    theirs = torch.autograd.grad(x @ dense(net, cores).T, [x, *cores], towards)
    for batch in (1, 4096):
        ours = torch.autograd.grad(apply(plan(net, batch), cores, x), [x, *cores], towards)
        assert_close(ours, theirs)


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")  # inside torch.func.jvp
def test_forward_mode_and_vmap(net, reference, make_cores):
    cores, made = make_cores(net), plan(net)
    W = reference(net, cores)
    x, dx = torch.randn(2, 4, net.shape[1], dtype=torch.float64)
    y, dy = jvp(lambda x: apply(made, cores, x), (x,), (dx,))
    assert_close(y, x @ W.T)
    assert_close(dy, dx @ W.T)
    assert_close(vmap(lambda x: apply(made, cores, x))(x), x @ W.T)
    many = [torch.stack([core, 2 * core]) for core in cores]
    twice = vmap(lambda cores: apply(made, cores, x))(many)
    assert_close(twice, torch.stack([x @ W.T, 2 ** len(cores) * x @ W.T]))


def test_gradients_by_torch_func_are_those_through_dense(make_cores):
    net = bw.mpo((2, 3), (3, 2), 2)
    cores, x = make_cores(net), torch.randn(5, 6, dtype=torch.float64)
    every = tuple(range(1 + len(cores)))
    ours = grad(lambda x, *c: apply(plan(net), c, x).sin().sum(), every)(x, *cores)
    theirs = grad(lambda x, *c: (x @ dense(net, c).T).sin().sum(), every)(x, *cores)
    for one, two in zip(ours, theirs, strict=True):
        assert_close(one, two)


@pytest.mark.parametrize(
    "small",
    [bw.btt((2, 3), (3, 2), 2), bw.cp((2, 3), (3, 2), 2), bw.ring((2, 3), (3, 2), 2)],
    ids=["btt", "cp", "ring"],
)
def test_gradcheck_of_first_and_second_order(small, make_cores):
    cores = [core.requires_grad_() for core in make_cores(small)]
    x = torch.randn(2, small.shape[1], dtype=torch.float64, requires_grad=True)
    made = plan(small)
    assert torch.autograd.gradcheck(lambda x, *c: apply(made, c, x), (x, *cores))
    assert torch.autograd.gradgradcheck(lambda x, *c: apply(made, c, x), (x, *cores))


def test_an_mpo_with_bonds_of_one_is_a_kronecker_product(make_cores):
    net = bw.mpo((2, 3, 2), (4, 2, 3), 1)
    cores = make_cores(net)
    kron = torch.kron(torch.kron(cores[0][..., 0], cores[1][0, ..., 0]), cores[2][0])
    assert_close(dense(net, cores), kron)
    x = torch.randn(5, 24, dtype=torch.float64)
    assert_close(apply(plan(net), cores, x), x @ kron.T)


def test_an_index_open_on_both_sides_is_block_diagonal(make_cores):
    net = bw.parse("b o i -> (b o) (b i)", b=3, o=2, i=4)
    cores = make_cores(net)
    assert_close(dense(net, cores), torch.block_diag(*cores[0]))


def test_more_modes_and_indices_than_there_are_letters(make_cores):
    sites, two = 28, range(3, 28, 4)
    sizes = {f"{side}{k}": 2 if k in two else 1 for k in range(sites) for side in "oi"}
    chain = [
        " ".join([f"b{k}"] * (k > 0) + [f"o{k}", f"i{k}"] + [f"b{k + 1}"] * (k < sites - 1))
        for k in range(sites)
    ]
    rows, cols = (" ".join(f"{side}{k}" for k in range(sites)) for side in "oi")
    bonds = {f"b{k}": 2 for k in range(1, sites)}
    net = bw.parse(f"{', '.join(chain)} -> ({rows}) ({cols})", **sizes, **bonds)
    cores = [core / 2 for core in make_cores(net)]
    W = cores[0]
    for core in cores[1:-1]:
        W = torch.einsum("oia,apqb->opiqb", W, core).flatten(0, 1).flatten(1, 2)
    W = torch.einsum("oia,apq->opiq", W, cores[-1]).flatten(0, 1).flatten(1, 2)
    x = torch.randn(3, net.shape[1], dtype=torch.float64)
    assert_close(dense(net, cores), W)
    assert_close(apply(plan(net), cores, x), x @ W.T)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_any_float_dtype(dtype, make_cores):
    net = bw.btt((4, 6), (6, 4), 3)
    cores = [core.to(dtype) for core in make_cores(net)]
    x = torch.randn(5, 24).to(dtype)
    y, W = apply(plan(net), cores, x), dense(net, cores)
    assert y.dtype == W.dtype == dtype
    # each of two sums of at most 24 products is rounded once per product at worst
    tolerance = 24 * torch.finfo(dtype).eps * float((x.float().abs() @ W.float().abs().T).max())
    assert_close(y.double(), x.double() @ W.double().T, atol=tolerance, rtol=0)


def test_mixed_dtypes_are_refused_as_torch_does(make_cores):
    net = bw.lowrank(4, 3, 2)
    with pytest.raises(RuntimeError, match="dtype"):
        apply(plan(net), make_cores(net), torch.randn(2, 3))


def test_inputs_and_cores_need_not_be_contiguous(net, reference, make_cores):
    cores = [core.mT.contiguous().mT if core.ndim > 1 else core for core in make_cores(net)]
    x = torch.randn(net.shape[1], 6, 2, dtype=torch.float64).permute(2, 1, 0)
    assert_close(apply(plan(net), cores, x), x @ reference(net, cores).T)


def test_copies_of_a_plan_run(make_cores):
    net = bw.tucker((2, 3), (3, 2), 2)
    cores, x = make_cores(net), torch.randn(4, 6, dtype=torch.float64)
    made = plan(net)
    y = apply(made, cores, x)
    assert copy.deepcopy(made) == made
    assert torch.equal(apply(copy.deepcopy(made), copy.deepcopy(cores), x), y)


def test_the_operands_are_left_as_they_were(make_cores):
    net = bw.mpo((2, 3), (3, 2), 2)
    cores = make_cores(net)
    before = [core.clone() for core in cores]
    x = torch.randn(4, 6, dtype=torch.float64)
    kept = x.clone()
    apply(plan(net), cores, x)
    assert len(cores) == 2
    assert torch.equal(x, kept)
    assert all(torch.equal(one, two) for one, two in zip(cores, before, strict=True))


@pytest.mark.parametrize("width", [5, 0, 7])
def test_a_wrong_width_is_named(width):
    net = bw.lowrank(4, 6, 2)
    cores = [torch.ones(shape) for shape in net.core_shapes]
    with pytest.raises(ShapeError, match=rf"width {width}.* 6 columns"):
        apply(plan(net), cores, torch.ones(3, width))


@pytest.mark.parametrize("call", ["apply", "dense"])
def test_wrong_cores_are_named(call):
    net = bw.lowrank(4, 6, 2)

    def run(*shapes):
        cores = [torch.ones(shape) for shape in shapes]
        return dense(net, cores) if call == "dense" else apply(plan(net), cores, torch.ones(1, 6))

    assert run((4, 2), (2, 6)).numel() > 0
    with pytest.raises(ShapeError, match="1 cores came"):
        run((4, 2))
    with pytest.raises(ShapeError, match=r"Core 1 .*\(6, 2\).*\(2, 6\)"):
        run((4, 2), (6, 2))


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
    # in a process of its own: the import hook that checks shapes cannot be compiled
    program = f"LAST = {last}\n{COMPILED}"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
