"""Shared cores against plain linear layers that have the joint weight."""

import copy
import pickle
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.testing import assert_close

import bondwise as bw
from bondwise.compress.swap import footprint
from bondwise.errors import ShapeError
from bondwise.gauge.compact import GaugeForm, compact
from bondwise.layers.embedding import TensorEmbedding
from bondwise.layers.layers import TensorLinear
from bondwise.layers.remainder import Columns
from bondwise.layers.storage import share, stored_numbers
from nets import random_cores

OUTS, WIDTH, RANK = (12, 6, 7), 10, 4


class Block(nn.ModuleDict):
    """Three layers q, k, v that get the same input."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([own(x) for own in self.values()], -1)


def shared_block(seed=0) -> tuple[Block, torch.Tensor]:
    """The block, whose layers share V of [Uq; Uk; Uv] V, and the weight that it stands for."""
    net = bw.lowrank(sum(OUTS), WIDTH, RANK)
    stored, layers = compact(net, random_cores(net, seed)), {}
    for name, out, U in zip("qkv", OUTS, stored.free[0].split(OUTS), strict=True):
        part = replace(stored, network=bw.lowrank(out, WIDTH, RANK), free=(U, stored.free[1]))
        source = nn.Linear(WIDTH, out, bias=out != 7, dtype=torch.float64)
        layers[name] = TensorLinear.from_compact(part, source)
    share(list(layers.values()))
    return Block(layers), stored.dense()


def is_tied(block: nn.Module) -> bool:
    layers = list(block.children())
    cores, pivots = {id(own.core_1) for own in layers}, {id(own.pivots_1) for own in layers}
    assert isinstance(block.q.core_1, nn.Parameter)
    return len(cores) == len(pivots) == len({own.core_1.data_ptr() for own in layers}) == 1


def biases(block):
    return torch.cat([block.q.bias, block.k.bias, torch.zeros(OUTS[2], dtype=block.q.bias.dtype)])


@pytest.mark.parametrize("batch", [(), (0,), (5,), (2, 3)])
def test_it_computes_the_joint_weight(batch):
    block, W = shared_block()
    assert is_tied(block)
    x = torch.randn(*batch, WIDTH, dtype=torch.float64)
    assert_close(block(x), F.linear(x, W, biases(block)))
    assert_close(torch.cat([own.dense() for own in block.children()]), W)


def test_the_shared_core_gets_the_sum_of_the_gradients():
    block, _ = shared_block()
    x = torch.randn(5, WIDTH, dtype=torch.float64)
    towards = torch.randn(5, sum(OUTS), dtype=torch.float64)
    (ours,) = torch.autograd.grad(block(x), [block.q.core_1], towards)
    alone = copy.deepcopy(list(block.children()))
    apart = [pickle.loads(pickle.dumps(own)) for own in alone]  # one at a time: nothing is shared
    theirs = [
        torch.autograd.grad(F.linear(x, own.dense()), [own.core_1], g)[0]
        for own, g in zip(apart, towards.split(OUTS, -1), strict=True)
    ]
    assert len({id(own.core_1) for own in apart}) == 3
    assert_close(ours, sum(theirs))


def test_it_counts_once():
    block, _ = shared_block()
    numbers = RANK * (sum(OUTS) + WIDTH - RANK)
    mask = 2  # bytes: one bit for each of the ten inputs
    assert stored_numbers(block.children()) == numbers + 1  # 16 of 64 bits, rounded up
    assert sum(p.numel() for p in block.parameters()) == numbers + 12 + 6
    guards = 3
    assert footprint(block) == {
        "numbers": numbers + 18,
        "bytes": 8 * (numbers + 18 + guards) + mask,
    }
    own = RANK * (OUTS[1] + WIDTH - RANK)
    assert block.k.stored_numbers == own + 1
    assert "core_1 shared by 3" in repr(block.k)


def test_positions_count_as_the_bits_they_take():
    net = bw.lowrank(6, 9, 2)
    remainder = Columns(torch.tensor([1, 4, 8]), torch.zeros(6, 3))
    for dtype, positions in ((torch.float32, 3), (torch.bfloat16, 6), (torch.float64, 2)):
        layer = TensorLinear(net, remainder=remainder, dtype=dtype)
        assert layer.stored_numbers == 2 * (6 + 9) + 6 * 3 + positions


MOVES = {
    "float": lambda b: b.float(),
    "half and back": lambda b: b.half().double(),
    "to": lambda b: b.to(device="cpu", dtype=torch.float32),
    "deepcopy": copy.deepcopy,
    "pickle": lambda b: pickle.loads(pickle.dumps(b)),
    "empty": lambda b: b.to("meta").to_empty(device="cpu"),
}


@pytest.mark.parametrize("move", MOVES.values(), ids=MOVES)
def test_it_stays_shared(move):
    block, W = shared_block()
    state = copy.deepcopy(block.state_dict())
    moved = move(block)
    assert is_tied(moved)
    moved.load_state_dict(state)
    assert is_tied(moved)
    dtype = moved.q.core_1.dtype
    x = torch.randn(3, WIDTH, dtype=dtype)
    assert_close(moved(x), F.linear(x, W.to(dtype), biases(moved)), rtol=0, atol=1e-2)
    numbers = sum(p.numel() for p in moved.parameters())
    assert numbers == RANK * (sum(OUTS) + WIDTH - RANK) + 18


@pytest.mark.parametrize("assign", [False, True])
def test_other_weights_can_be_loaded(assign):
    (one, _), (two, W) = shared_block(0), shared_block(1)
    x = torch.randn(3, WIDTH, dtype=torch.float64)
    one(x)
    one.load_state_dict(two.state_dict(), assign=assign)
    assert is_tied(one)
    assert_close(one(x), F.linear(x, W, biases(one)))


def test_loading_one_layer_changes_the_order_of_inputs_in_all():
    (one, _), (two, W) = shared_block(0), shared_block(1)
    assert not torch.equal(one.q.pivots_1, two.q.pivots_1)
    one.q.load_state_dict(two.q.state_dict())
    with torch.no_grad():
        one.k.core_0.copy_(two.k.core_0)
    x = torch.randn(3, WIDTH, dtype=torch.float64)
    assert_close(F.linear(x, W[12:18], one.k.bias), one.k(x))


def test_a_copy_shares_with_itself_only():
    block, _ = shared_block()
    again = copy.deepcopy(block)
    with torch.no_grad():
        again.k.core_1.zero_()
    assert not again.q.core_1.any()
    assert block.q.core_1.any()


def test_merge_makes_each_dense():
    block, W = shared_block()
    merged = bw.merge(block)
    assert all(type(own) is nn.Linear for own in merged.children())
    assert_close(torch.cat([own.weight for own in merged.children()]), W)
    assert_close(merged(torch.ones(WIDTH).double()), block(torch.ones(WIDTH).double()))
    assert is_tied(block)


def test_other_cores_and_kinds_share_too():
    nets = [bw.mpo((2, 3), (3, 2), 2), bw.mpo((4, 3), (3, 2), 2)]
    layers = [TensorLinear(net, dtype=torch.float64) for net in nets]
    share(layers, core=1)
    assert layers[1].core_1 is layers[0].core_1
    x = torch.randn(3, 6, dtype=torch.float64)
    assert_close(layers[1](x), F.linear(x, layers[1].dense()))
    tables = [TensorEmbedding(bw.lowrank(n, 4, 2)) for n in (9, 5)]
    share(tables)
    assert_close(tables[1](torch.tensor([2])), tables[1].dense()[[2]])


def test_what_cannot_be_shared_is_named():
    a, b = TensorLinear(bw.lowrank(6, 4, 2)), TensorLinear(bw.lowrank(6, 5, 2))
    with pytest.raises(ShapeError, match=r"\(2, 4\).*\(2, 5\)"):
        share([a, b])
    with pytest.raises(ShapeError, match="1 layers"):
        share([a])
    with pytest.raises(ShapeError, match="cores 0 to 1"):
        share([a, a], core=2)
    stored = compact(bw.lowrank(6, 4, 2), [torch.randn(6, 2), torch.randn(2, 4)])
    pinned = TensorLinear(
        stored.network, stored.free, form=GaugeForm((None, "a")), pivots=stored.pivots
    )
    with pytest.raises(ShapeError, match="gauge form"):
        share([a, pinned])
    assert a.core_1 is not pinned.core_1
    assert not a.sharing
